"""Trained weights and scores in float32, whatever the dtype in which the model was loaded.

A bfloat16 number and the next are 2^-8 of their value apart, more than most steps of Adam: at usual learning rates only
1 % of a full model's weights would change at all.
"""

import logging
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from peft import PeftModel
from peft.utils.other import ModulesToSaveWrapper
from torch import Tensor, nn
from transformers import TrainingArguments, training_args

logger = logging.getLogger(__name__)

SIXTEEN_BITS = (torch.float16, torch.bfloat16)


def cpu_has_bf16() -> bool:
    """True if this CPU has instructions for products in bfloat16 (AVX512-BF16 or AMX); without, they take long."""
    names = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    return any(getattr(torch.cpu, name, lambda: False)() for name in names)


@contextmanager
def bf16_on_cpu(args: TrainingArguments) -> Iterator[None]:
    """Context around transformers' `__post_init__`, in which `bf16: true` passes on a CPU that has it.

    Without an accelerator transformers refuses it, unless `use_cpu` says that the CPU is meant. Outside of the context
    the options are as before, so that the run's config.yaml does not keep it from a GPU. Where `bf16` is only a
    default, or the CPU would be slow, transformers still refuses.
    """
    no_gpu = not torch.accelerator.is_available() and not training_args.is_torch_bf16_gpu_available()
    lifted = args.bf16 is True and no_gpu and cpu_has_bf16()
    before = args.use_cpu, args.dataloader_pin_memory
    args.use_cpu = args.use_cpu or lifted
    yield
    if lifted:
        args.use_cpu, args.dataloader_pin_memory = before


def computing_dtype(args: TrainingArguments, dtype: torch.dtype) -> torch.dtype:
    """Returns the dtype in which a Trainer computes with weights of `dtype`."""
    return torch.bfloat16 if args.bf16 else torch.float16 if args.fp16 else dtype


def float_trained_weights(model: nn.Module) -> bool:
    """Casts the trained weights to float32: adapters and the modules that they train in full, or a full model.

    A full model is cast as a whole, so that it computes in float32, or in bf16 where the trainer's `bf16` autocasts.
    Frozen weights below an adapter keep their dtype.

    Returns:
        True if a full model was cast.
    """
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if not any(parameter.dtype in SIXTEEN_BITS and not _is_partitioned(parameter) for parameter in trained):
        return False
    if not isinstance(model, PeftModel):
        logger.warning("the weights of %s are trained in float32, not in 16 bits", type(model).__name__)
        for tensor in (*model.parameters(), *model.buffers()):
            if tensor.dtype in SIXTEEN_BITS and not _is_partitioned(tensor):
                tensor.data = tensor.data.float()
        return True
    for name, module in model.named_modules():
        if isinstance(module, ModulesToSaveWrapper):
            for copied in module.modules_to_save.values():
                _float_module(copied, rounds=not name.endswith("score"))
    for parameter in trained:
        if parameter.dtype in SIXTEEN_BITS and not _is_partitioned(parameter):
            parameter.data = parameter.data.float()
    return False


def _float_module(module: nn.Module, rounds: bool) -> None:
    """Casts a trained module to float32 inside of a 16-bit model: its inputs are cast, too.

    Args:
        rounds: its outputs are cast back to 16 bits, for the layers that follow.
    """
    parameter = next((p for p in module.parameters() if p.requires_grad and p.dtype in SIXTEEN_BITS), None)
    if parameter is None or _is_partitioned(parameter):
        return
    dtype = parameter.dtype
    module.float()
    cast_inputs(module)
    if rounds:
        module.register_forward_hook(lambda module, args, output: output.to(dtype))


def cast_inputs(module: nn.Module) -> None:
    """Makes `module` cast floating-point inputs to its own dtype, which FSDP and DeepSpeed may change later."""

    def cast(module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        dtype = next(module.parameters()).dtype
        return tuple(x.to(dtype) if x.is_floating_point() else x for x in args)

    module.register_forward_pre_hook(cast)


def float_head(model: nn.Module) -> None:
    """Makes the head `score` of a sequence classifier float32, trained or frozen, and cast its inputs."""
    head = model.get_submodule("score")
    head.float()
    cast_inputs(head)


@contextmanager
def trained_weights_kept(model: object) -> Iterator[None]:
    """Context around TRL's constructors, which round the adapter of a PEFT model on a quantized base to bf16."""
    trained = []
    if isinstance(model, PeftModel):
        trained = [(p, p.detach().clone()) for p in model.parameters() if p.requires_grad and not _is_partitioned(p)]
    yield
    for parameter, before in trained:
        if parameter.dtype != before.dtype:
            parameter.data = before


def _is_partitioned(tensor: Tensor) -> bool:
    """True for a placeholder of DeepSpeed's ZeRO-3, which keeps float32 weights itself."""
    return hasattr(tensor, "ds_id")
