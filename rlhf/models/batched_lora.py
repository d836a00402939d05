"""Several LoRA adapters in one pass: each answers its part of the rows, and the base's products are made once for all.

Two passes of one adapter each read the frozen weights twice, for products half as large, which are slower a row. And
PEFT's own layer scales and adds LoRA's product in two passes over memory of their own, here the product does both.
"""

from collections.abc import Sequence

import torch
from peft.tuners.lora import Linear as LoraLinear
from torch import Tensor, nn


def can_batch_adapters(layers: Sequence[nn.Module], names: Sequence[str]) -> bool:
    """Whether each of PEFT's layers is W x + b + s B A x, without dropout, for all `names`, with A of equal shapes."""
    return all(_is_plain(layer, names) for layer in layers)


def mixed_lora_forward(layer: LoraLinear, names: Sequence[str], x: Tensor) -> Tensor:
    """What `layer(x)` is if the first rows pass as adapter names[0], as many next ones as names[1], and so on.

    Args:
        x: [R b, ..., in], R the number of names.

    Returns:
        [R b, ..., out], in the dtype of the base's product.
    """
    a = torch.stack([layer.lora_A[name].weight for name in names])  # [R, r, in]
    factors, (scale, *others) = [layer.lora_B[name].weight for name in names], [layer.scaling[name] for name in names]
    if any(other != scale for other in others):  # else the product scales
        factors, scale = [factor * s for factor, s in zip(factors, (scale, *others), strict=True)], 1
    b = torch.stack(factors)  # [R, out, r]
    rows = x.reshape(len(names), -1, x.shape[-1])  # [R, N, in]
    product = layer.base_layer(rows)  # [R, N, out]
    out = product
    if not torch.is_autocast_enabled(x.device.type):  # else the products below would cast them back
        rows, out = rows.to(a.dtype), product.to(a.dtype)
    low = torch.bmm(rows, a.mT)  # [R, N, r]
    return torch.baddbmm(out, low, b.mT, alpha=scale).to(product.dtype).reshape(*x.shape[:-1], -1)


def is_plain_lora(layer: LoraLinear, name: str) -> bool:
    """Whether adapter `name` adds s B A x to what `layer` computes, and nothing else but dropout."""
    return (
        not layer.merged
        and name in layer.lora_A
        and name not in layer.lora_variant
        and layer.lora_A[name].bias is None
        and layer.lora_B[name].bias is None
    )


def _is_plain(layer: nn.Module, names: Sequence[str]) -> bool:
    return (
        type(layer) is LoraLinear
        and "forward" not in vars(layer)  # another library's hook
        and all(is_plain_lora(layer, name) for name in names)
        and not any(getattr(layer.lora_dropout[name], "p", 0.0) for name in names)
        and len({layer.lora_A[name].weight.shape for name in names}) == 1
    )
