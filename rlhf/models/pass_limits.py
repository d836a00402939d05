"""Tokens of a forward pass at which a device is as fast as it gets."""

import torch
from transformers import PreTrainedModel

# Tokens at which a CPU's matmuls reach full speed, and the fixed cost of one forward pass expressed in tokens.
CPU_LIMITS = 512, 64
CPU_LAYER = 1e6  # weights of a layer; a smaller layer needs CPU_LIMITS tokens per thread to keep all threads busy
GPU_TOKENS = 16384
# FLOPs of a GPU in the time that Python takes to start the kernels of one layer: one or two milliseconds.
GPU_LAYER_FLOPS = 5e11


def pass_limits(lm: PreTrainedModel, device: torch.device) -> tuple[int, int]:
    """Returns the largest number of tokens in a pass of `lm`, and the cost of one more pass in tokens."""
    layers = lm.config.get_text_config().num_hidden_layers
    embeddings = {lm.get_input_embeddings(), lm.get_output_embeddings()} - {None}
    others = sum(p.numel() for p in lm.parameters()) - sum(e.weight.numel() for e in embeddings)
    weights = max(others, 1) / layers
    if device.type != "cpu":
        return GPU_TOKENS, int(GPU_LAYER_FLOPS / (2 * weights))
    return cpu_limits(weights, torch.get_num_threads())


def cpu_limits(weights: float, threads: int) -> tuple[int, int]:
    """Returns the limits of a process on a CPU, by the weights of a layer and the threads of the process."""
    times = min(threads, max(1, int(threads * CPU_LAYER / weights)))
    return times * CPU_LIMITS[0], times * CPU_LIMITS[1]
