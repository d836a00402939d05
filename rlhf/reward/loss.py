"""The K-wise comparison loss (arXiv 2203.02155, section 3.5, equation 1)."""

import torch
import torch.nn.functional as F


def kwise_loss(
    scores: torch.Tensor,
    ranks: torch.Tensor,
    completions_per_prompt: torch.Tensor,
    num_prompts: torch.Tensor | int | None = None,
) -> torch.Tensor:
    """Mean over prompts of  -1 / C(K, 2) * sum over pairs (w, l) of log sigmoid(r_w - r_l).

    All pairs of a prompt are one batch element: each completion passes the model once, and a prompt counts once however
    many completions were ranked. A tie gives no pair, yet the denominator stays the paper's C(K, 2), so that a prompt
    with ties weighs less. With K = 2 this is the pairwise loss of TRL's RewardTrainer.

    Args:
        scores: [N] scalar rewards of all completions, the K of one prompt next to each other.
        ranks: [N] integers, 0 is the best, equal is a tie; only their order within a prompt matters.
        completions_per_prompt: [B] integers, the K of each prompt; they sum to N.
        num_prompts: divisor in place of B, where the B prompts are a part of a larger batch (accumulation, ranks).

    Returns:
        scalar, float32.
    """
    winners, losers, prompts = ranked_pairs(ranks, completions_per_prompt)
    scores = scores.float()
    pair_losses = -F.logsigmoid(scores[winners] - scores[losers])  # [P]
    total = (pair_losses * pair_weights(prompts, completions_per_prompt)).sum()
    return total / (len(completions_per_prompt) if num_prompts is None else num_prompts)


def center_penalty(
    scores: torch.Tensor,
    ranks: torch.Tensor,
    completions_per_prompt: torch.Tensor,
    num_prompts: torch.Tensor | int | None = None,
) -> torch.Tensor:
    """Mean over prompts of  1 / C(K, 2) * sum over pairs of (r_w + r_l)^2  (arXiv 2312.09244, equation 2).

    What TRL's `center_rewards_coefficient` multiplies; same arguments as `kwise_loss`.
    """
    winners, losers, prompts = ranked_pairs(ranks, completions_per_prompt)
    scores = scores.float()
    total = ((scores[winners] + scores[losers]).square() * pair_weights(prompts, completions_per_prompt)).sum()
    return total / (len(completions_per_prompt) if num_prompts is None else num_prompts)


def ranked_pairs(
    ranks: torch.Tensor, completions_per_prompt: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """All strictly ordered pairs within each prompt.

    Args:
        ranks: [N], see `kwise_loss`.
        completions_per_prompt: [B], see `kwise_loss`.

    Returns:
        winners [P], losers [P]: positions in `ranks`; prompts [P]: the number in 0..B-1 of the prompt of each pair.
    """
    prompts = torch.repeat_interleave(
        torch.arange(len(completions_per_prompt), device=ranks.device), completions_per_prompt
    )  # [N]
    # [N, N] booleans: N is some hundreds, so this costs nothing beside one pass of the model.
    better = (prompts[:, None] == prompts[None, :]) & (ranks[:, None] < ranks[None, :])
    winners, losers = better.nonzero(as_tuple=True)
    return winners, losers, prompts[winners]


def pair_weights(prompts: torch.Tensor, completions_per_prompt: torch.Tensor) -> torch.Tensor:
    """1 / C(K, 2) for each pair, float32 [P]; arguments as returned by, and given to, `ranked_pairs`."""
    sizes = completions_per_prompt.float()
    return (2.0 / (sizes * (sizes - 1.0)))[prompts]
