"""The functions of returns.py applied to a rollout: rewards, GAE, whitening."""

from collections.abc import Callable

import torch
from torch import Tensor

from rlhf.ppo.config import PPOConfig
from rlhf.ppo.returns import gae, moments, token_rewards, whiten
from rlhf.ppo.rollout import MicroBatch


def add_advantages(
    batches: list[MicroBatch], args: PPOConfig, kl_coef: float, reduce: Callable[[Tensor], Tensor]
) -> None:
    """Fills in `rewards`, `returns` and `advantages` of this process's micro-batches of a rollout.

    Whitening is over the response tokens of the whole rollout on all processes, so that it does not depend on how the
    rollout is cut up; `reduce` sums a tensor over the processes.
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
    """[N]: the field `name`, [B, T] in each micro-batch, at the response tokens of all of them."""
    return torch.cat([getattr(batch, name)[batch.response_mask] for batch in batches])
