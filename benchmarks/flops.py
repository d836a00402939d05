"""FLOPs of a PPO update, and their share of the speed of a large matmul on the same GPU; see ppo_vs_trl.py."""

import statistics
import time

import torch
from transformers import PreTrainedModel

LARGEST_LORA_RANK = 16  # linear layers with a side of at most this are LoRA factors


def update_flops(lm: PreTrainedModel, response_lengths: dict[tuple[int, ...], int]) -> float:
    """Model FLOPs of the update of one rollout, policy and value.

    2 FLOPs per weight and token in forward, and as many in backward: frozen weights get no gradient, only activations
    do. The unembedding counts for response tokens of the policy alone. Attention, adapters, padding and recomputed
    activations do not count.

    Args:
        response_lengths: prompt -> tokens of its response.
    """
    body = sum(
        m.weight.numel()
        for m in getattr(lm, lm.base_model_prefix).modules()
        if isinstance(m, torch.nn.Linear) and min(m.weight.shape) > LARGEST_LORA_RANK
    )
    responses = sum(response_lengths.values())
    tokens = responses + sum(map(len, response_lengths))
    forward = 2 * (2 * body * tokens + lm.get_output_embeddings().weight.numel() * responses)
    return 2 * forward


def matmul_flops_per_s(size: int = 8192) -> float | None:
    """FLOPs per second of a large matmul in bfloat16; None without a GPU."""
    if not torch.cuda.is_available():
        return None
    a, b = torch.randn(2, size, size, dtype=torch.bfloat16, device="cuda")
    times = []
    for _ in range(20):
        synchronize()
        start = time.perf_counter()
        a @ b
        synchronize()
        times.append(time.perf_counter() - start)
    return 2 * size**3 / statistics.median(times)


def gpu_figures(runs: list[dict]) -> dict:
    """Speed of our update on a GPU, absolute and as a share of the matmul's; empty without a GPU."""
    if not torch.cuda.is_available():
        return {}
    speeds = [run["update_flops"] / run["seconds"]["update"] for run in runs]
    shares = [speed / run["gpu_flops_per_s"] for speed, run in zip(speeds, runs, strict=True)]
    return {
        "gpu": torch.cuda.get_device_name(),
        "gpu_tflops_per_s": statistics.median(run["gpu_flops_per_s"] for run in runs) / 1e12,
        "update_tflops_per_s": statistics.median(speeds) / 1e12,
        "update_peak_fraction": statistics.median(shares),
    }


def synchronize() -> None:
    """Waits for the GPU, if there is one."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
