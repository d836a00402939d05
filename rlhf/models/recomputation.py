"""`gradient_checkpointing: auto`: a trainer recomputes as few layers in backward as its device's free memory asks.

The result is the same with and without: a recomputed layer gives the same numbers, its dropout included.
"""

import os
from typing import Any

import torch
from peft.tuners.lora import LoraLayer
from torch import nn
from transformers import PreTrainedModel, Trainer, TrainingArguments
from transformers.integrations import is_deepspeed_zero3_enabled

from rlhf.errors import InputError
from rlhf.models.fitting import LIBRARIES, fits
from rlhf.models.memory import Memory
from rlhf.models.model_sizes import Layout, Precision, Sharding
from rlhf.runs.console import gigabytes
from rlhf.runs.machine_memory import free_memory

OPTIONS = frozenset({"gradient_checkpointing", "activation_checkpointing"})  # two names of one option
CHECKPOINTING: dict[str, Any] = {
    "help": "Compute layers again in backward instead of keeping their activations: less memory, the same result, up "
    "to a third more time. auto: no more layers than the device's free memory asks.",
    "nargs": "?",
    "const": True,
}  # metadata of the field
LOWER = "lower per_device_train_batch_size"


def left_open(args: TrainingArguments) -> frozenset[str]:
    """Returns `OPTIONS` if neither is set, for a config's `computed`; until a trainer decides, layers are recomputed.

    A config calls it first in its `__post_init__`: transformers takes None for False.
    """
    if args.gradient_checkpointing not in (None, "auto") or args.activation_checkpointing is not None:
        return frozenset()
    args.gradient_checkpointing, args.activation_checkpointing = None, True
    return OPTIONS


def given_recomputation(args: TrainingArguments) -> int:
    """Returns n for options that were set: each n-th layer is computed again in backward; 0: none."""
    kwargs = args.activation_checkpointing_kwargs or args.gradient_checkpointing_kwargs
    every = kwargs.get("every_n_layers", 1) if isinstance(kwargs, dict) else 1
    return every if args.gradient_checkpointing or args.activation_checkpointing else 0


def set_recomputation(args: TrainingArguments, lm: PreTrainedModel, every: int) -> None:
    """Makes a trainer compute each n-th layer of `lm` again in backward; 0: none."""
    args.gradient_checkpointing = args.activation_checkpointing = every > 0
    if every > 1:
        given = args.activation_checkpointing_kwargs
        kwargs = (given if isinstance(given, dict) else {}) | {"every_n_layers": every}
        args.gradient_checkpointing_kwargs = args.activation_checkpointing_kwargs = kwargs
    if not every:
        lm.disable_input_require_grads()  # TRL has enabled it, as checkpointing needs it


def available_bytes(trainer: Trainer, lm: nn.Module) -> float:
    """Returns the bytes that a run may take on this process's device: free ones, and what it has taken already.

    The latter are the model, and on a CPU Python and its libraries. Processes of one machine share its main memory. The
    smallest number of all processes counts.
    """
    trainer.accelerator.wait_for_everyone()  # all have loaded their models
    device = trainer.args.device
    processes = 1 if device.type == "cuda" else int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    taken = sum(p.nbytes for p in lm.parameters() if p.device.type == device.type)
    taken += LIBRARIES if device.type == "cpu" else 0
    return smallest(trainer, free_memory(device) / processes + taken)


def smallest(trainer: Trainer, number: float) -> float:
    """Returns the smallest number of all processes."""
    one = torch.tensor([number], device=trainer.args.device, dtype=torch.float32)
    return trainer.accelerator.gather(one).min().item()  # pyright: ignore[reportAttributeAccessIssue]


def layout_of(trainer: Trainer, lm: PreTrainedModel) -> Layout:
    """Returns how a trainer runs a model with LoRA adapters; all layers are recomputed.

    Raises:
        InputError: no formula knows this: 8 bits, or no LoRA.
    """
    args = trainer.args
    layers = [module for module in lm.modules() if isinstance(module, LoraLayer)]
    if not layers:
        raise InputError("The memory of training without LoRA is not known.")
    if getattr(lm, "is_loaded_in_8bit", False):
        raise InputError("The memory of load_in_8bit is not known.")
    base: Precision = "float32" if lm.get_input_embeddings().weight.dtype == torch.float32 else "bfloat16"
    if getattr(lm, "is_loaded_in_4bit", False):
        quantization = getattr(lm.config, "quantization_config", None)
        base = "nf4-nested" if getattr(quantization, "bnb_4bit_use_double_quant", False) else "nf4"
    sharding: Sharding = "zero3" if is_deepspeed_zero3_enabled() else "fsdp" if trainer.is_fsdp_enabled else "ddp"
    dropout = any(getattr(each, "p", 0) > 0 for layer in layers for each in layer.lora_dropout.values())
    rank = max(rank for layer in layers for rank in layer.r.values())
    return Layout(base, sharding, args.world_size, args.bf16 or args.fp16, 1, rank).on(args.device.type, dropout)


def choice_text(every: int, without: Memory, chosen: Memory, free: float, remedy: str = LOWER) -> str:
    """Returns which layers are computed again, and why.

    Args:
        every: n, as `set_recomputation` takes it.
        without, chosen: memory of a step without recomputation, and as chosen.
        free: bytes.
        remedy: if even the choice does not fit.
    """
    if not every:
        activations = gigabytes(max(terms.get("activations", 0) for terms in without.phases.values()))
        return (
            f"nothing is computed again in backward. A step takes {gigabytes(without.peak)} of {gigabytes(free)} GB by "
            f"estimate, {activations} of them activations"
        )
    layers = "all layers are" if every == 1 else f"one of {every} layers is"
    text = (
        f"{layers} computed again in backward. By estimate a step takes {gigabytes(chosen.peak)} of {gigabytes(free)} "
        f"GB, and without it {gigabytes(without.peak)}"
    )
    return text if fits(chosen, free) else f"{text}. If the memory is used up, {remedy}"
