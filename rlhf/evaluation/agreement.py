"""Agreement between labelers: the paper reports 72.6 +- 1.5 % of pairs (section 3.4).

An item is a prompt with two completions. A labeler's verdict on an item is the better completion, or a tie. A ranking
of K completions holds C(K, 2) verdicts.
"""

from collections.abc import Iterable
from dataclasses import asdict
from itertools import combinations
from typing import Any

from rlhf.agreement import krippendorff_alpha, pairwise_agreement
from rlhf.data.encode import prompt_key

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
