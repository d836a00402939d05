"""Random numbers as functions of a key alone, and sampling with one of them per token."""

import hashlib

import torch
from torch import Tensor


def random_generator(*key: int | str) -> torch.Generator:
    """A generator of its own for each key, e.g. ("prompts", seed, epoch)."""
    digest = hashlib.sha256(repr(key).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)


def sampling_noise(size: int, length: int, *key: int | str) -> Tensor:
    """[size, length] float64, uniform in [0, 1): one number for each token that may be sampled."""
    return torch.rand(size, length, generator=random_generator("noise", *key), dtype=torch.float64)


def inverse_cdf(logits: Tensor, noise: Tensor, temperature: float) -> Tensor:
    """Samples from softmax(logits / temperature): the first i with cdf_i > u.

    Unlike with torch.multinomial, what an episode gets does not depend on which others are in its batch.

    Args:
        logits: [B, V].
        noise: [B] float64, the u.

    Returns:
        ids [B].
    """
    scaled = logits.float() / temperature
    weights = (scaled - scaled.amax(-1, keepdim=True)).exp_()
    cdf = precise(weights).cumsum(-1)
    choice = torch.searchsorted(cdf, noise[:, None] * cdf[:, -1:], right=True)
    return choice.squeeze(1).clamp(max=logits.shape[-1] - 1)


def precise(tensor: Tensor) -> Tensor:
    """As float64, where the device has it; Apple's has not."""
    return tensor.float() if tensor.device.type == "mps" else tensor.double()
