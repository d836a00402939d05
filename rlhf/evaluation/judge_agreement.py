"""Agreement of two judges on the same pairs of answers.

A verdict is a win of the first answer, a win of the second, or a tie. The share of equal verdicts is what the paper
reports of its labelers (section 3.4: 72.6 +- 1.5 %). It depends on how often the judges decide at all: two that draw
lots agree on half of the pairs without ties, on a third with. Krippendorff's alpha (`rlhf.agreement`) is
the agreement beyond that: 0 is chance, 1 is perfect.
"""

from collections.abc import Sequence

import numpy as np

from rlhf.agreement import nominal_alpha
from rlhf.statistics import Clusters, Estimate, cluster_share

Preferences = Sequence[float | None] | np.ndarray


def judge_agreement(one: Preferences, other: Preferences, clusters: Clusters) -> Estimate | None:
    """Returns the share of equal verdicts, with the interval of `cluster_share`; None if no pair has both verdicts.

    Args:
        one, other: [N] preferences of the two judges for the first answer of each pair: above 0.5 a win, below 0.5 a
            defeat, 0.5 a tie, None (or NaN) not judged.
        clusters: [N] prompts.

    Raises:
        ValueError: lengths differ.
    """
    (x, y), prompts = _verdicts(one, other), np.array(list(clusters))
    if len(prompts) != len(x):
        raise ValueError(f"Got {len(x)} pairs and {len(prompts)} clusters; pass one cluster for each pair.")
    judged = ~np.isnan(x + y)
    return cluster_share((x == y)[judged].astype(float), prompts[judged]) if judged.any() else None


def judge_alpha(one: Preferences, other: Preferences) -> float | None:
    """Returns Krippendorff's alpha of the two judges; None if no pair has both verdicts, or all verdicts are equal.

    Raises:
        InputError: the package `krippendorff` is not installed.
        ValueError: lengths differ.
    """
    table = np.stack(_verdicts(one, other))
    return nominal_alpha(table[:, ~np.isnan(table).any(axis=0)])


def _verdicts(one: Preferences, other: Preferences) -> tuple[np.ndarray, np.ndarray]:
    x, y = np.asarray(one, dtype=float), np.asarray(other, dtype=float)
    if len(x) != len(y):
        raise ValueError(f"One judge has {len(x)} verdicts and the other {len(y)}; pass the same pairs.")
    return np.sign(np.round(x - 0.5, 9)), np.sign(np.round(y - 0.5, 9))
