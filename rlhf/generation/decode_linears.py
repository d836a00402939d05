"""Fast linear layers for the few rows of a decoding step: packed weights on a CPU, and LoRA in three kernels."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache, partial
from typing import cast

import torch
from peft.tuners.lora import Linear as LoraLinear
from torch import Tensor, nn
from torch.nn import functional as F

from rlhf.models.batched_lora import is_plain_lora
from rlhf.runs.machine_memory import free_memory

Linear = Callable[[Tensor], Tensor]  # [..., in] -> [..., out]

# Packing float32 weights takes as long as about ten steps: a person who waits for one answer gets it sooner without.
PACKED_ROWS = 8
PACKED_SHARE = 0.5  # of the free memory, at most
# Up to this many rows, the transposed product took 70-90 % of the time, and far less for most small batches.
COLUMN_ROWS = 64


@contextmanager
def fast_decode_linears(lm: nn.Module, rows: int) -> Iterator[None]:
    """Context in which linear layers of `lm` are fast on a few rows; for passes without gradients or weight updates.

    On a CPU, x W^T on a few rows reads all of W for little arithmetic, and for each product the library first copies W
    into the order in which its kernel reads it. Here this copy is made once, if memory allows (`packed_linear`).

    LoRA on a plain linear layer takes three kernels instead of about nine: A and B are cast once to the
    `compute_dtype` of the base, B includes the scale, and their product is added in place.

    Quantized layers, and layers in other dtypes than float32 and bfloat16 on a CPU, do not change. `lm` must not be
    sharded.

    Args:
        rows: sequences that are decoded together.
    """
    changed = list(fast_forwards(lm, rows, can_pack(lm)))
    for module, forward in changed:
        module.forward = forward
    try:
        yield
    finally:
        for module, _ in changed:
            del module.forward


def fast_forwards(module: nn.Module, rows: int, may_pack: bool) -> Iterator[tuple[nn.Module, Linear]]:
    """Yields the layers in `module` that have a faster forward, and this forward."""
    forward = fast_forward(module, rows, may_pack)
    if forward:
        yield module, forward
    elif isinstance(module, LoraLinear):
        yield from fast_forwards(module.base_layer, rows, may_pack)
    else:
        for child in module.children():
            yield from fast_forwards(child, rows, may_pack)


def fast_forward(module: nn.Module, rows: int, may_pack: bool) -> Linear | None:
    """A faster replacement of `module.forward`, or None."""
    lora = active_lora(module) if type(module) is LoraLinear and has_one_plain_adapter(module) else None
    linear = module.base_layer if lora else module
    if type(linear) is not nn.Linear or {"forward"} & (vars(module).keys() | vars(linear).keys()):  # a hook of others
        return None
    device, dtype = linear.weight.device.type, compute_dtype(linear.weight)
    if device == "cuda":
        return plain_lora(linear, *lora, dtype) if lora else None
    if device != "cpu" or dtype not in (torch.float32, torch.bfloat16):
        return None
    if may_pack and (rows >= PACKED_ROWS or dtype == torch.bfloat16):
        return packed_lora(linear, *lora, dtype) if lora else packed_linear(linear.weight, linear.bias, dtype)
    if dtype != torch.float32:
        return None
    columns = partial(column_linear, linear)
    return plain_lora(columns, *lora, dtype) if lora else columns


# ---- A CPU, with packed weights


def can_pack(lm: nn.Module) -> bool:
    """True if there are linear layers on this CPU, oneDNN packs weights there, and the packed ones fit into memory."""
    linears = [module for module in lm.modules() if type(module) is nn.Linear and module.weight.device.type == "cpu"]
    dtypes = {compute_dtype(linear.weight) for linear in linears} & {torch.float32, torch.bfloat16}
    size = sum(linear.weight.numel() * compute_dtype(linear.weight).itemsize for linear in linears)
    packs = bool(dtypes) and all(map(packs_correctly, dtypes))
    return packs and size <= PACKED_SHARE * free_memory(torch.device("cpu"))


@cache
def packs_correctly(dtype: torch.dtype) -> bool:
    """Tries a small layer; oneDNN has packed products for some CPUs only, and bfloat16 for fewer."""
    generator = torch.Generator().manual_seed(0)
    weight, bias, x = (torch.randn(size, generator=generator) for size in ((24, 16), (24,), (8, 16)))
    try:
        out = packed_linear(weight, bias, dtype)(x)
    except (RuntimeError, AttributeError):  # other CPUs; a torch without the operator, or without oneDNN
        return False
    right = F.linear(x, weight, bias)
    return bool((out - right).norm() < 0.02 * right.norm()) and out.dtype == dtype


def packed_linear(weight: Tensor, bias: Tensor | None, dtype: torch.dtype) -> Linear:
    """A linear layer with a copy of `weight` in the order in which oneDNN's kernel reads it, in `dtype`.

    AMD EPYC, 2 cores: 16 rows through an unembedding of 49,152 x 256 take 3.1 ms instead of 11.4 by `column_linear`,
    and in bfloat16 1.3 instead of 3.4; through 1,536 x 576, 0.22 instead of 0.55, and 0.15 instead of 0.25.
    """
    packed = torch.ops.mkldnn._reorder_linear_weight(weight.detach().to(dtype).contiguous())
    bias = None if bias is None else bias.to(dtype)

    def forward(x: Tensor) -> Tensor:
        return torch.ops.mkldnn._linear_pointwise(x.to(dtype), packed, bias, "none", [], "")

    return forward


def packed_lora(base: nn.Linear, a: Tensor, b: Tensor, scale: float, dtype: torch.dtype) -> Linear:
    """As `plain_lora`, with W x and A x in one product: [W; A] x."""
    (size, r), b = b.shape, (b * scale).to(dtype)
    bias = None if base.bias is None else F.pad(base.bias, (0, r))
    both = packed_linear(torch.cat([base.weight.to(dtype), a.to(dtype)]), bias, dtype)

    def forward(x: Tensor) -> Tensor:
        out, low_rank = both(x).split([size, r], -1)
        out.flatten(0, -2).addmm_(low_rank.flatten(0, -2), b.t())  # in place: flatten returns a view
        return out

    return forward


# ---- A CPU without them, and LoRA on a GPU


def column_linear(module: nn.Linear, x: Tensor) -> Tensor:
    """`module(x)` as (W x^T)^T: x [..., in] -> [..., out], float32.

    With at least two rows, because MKL takes as long for one row as for eight. The result is contiguous, as the output
    of a linear layer is: DeepSeek's rotary embedding views it as complex numbers.
    """
    rows = x.reshape(-1, x.shape[-1])
    if len(rows) > COLUMN_ROWS:
        return F.linear(x, module.weight, module.bias)
    columns = (rows if len(rows) > 1 else rows.repeat(2, 1)).contiguous().t()
    out = module.weight @ columns if module.bias is None else torch.addmm(module.bias[:, None], module.weight, columns)
    return out[:, : len(rows)].t().contiguous().view(*x.shape[:-1], -1)


def plain_lora(linear: Linear, a: Tensor, b: Tensor, scale: float, dtype: torch.dtype) -> Linear:
    """The forward of a LoRA layer, without dropout, whose base layer is `linear` and computes in `dtype`.

    Args:
        linear: its output must be its own memory, contiguous.
        a, b: [r, in], [out, r].
    """
    a, b = a.to(dtype), (b * scale).to(dtype)

    def forward(x: Tensor) -> Tensor:
        out = linear(x)
        low_rank = F.linear(x.to(dtype), a).flatten(0, -2)
        out.flatten(0, -2).addmm_(low_rank, b.t())  # in place: flatten returns a view
        return out

    return forward


# ---- Layers


def has_one_plain_adapter(module: LoraLinear) -> bool:
    """True if the layer computes W x + b + s B A x with a single adapter."""
    active = active_adapters(module)
    return len(active) == 1 and not module.disable_adapters and is_plain_lora(module, active[0])


def active_lora(module: LoraLinear) -> tuple[Tensor, Tensor, float]:
    """A [r, in], B [out, r] and s of the one active adapter."""
    [name] = active_adapters(module)
    a, b = cast(nn.Linear, module.lora_A[name]), cast(nn.Linear, module.lora_B[name])
    return a.weight, b.weight, module.scaling[name]


def active_adapters(module: LoraLinear) -> list[str]:
    """Names of the active adapters that this layer has."""
    return [name for name in module.active_adapters if name in module.lora_A]


def compute_dtype(x: Tensor) -> torch.dtype:
    """The dtype of products with `x`: that of autocast if it is on, else that of x."""
    device = x.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype
