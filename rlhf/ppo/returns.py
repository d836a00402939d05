"""From scores to advantages: per-token rewards, GAE, whitening. Pure functions on padded [B, T] tensors."""

from collections.abc import Callable

import torch
from torch import Tensor

from rlhf.generation.random_numbers import precise


def token_rewards(scores: Tensor, logprobs: Tensor, ref_logprobs: Tensor, mask: Tensor, kl_coef: float) -> Tensor:
    r"""The reward of each response token (arXiv 2203.02155, eq. 2, per token as in section 3.5).

        r_t = -beta (log pi(y_t) - log pi_ref(y_t)) + [t is the last response token] score

    Args:
        scores: [B] score of the whole response.
        logprobs, ref_logprobs: [B, T] log-probabilities of the sampled tokens under policy and reference.
        mask: [B, T] bool, True on response tokens, which are contiguous from position 0.
        kl_coef: beta.

    Returns:
        [B, T], zero outside the mask.
    """
    rewards = -kl_coef * (logprobs - ref_logprobs) * mask
    rewards[torch.arange(len(scores)), mask.sum(1) - 1] += scores
    return rewards


def gae(rewards: Tensor, values: Tensor, mask: Tensor, gamma: float, lam: float) -> tuple[Tensor, Tensor]:
    r"""Generalised advantage estimation (arXiv 1506.02438, eq. 11-16); the state after the last token is worth 0.

        delta_t = r_t + gamma V_{t+1} - V_t        A_t = delta_t + gamma lambda A_{t+1}        R_t = A_t + V_t

    Args:
        rewards, values: [B, T]; `values[:, t]` is the value of the state in which token t was sampled.
        mask: [B, T] bool, True on response tokens.

    Returns:
        advantages [B, T] and returns [B, T], zero outside the mask.
    """
    values = values * mask
    advantages = torch.zeros_like(values)
    advantage = next_value = torch.zeros_like(values[:, 0])
    for t in reversed(range(values.shape[1])):
        delta = rewards[:, t] + gamma * next_value - values[:, t]
        advantage = (delta + gamma * lam * advantage) * mask[:, t]
        advantages[:, t] = advantage
        next_value = values[:, t]
    return advantages, advantages + values


def moments(values: Tensor, reduce: Callable[[Tensor], Tensor] = lambda x: x) -> tuple[Tensor, Tensor]:
    """Mean and unbiased variance over all processes, in two passes.

    Args:
        values: [N] this process's values.
        reduce: sums a tensor over the processes.
    """
    values = precise(values)
    count, total = reduce(torch.stack((values.new_tensor(len(values)), values.sum())))
    mean = total / count
    variance = reduce((values - mean).square().sum()) / (count - 1).clamp(min=1)
    return mean, variance


def whiten(values: Tensor, mask: Tensor, mean: Tensor, variance: Tensor, shift_mean: bool = True) -> Tensor:
    """`values` [B, T] scaled to variance 1 and, with `shift_mean`, moved to mean 0; zero outside the mask."""
    whitened = (values - mean) * torch.rsqrt(variance + 1e-8)
    return ((whitened if shift_mean else whitened + mean) * mask).to(values.dtype)


def explained_variance(values: Tensor, returns: Tensor, reduce: Callable[[Tensor], Tensor] = lambda x: x) -> Tensor:
    """1 - Var(returns - values) / Var(returns) over all response tokens; 1 is perfect, 0 a constant, below 0 worse."""
    _, unexplained = moments(returns - values, reduce)
    _, total = moments(returns, reduce)
    return 1 - unexplained / total
