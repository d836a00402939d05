"""Random numbers that depend on a key alone, and sampling with one of them per token."""

import hashlib
import math

import torch
from torch import Tensor
from torch.nn import functional as F

from rlhf.tensors import as_float64


def random_generator(*key: int | str) -> torch.Generator:
    """A separate generator for each key, e.g. ("prompts", seed, epoch)."""
    digest = hashlib.sha256(repr(key).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)


def sampling_uniforms(size: int, length: int, *key: int | str) -> Tensor:
    """[size, length] float64, uniform in [0, 1): one number for each token that may be sampled."""
    # "noise" is a part of the key: another word would change the random numbers of every run.
    return torch.rand(size, length, generator=random_generator("noise", *key), dtype=torch.float64)


def inverse_cdf(logits: Tensor, uniforms: Tensor, temperature: float) -> Tensor:
    """Samples from softmax(logits / temperature): the first i with cdf_i > u.

    Unlike with torch.multinomial, a sample does not depend on the other rows of its batch.

    Args:
        logits: [B, V].
        uniforms: [B] float64, the u.

    Returns:
        ids [B].
    """
    scaled = logits.float() if temperature == 1 else logits.float() / temperature
    weights = (scaled - scaled.amax(-1, keepdim=True)).exp_()
    # First a block of about sqrt(V) tokens, then a token of the block: two short cumulative sums, not a long one.
    width = math.isqrt(weights.shape[-1])
    blocks = F.pad(weights, (0, -weights.shape[-1] % width)).unflatten(-1, (-1, width))  # [B, V / width, width]
    block, remainder = search_cdf(blocks.sum(-1), uniforms)
    index, _ = search_cdf(blocks[torch.arange(len(blocks), device=blocks.device), block], remainder)
    return (block * width + index).clamp(max=logits.shape[-1] - 1)  # of logits that are NaN, see `search_cdf`


def search_cdf(weights: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
    """Inverts the cumulative distribution of unnormalized `weights` [B, n] at `u` [B] in [0, 1).

    Returns:
        The first index [B] with cdf > u, whose weight is never 0, and the position [B] in [0, 1] of u within it.
    """
    weights = as_float64(weights)
    cdf = weights.cumsum(-1)
    total = cdf[:, -1]
    target = torch.minimum(u * total, torch.nextafter(total, torch.zeros_like(total)))[:, None]
    index = torch.searchsorted(cdf, target, right=True)
    index = index.clamp(max=weights.shape[-1] - 1)  # of weights that are NaN, which the guards of a rollout report
    weight = weights.gather(1, index)
    return index.squeeze(1), ((target - (cdf.gather(1, index) - weight)) / weight).clamp(0, 1).squeeze(1)
