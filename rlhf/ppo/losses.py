"""The clipped losses of PPO (arXiv 1707.06347), per token; the caller averages them over the minibatch.

Equation 2 of InstructGPT is these losses on the rewards of `rewards.token_rewards`, plus the loss of ptx.py.
"""

import torch
from torch import Tensor


def policy_loss(logprobs: Tensor, old_logprobs: Tensor, advantages: Tensor, cliprange: float) -> tuple[Tensor, Tensor]:
    r"""Clipped surrogate (arXiv 1707.06347, eq. 7), as a loss.

        ratio = pi(y_t) / pi_old(y_t)        L_t = max(-A_t ratio, -A_t clip(ratio, 1 - eps, 1 + eps))

    Returns:
        L [B, T] and ratio [B, T].
    """
    ratio = torch.exp(logprobs - old_logprobs)
    clipped = ratio.clamp(1 - cliprange, 1 + cliprange)
    return torch.maximum(-advantages * ratio, -advantages * clipped), ratio


def value_loss(values: Tensor, old_values: Tensor, returns: Tensor, cliprange: float) -> Tensor:
    r"""Squared error of the values [B, T] with a clipped change (OpenAI baselines).

    L_t = 1/2 max((V_t - R_t)^2, (V_old + clip(V_t - V_old, -eps, eps) - R_t)^2)
    """
    clipped = old_values + (values - old_values).clamp(-cliprange, cliprange)
    return 0.5 * torch.maximum((values - returns).square(), (clipped - returns).square())
