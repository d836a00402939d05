"""The score of a response: reward functions, and what the configuration makes of the sum."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from rlhf.errors import InputError

RewardFunction = Callable[..., Sequence[float]]


def function_scores(
    functions: list[RewardFunction],
    weights: list[float] | None,
    prompts: list[Any],
    completions: list[str],
    **columns: list[Any],
) -> Tensor:
    """Weighted sum of Python reward functions.

    Args:
        functions: each is called as `f(prompts=..., completions=..., **columns)` and returns one float per completion.
        weights: one per function; None: all 1.
        prompts: text or messages, as in the dataset.
        completions: decoded responses without special tokens.
        columns: the dataset's other columns for these rows.

    Returns:
        [len(completions)] float32.
    """
    total = torch.zeros(len(completions))
    for function, weight in zip(functions, weights or [1.0] * len(functions), strict=True):
        scores = function(prompts=prompts, completions=completions, **columns)
        if len(scores) != len(completions):
            name = getattr(function, "__name__", type(function).__name__)
            raise InputError(f"reward function {name} gave {len(scores)} scores for {len(completions)} completions.")
        total += weight * torch.tensor([float(score) for score in scores])
    return total


def shape_scores(
    scores: Tensor,
    ended: Tensor,
    scale: float = 1.0,
    clip: float | None = None,
    missing_eos_penalty: float | None = None,
    missing_eos_reward: float | None = None,
) -> Tensor:
    """What PPO maximises besides the KL penalty.

    Scores [B] are divided by `scale`, clipped, and corrected where the response did not stop by itself (`ended` [B]
    bool is False), in this order: the correction is in units of the result.
    """
    scores = scores / scale
    if clip is not None:
        scores = scores.clamp(-clip, clip)
    if missing_eos_penalty is not None:
        scores = torch.where(ended, scores, scores - missing_eos_penalty)
    if missing_eos_reward is not None:
        scores = torch.where(ended, scores, torch.full_like(scores, missing_eos_reward))
    return scores
