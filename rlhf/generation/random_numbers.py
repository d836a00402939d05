"""Random numbers as functions of a key alone, and sampling with one of them per token."""

import hashlib
import math

import torch
from torch import Tensor
from torch.nn import functional as F

from rlhf.tensors import as_float64


def random_generator(*key: int | str) -> torch.Generator:
    """A generator of its own for each key, e.g. ("prompts", seed, epoch)."""
    digest = hashlib.sha256(repr(key).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)


def sampling_uniforms(size: int, length: int, *key: int | str) -> Tensor:
    """[size, length] float64, uniform in [0, 1): one number for each token that may be sampled."""
    return torch.rand(size, length, generator=random_generator("noise", *key), dtype=torch.float64)


def inverse_cdf(logits: Tensor, uniforms: Tensor, temperature: float) -> Tensor:
    """Samples from softmax(logits / temperature): the first i with cdf_i > u.

    Unlike with torch.multinomial, what an episode gets does not depend on which others are in its batch.

    Args:
        logits: [B, V].
        uniforms: [B] float64, the u.

    Returns:
        ids [B].
    """
    scaled = logits.float() if temperature == 1 else logits.float() / temperature
    weights = (scaled - scaled.amax(-1, keepdim=True)).exp_()
    # Blocks of about sqrt(V) tokens first, then one within the block: two short cumulative sums instead of a long one.
    width = math.isqrt(weights.shape[-1])
    blocks = F.pad(weights, (0, -weights.shape[-1] % width)).unflatten(-1, (-1, width))  # [B, V / width, width]
    block, rest = pick(blocks.sum(-1), uniforms)
    index, _ = pick(blocks[torch.arange(len(blocks), device=blocks.device), block], rest)
    return block * width + index


def pick(weights: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
    """The first i whose cumulative weight [B, n] exceeds the share u [B] of the whole, and how far u is into it [B].

    A weight of 0 is never picked.
    """
    weights = as_float64(weights)
    cdf = weights.cumsum(-1)
    total = cdf[:, -1]
    target = torch.minimum(u * total, torch.nextafter(total, torch.zeros_like(total)))[:, None]
    index = torch.searchsorted(cdf, target, right=True)
    weight = weights.gather(1, index)
    return index.squeeze(1), ((target - (cdf.gather(1, index) - weight)) / weight).clamp(0, 1).squeeze(1)
