"""Several LoRA adapters in one pass: each computes its share of the rows; the products with the base are shared.

One pass for each adapter would read the frozen weights again, for smaller products, which are slower per row. PEFT's
own layer also scales and adds the LoRA product in two more passes over memory; here the product includes both.
"""

from collections.abc import Sequence
from typing import Any

import torch
from peft.tuners.lora import Linear as LoraLinear
from torch import Tensor, nn


def can_batch_adapters(layers: Sequence[object], names: Sequence[str]) -> bool:
    """True if each layer is W x + b + s B A x for all `names`, without dropout, with A of equal shapes."""
    return all(_can_batch(layer, names) for layer in layers)


def lora_factors(layer: LoraLinear, names: Sequence[str], leaves: bool) -> tuple[list[Any], list[Any], list[float]]:
    """A, B and s of each adapter in `names`.

    Args:
        leaves: frozen weights come as parameters that require gradients and share their memory. torch.compile then has
            one graph for trained and frozen adapters.
    """
    low_factors: list[Any] = [layer.lora_A[name].weight for name in names]
    factors: list[Any] = [layer.lora_B[name].weight for name in names]
    if leaves:
        low_factors, factors = (
            [w if w.requires_grad else nn.Parameter(w.detach()) for w in weights] for weights in (low_factors, factors)
        )
    return low_factors, factors, [layer.scaling[name] for name in names]


def mixed_lora_forward(layer: Any, x: Tensor) -> Tensor:
    """Computes `layer(x)` with the first of `layer.factors` on the first b rows, the second on the next b, and so on.

    Args:
        layer: LoRA layer whose attribute `factors` comes from `lora_factors`.
        x: [R b, ..., in], R the number of adapters.

    Returns:
        [R b, ..., out], in the dtype of the base's product.
    """
    low_factors, factors, scales = layer.factors
    a, b = torch.stack(low_factors), torch.stack(factors)  # [R, r, in], [R, out, r]
    rows = x.reshape(len(a), -1, x.shape[-1])  # [R, N, in]
    product = layer.base_layer(rows)  # [R, N, out]
    scale = scales[0]
    if any(other != scale for other in scales):  # baddbmm below takes only one scale
        b, scale = torch.stack([factor * s for factor, s in zip(factors, scales, strict=True)]), 1
    if torch.compiler.is_compiling():  # which fuses the sum with what follows; baddbmm would copy `product` first
        out = product + torch.bmm(
            torch.bmm(rows.to(product.dtype), a.to(product.dtype).mT), (b * scale).to(product.dtype).mT
        )
        return out.reshape(*x.shape[:-1], out.shape[-1])
    out = product
    if not torch.is_autocast_enabled(x.device.type):  # autocast casts the products below itself
        rows, out = rows.to(a.dtype), product.to(a.dtype)
    low_rank = torch.bmm(rows, a.mT)  # [R, N, r]
    return torch.baddbmm(out, low_rank, b.mT, alpha=scale).to(product.dtype).reshape(*x.shape[:-1], -1)


def is_plain_lora(layer: LoraLinear, name: str) -> bool:
    """True if adapter `name` adds s B A x to the base's output, with nothing else but dropout."""
    return (
        not layer.merged
        and name in layer.lora_A
        and name not in layer.lora_variant
        and layer.lora_A[name].bias is None
        and layer.lora_B[name].bias is None
    )


def _can_batch(layer: object, names: Sequence[str]) -> bool:
    return (
        type(layer) is LoraLinear
        and "forward" not in vars(layer)  # a hook of another library
        and all(is_plain_lora(layer, name) for name in names)
        and not any(getattr(layer.lora_dropout[name], "p", 0.0) for name in names)
        and len({layer.lora_A[name].weight.shape for name in names}) == 1
    )
