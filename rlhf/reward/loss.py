"""The K-wise comparison loss (arXiv 2203.02155, section 3.5, equation 1).

A labeler ranks K completions of a prompt x, which gives C(K, 2) pairs of a preferred completion y_w and another, y_l.
With r(x, y) the score of the reward model, and E the mean over prompts of the sum over their pairs,

    loss = - 1 / C(K, 2) * E_(x, y_w, y_l) [ log sigmoid( r(x, y_w) - r(x, y_l) ) ]

so sigmoid(r_w - r_l) is the predicted probability that a labeler prefers y_w. All pairs of a prompt are one element of
the batch. Each completion passes the model once, and its score is part of K - 1 pairs. Pairs shuffled into one data set
would take C(K, 2) passes of two completions and, the paper reports, overfit within an epoch.
"""

import torch
import torch.nn.functional as F


def kwise_loss(
    scores: torch.Tensor,
    ranks: torch.Tensor,
    completions_per_prompt: torch.Tensor,
    num_prompts: torch.Tensor | int | None = None,
) -> torch.Tensor:
    """Mean over prompts of  - 1 / C(K, 2) * sum over pairs (w, l) of log sigmoid(r_w - r_l).

    A prompt counts once, however many completions were ranked. A tie gives no pair, but the denominator stays C(K, 2),
    so a prompt with ties weighs less. With K = 2 this is the pairwise loss of TRL's RewardTrainer.

    Args:
        scores: [N] scalar rewards of all completions, the K of one prompt next to each other.
        ranks: [N] integers, 0 is the best, equal is a tie; only their order within a prompt matters.
        completions_per_prompt: [B] integers, the K of each prompt; they sum to N.
        num_prompts: divisor in place of B, if the B prompts are a micro-batch or one process's share of a batch.

    Returns:
        scalar, float32.
    """
    winners, losers, prompts = ranked_pairs(ranks, completions_per_prompt)
    r = scores.float()
    pair_losses = -F.logsigmoid(r[winners] - r[losers])  # [P]
    return _mean_over_prompts(pair_losses, prompts, completions_per_prompt, num_prompts)


def center_penalty(
    scores: torch.Tensor,
    ranks: torch.Tensor,
    completions_per_prompt: torch.Tensor,
    num_prompts: torch.Tensor | int | None = None,
) -> torch.Tensor:
    """Mean over prompts of  1 / C(K, 2) * sum over pairs (w, l) of (r_w + r_l)^2  (arXiv 2312.09244, equation 2).

    TRL's `center_rewards_coefficient` multiplies it. Takes the arguments of `kwise_loss`.
    """
    winners, losers, prompts = ranked_pairs(ranks, completions_per_prompt)
    r = scores.float()
    pair_penalties = (r[winners] + r[losers]).square()  # [P]
    return _mean_over_prompts(pair_penalties, prompts, completions_per_prompt, num_prompts)


def ranked_pairs(
    ranks: torch.Tensor, completions_per_prompt: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Returns all strictly ordered pairs within each prompt.

    Args:
        ranks: [N], see `kwise_loss`.
        completions_per_prompt: [B], see `kwise_loss`.

    Returns:
        winners [P], losers [P]: positions in `ranks`; prompts [P]: index of each pair's prompt in 0..B-1.
    """
    prompts = torch.repeat_interleave(
        torch.arange(len(completions_per_prompt), device=ranks.device), completions_per_prompt
    )  # [N]
    # [N, N] booleans: N is some hundreds, so this costs nothing beside one forward pass.
    better = (prompts[:, None] == prompts[None, :]) & (ranks[:, None] < ranks[None, :])
    winners, losers = better.nonzero(as_tuple=True)
    return winners, losers, prompts[winners]


def _mean_over_prompts(
    pair_values: torch.Tensor,
    prompts: torch.Tensor,
    completions_per_prompt: torch.Tensor,
    num_prompts: torch.Tensor | int | None,
) -> torch.Tensor:
    """Mean over prompts of  1 / C(K, 2) * sum of the prompt's `pair_values` [P]; `prompts` [P] as of `ranked_pairs`."""
    k = completions_per_prompt.float()  # [B]
    weights = 2.0 / (k * (k - 1.0))  # 1 / C(K, 2)
    total = (pair_values * weights[prompts]).sum()
    return total / (len(completions_per_prompt) if num_prompts is None else num_prompts)
