"""Agreement between people: the share of equal verdicts (section 3.4 of the paper) and Krippendorff's alpha.

An item is a pair of completions. A labeler's verdict is 1 if the first is better, -1 if the second is, 0 for a tie.
"""

from collections.abc import Mapping
from itertools import combinations
from typing import Any

import numpy as np

from rlhf.errors import InputError
from rlhf.statistics import Estimate, cluster_share

Items = Mapping[tuple[Any, Any, Any], Mapping[str, int]]  # (prompt, completion a, completion b) -> labeler -> verdict


def pairwise_agreement(items: Items) -> Estimate | None:
    """Returns the share of equal verdicts among all pairs of labelers on the same item.

    None if no item has two labelers. The interval is clustered by prompt, because verdicts on one prompt are dependent.
    """
    equal, prompts = [], []
    for (prompt, _, _), by_labeler in items.items():
        for one, other in combinations(by_labeler.values(), 2):
            equal.append(float(one == other))
            prompts.append(prompt)
    return cluster_share(equal, prompts) if equal else None


def krippendorff_alpha(items: Items) -> float | None:
    """Returns the agreement beyond chance: 1 - observed / expected disagreement, for three unordered categories.

    1 is perfect agreement, 0 is agreement by chance. None if no item has two labelers, or if all verdicts are equal.

    Raises:
        InputError: the package `krippendorff` is not installed.
    """
    shared = [by_labeler for by_labeler in items.values() if len(by_labeler) >= 2]
    labelers = sorted({labeler for by_labeler in shared for labeler in by_labeler})
    return nominal_alpha(np.array([[by_labeler.get(labeler, np.nan) for by_labeler in shared] for labeler in labelers]))


def nominal_alpha(table: np.ndarray) -> float | None:
    """Returns Krippendorff's alpha for unordered categories; None if fewer than two of them occur.

    Args:
        table: [labelers, items] categories; NaN where a labeler did not judge an item.

    Raises:
        InputError: the package `krippendorff` is not installed.
    """
    if len(np.unique(table[~np.isnan(table)])) < 2:
        return None
    try:
        import krippendorff
    except ImportError as error:
        raise InputError(
            "Krippendorff's alpha needs the package krippendorff. Run pip install 'instruct-rlhf[eval]'."
        ) from error
    return float(krippendorff.alpha(reliability_data=table, level_of_measurement="nominal"))
