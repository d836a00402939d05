"""Looks at the ranks of comparisons before training: ties alone, and ranks that count upwards as ratings do."""

import logging
from collections.abc import Sequence
from itertools import combinations, repeat

from datasets import Dataset

from rlhf.data.ranking import agreement

logger = logging.getLogger(__name__)
MOST_TIES = 0.9  # share of pairs


def warn_of_odd_ranks(comparisons: Dataset, name: str) -> None:
    """Warns if most pairs are ties, or if ranks disagree with the ratings that the same rows have.

    Args:
        comparisons: rows with `ranks`, and `ratings` if the source has them (higher is better).
        name: name of the source, for the messages.
    """
    pairs = ties = same = opposite = 0
    rated = comparisons["ratings"] if "ratings" in comparisons.column_names else repeat(None)
    for ranks, ratings in zip(comparisons["ranks"], rated, strict=False):
        for i, j in combinations(range(len(ranks)), 2):
            pairs += 1
            ties += ranks[i] == ranks[j]
        if ratings:
            alike, against = agreement(ranks, ratings)
            same, opposite = same + alike, opposite + against
    if pairs and ties > MOST_TIES * pairs:
        logger.warning(
            "%d of %d pairs of %s are ties, from which the reward model learns nothing; check ranks", ties, pairs, name
        )
    if opposite > same:
        logger.warning(
            "ranks of %s contradict its ratings in %d of %d pairs: rank 0 is the best; if a higher number is better, "
            "name the column ratings (--columns ratings=ranks ignore=ratings)",
            name,
            opposite,
            same + opposite,
        )


def first_ordered(ranks: Sequence[Sequence[int]]) -> int:
    """Returns the first row in which one completion is better than another; 0 if there is none."""
    return next((i for i, row in enumerate(ranks) if len(set(row)) > 1), 0)
