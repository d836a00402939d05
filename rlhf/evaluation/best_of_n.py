"""Best of n: the one of n answers with the highest reward. The baseline for PPO that needs no training."""

import math
from collections.abc import Callable, Sequence

from rlhf.generation.completions import Completion


def best_of_n(
    sample: Callable[[int], Sequence[Completion]],
    score: Callable[[Sequence[Completion]], Sequence[float]],
    n: int,
) -> list[Completion]:
    """Returns for each prompt the completion with the highest reward, out of n; of equal ones the first.

    Only the best so far stays in memory.

    Args:
        sample: number of the round, from 0 -> one completion for each prompt.
        score: one completion for each prompt -> their rewards.
    """
    best: list[Completion] = []
    scores: list[float] = []
    for k in range(n):
        completions = list(sample(k))
        best = best or completions
        scores = scores or [-math.inf] * len(completions)
        for i, (completion, reward) in enumerate(zip(completions, score(completions), strict=True)):
            if reward > scores[i]:
                best[i], scores[i] = completion, reward
    return best


def best_of_n_kl(n: int) -> float:
    """Returns log n - (n - 1) / n: the KL of the best of n from the sampled model, in nats per response.

    Exact if no two scores are equal (Stiennon et al. 2020, arXiv 2009.01325, appendix G.3), else an upper bound
    (Beirami et al. 2024, arXiv 2401.01879).
    """
    return math.log(n) - (n - 1) / n
