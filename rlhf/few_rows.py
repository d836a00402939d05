"""Matrix products of a few rows in float32 on a CPU, which is what decoding a token is."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import torch
from peft.tuners.lora import Linear as LoraLinear
from torch import Tensor, nn

from rlhf.side_by_side import is_plain_lora

# Up to here the other order of the factors took 0.7 to 0.9 of the time, for most shapes of few rows much less.
ROWS = 64


@contextmanager
def few_rows(lm: nn.Module) -> Iterator[None]:
    """Context without gradients in which linear layers, and LoRA around them, are quick on a few rows.

    x W^T of few rows reads all of W for little arithmetic. Asked for (W x^T)^T instead, MKL is mostly quicker (an AMD
    EPYC, 8 rows, unembedding of 49,152 x 576: 7.2 ms and not 18.5; but 576 x 1,536: 0.42 and not 0.38), and the LoRA
    product is added in place. Layers in other precisions, quantised or on other devices stay as they are.
    """
    modules = () if torch.is_autocast_enabled("cpu") else lm.modules()
    changed = [(module, way) for module in modules if (way := quick_way(module))]
    for module, way in changed:
        module.forward = partial(way, module, module.forward)
    try:
        yield
    finally:
        for module, _ in changed:
            del module.forward


def quick_way(module: nn.Module):
    """The function that can stand in for `module.forward`, if there is one."""
    if "forward" in vars(module):  # another library's hook
        return None
    if type(module) is nn.Linear and plain(module.weight):
        return quick_linear
    if type(module) is LoraLinear and type(module.base_layer) is nn.Linear and plain_lora(module):
        return quick_lora
    return None


def plain(weight: Tensor) -> bool:
    return weight.device.type == "cpu" and weight.dtype == torch.float32


def plain_lora(module: LoraLinear) -> bool:
    """Whether the layer is W x + b + s B A x of a single adapter and nothing else."""
    active = active_adapters(module)
    return (
        len(active) == 1
        and not module.disable_adapters
        and is_plain_lora(module, active[0])
        and plain(module.base_layer.weight)
        and all(plain(m[active[0]].weight) for m in (module.lora_A, module.lora_B))
    )


def active_adapters(module: LoraLinear) -> list[str]:
    """Those of the active adapters that this layer has."""
    return [name for name in module.active_adapters if name in module.lora_A]


def quick_linear(module: nn.Linear, forward, x: Tensor) -> Tensor:
    """`module(x)`: x [..., in] -> [..., out]."""
    if x.numel() > ROWS * x.shape[-1]:
        return forward(x)
    return from_columns(times(module, columns(x)), x)


def quick_lora(module: LoraLinear, forward, x: Tensor) -> Tensor:
    """`module(x)` without dropout: x [..., in] -> [..., out]."""
    if x.numel() > ROWS * x.shape[-1]:
        return forward(x)
    [name], x_columns = active_adapters(module), columns(x)
    a, b = module.lora_A[name].weight, module.lora_B[name].weight
    out = times(module.base_layer, x_columns)
    return from_columns(out.addmm_(b, a @ x_columns, alpha=module.scaling[name]), x)


def columns(x: Tensor) -> Tensor:
    """[..., in] -> [in, rows], of two rows at least: for a single one MKL takes as long as for eight."""
    rows = x.reshape(-1, x.shape[-1]).contiguous()
    return (rows if len(rows) > 1 else rows.repeat(2, 1)).t()


def times(module: nn.Linear, x: Tensor) -> Tensor:
    """W x + b for columns x [in, rows]: [out, rows]."""
    return module.weight @ x if module.bias is None else torch.addmm(module.bias[:, None], module.weight, x)


def from_columns(out: Tensor, x: Tensor) -> Tensor:
    """[out, rows] -> [..., out], rows as in x."""
    return out[:, : x.numel() // x.shape[-1]].t().reshape(*x.shape[:-1], -1)
