"""Advantages: GAE and whitening, and their application to a rollout."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from rlhf.ppo.config import PPOConfig
from rlhf.ppo.rewards import token_rewards
from rlhf.ppo.rollout import MicroBatch
from rlhf.tensors import as_float64


def add_advantages(
    batches: list[MicroBatch], args: PPOConfig, kl_coef: float, reduce: Callable[[Tensor], Tensor]
) -> None:
    """Fills in `rewards`, `returns` and `advantages` of this process's micro-batches of a rollout.

    Whitening uses the response tokens of the whole rollout on all processes, so it does not depend on how the rollout
    is divided. `reduce` sums a tensor over the processes.
    """
    for batch in batches:
        batch.rewards = token_rewards(
            batch.shaped_scores, batch.logprobs, batch.ref_logprobs, batch.response_mask, kl_coef
        )
    if args.whiten_rewards:
        mean, variance = moments(response_tokens(batches, "rewards"), reduce)
        for batch in batches:
            batch.rewards = whiten(batch.rewards, batch.response_mask, mean, variance, shift_mean=False)
    for batch in batches:
        batch.advantages, batch.returns = gae(batch.rewards, batch.values, batch.response_mask, args.gamma, args.lam)
    if args.whiten_advantages:
        mean, variance = moments(response_tokens(batches, "advantages"), reduce)
        for batch in batches:
            batch.advantages = whiten(batch.advantages, batch.response_mask, mean, variance)


def response_tokens(batches: list[MicroBatch], name: str) -> Tensor:
    """The field `name`, [B, T] in each micro-batch, at the response tokens of all micro-batches: [N]."""
    return torch.cat([getattr(batch, name)[batch.response_mask] for batch in batches])


def gae(rewards: Tensor, values: Tensor, mask: Tensor, gamma: float, lam: float) -> tuple[Tensor, Tensor]:
    r"""Generalized advantage estimation (arXiv 1506.02438, eq. 11-16); the state after the last token has value 0.

        delta_t = r_t + gamma V_{t+1} - V_t        A_t = delta_t + gamma lambda A_{t+1}        R_t = A_t + V_t

    Args:
        rewards, values: [B, T]; `values[:, t]` is the value of the state before token t.
        mask: [B, T] bool, True on response tokens.

    Returns:
        advantages [B, T] and returns [B, T], zero outside the mask.
    """
    values = values * mask
    next_values = F.pad(values[:, 1:], (0, 1))
    advantages = (rewards + gamma * next_values - values) * mask  # the deltas
    decay = gamma * lam * mask.to(values.dtype)
    # A recurrence over T steps in log2 T: after k doublings, each advantage is the sum over the next 2^k deltas, and
    # each decay the product of as many factors. A loop over T would launch 7 T kernels.
    for reach in (2**k for k in range((values.shape[1] - 1).bit_length())):
        advantages = advantages + decay * F.pad(advantages[:, reach:], (0, reach))
        decay = decay * F.pad(decay[:, reach:], (0, reach))
    return advantages, advantages + values


def moments(values: Tensor, reduce: Callable[[Tensor], Tensor] = lambda x: x) -> tuple[Tensor, Tensor]:
    """Mean and unbiased variance over all processes, in two passes.

    Args:
        values: [N] this process's values.
        reduce: sums a tensor over the processes.
    """
    values = as_float64(values)
    count, total = reduce(torch.stack((values.new_tensor(len(values)), values.sum())))
    mean = total / count
    variance = reduce((values - mean).square().sum()) / (count - 1).clamp(min=1)
    return mean, variance


def whiten(values: Tensor, mask: Tensor, mean: Tensor, variance: Tensor, shift_mean: bool = True) -> Tensor:
    """Scales `values` [B, T] to variance 1 and, with `shift_mean`, shifts them to mean 0; zero outside the mask."""
    whitened = (values - mean) * torch.rsqrt(variance + 1e-8)
    return ((whitened if shift_mean else whitened + mean) * mask).to(values.dtype)


def explained_variance(values: Tensor, returns: Tensor, reduce: Callable[[Tensor], Tensor] = lambda x: x) -> Tensor:
    """1 - Var(returns - values) / Var(returns) over all response tokens.

    1 is perfect, 0 is as good as a constant, below 0 is worse than a constant.
    """
    _, unexplained = moments(returns - values, reduce)
    _, total = moments(returns, reduce)
    return 1 - unexplained / total
