"""Agreement between labelers: the paper reports 72.6 +- 1.5 % of pairs (section 3.4).

An item is a prompt with two completions. A labeler's verdict on an item is the better completion, or a tie. A ranking
of K completions holds C(K, 2) verdicts.
"""

from collections.abc import Iterable
from dataclasses import asdict
from itertools import combinations
from typing import Any

import numpy as np

from rlhf.data.encode import prompt_key
from rlhf.errors import InputError
from rlhf.statistics import Estimate, cluster_share

Verdicts = dict[tuple[str, str, str], dict[str, int]]  # (prompt, completion a < completion b) -> labeler -> verdict


def verdicts(comparisons: Iterable[dict[str, Any]]) -> Verdicts:
    """Returns item -> labeler -> 1 if a is better, -1 if b is better, 0 for a tie.

    If a labeler judged an item more than once, the first verdict counts.

    Args:
        comparisons: rows with `prompt`, `completions`, `ranks` and `labeler_id`. Rows without a labeler are ignored.
    """
    items: Verdicts = {}
    for row in comparisons:
        if row.get("labeler_id") is None:
            continue
        ranked = sorted(zip(row["completions"], row["ranks"], strict=True))
        for (a, rank_a), (b, rank_b) in combinations(ranked, 2):
            if a != b:
                verdict = (rank_a < rank_b) - (rank_a > rank_b)
                items.setdefault((prompt_key(row["prompt"]), a, b), {}).setdefault(row["labeler_id"], verdict)
    return items


def pairwise_agreement(items: Verdicts) -> Estimate | None:
    """Returns the share of equal verdicts among all pairs of labelers on the same item.

    None if no item has two labelers. The interval is clustered by prompt, because verdicts on one prompt are dependent.
    """
    equal, prompts = [], []
    for (prompt, _, _), by_labeler in items.items():
        for one, other in combinations(by_labeler.values(), 2):
            equal.append(float(one == other))
            prompts.append(prompt)
    return cluster_share(equal, prompts) if equal else None


def krippendorff_alpha(items: Verdicts) -> float | None:
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


def agreement_report(comparisons: Iterable[dict[str, Any]]) -> dict[str, Any]:
    """Returns both measures of agreement, and the numbers of labelers and items."""
    items = verdicts(comparisons)
    shared = [by_labeler for by_labeler in items.values() if len(by_labeler) >= 2]
    agreement = pairwise_agreement(items)
    return {
        "labelers": len({labeler for by_labeler in items.values() for labeler in by_labeler}),
        "items": len(items),
        "items_with_two_labelers": len(shared),
        "pairwise_agreement": None if agreement is None else asdict(agreement),
        "krippendorff_alpha": krippendorff_alpha(items),
    }
