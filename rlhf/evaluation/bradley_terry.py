"""Strengths of several systems from pairwise preferences (Bradley and Terry 1952, Biometrika 39, 324-345).

    P(i is preferred to j) = sigmoid(s_i - s_j),    s_baseline = 0

A strength is a log odds: 0 is the baseline's, 1.1 wins 3 of 4 comparisons with it. Systems are compared through each
other: if A beats B and B beats the baseline, A is strong, though nobody compared A with the baseline. A tie counts as
half a win of each. Intervals are clustered by prompt; variance and half-width are those of
`rlhf.evaluation.logistic`, so the interval of two systems is that of `rlhf.statistics.win_rate` on the logit scale.

The strengths that maximize the likelihood are finite if and only if no group of systems wins all comparisons with the
rest (Ford 1957, American Mathematical Monthly 64, part 2, 28-33). Otherwise all strengths are those under Jeffreys'
prior, which are finite: a system that wins on all of n prompts against the baseline has strength log(2 n + 1). The
data alone give it no upper end; the upper end of its interval comes from the prior.
"""

from collections.abc import Sequence

import numpy as np
from scipy.sparse.csgraph import connected_components
from scipy.special import expit, stdtrit

from rlhf.evaluation.logistic import ClusteredLogit, clustered_logit, wilson_half_width
from rlhf.statistics import Clusters, Estimate, Values


def bradley_terry(
    a: Sequence[str], b: Sequence[str], preferences: Values, clusters: Clusters, baseline: str
) -> dict[str, Estimate]:
    """Returns the strength of each system but the baseline, in log odds.

    A system that no chain of comparisons connects with the baseline is left out. The ends of an interval are None if a
    strength rests on a single prompt. `n` is the number of a system's comparisons.

    Args:
        a, b: [N] names of the two systems of each comparison.
        preferences: [N] 1 if a is preferred, 0 if b is, 0.5 for a tie; or a probability.
        clusters: [N] prompts.
        baseline: name of the system of strength 0.

    Raises:
        ValueError: lengths differ, a preference is outside [0, 1], or a system is compared with itself.
    """
    y, names_a, names_b = np.asarray(preferences, dtype=float), np.asarray(a, dtype=str), np.asarray(b, dtype=str)
    prompts = clusters if isinstance(clusters, np.ndarray) else np.array(list(clusters))
    if not len(y) == len(names_a) == len(names_b) == len(prompts):
        raise ValueError(
            f"Got {len(names_a)} and {len(names_b)} systems, {len(y)} preferences, {len(prompts)} clusters."
        )
    if not np.all((y >= 0) & (y <= 1)):
        raise ValueError("A preference is outside [0, 1]; pass 1 for a, 0 for b and 0.5 for a tie.")
    if np.any(names_a == names_b):
        raise ValueError(f"{names_a[names_a == names_b][0]} is compared with itself.")
    names, pairs = np.unique(np.concatenate([names_a, names_b]), return_inverse=True)
    one, other = pairs.reshape(2, -1)
    wins = np.zeros((len(names), len(names)))  # wins[i, j]: of i over j
    np.add.at(wins, (one, other), y)
    np.add.at(wins, (other, one), 1 - y)
    _, group = connected_components(wins, directed=False)
    start = int(np.searchsorted(names, baseline))
    if start == len(names) or names[start] != baseline:
        return {}
    kept = [i for i in range(len(names)) if group[i] == group[start] and i != start]
    compared = group[one] == group[start]
    y, one, other = y[compared], one[compared], other[compared]
    index = np.unique(prompts[compared], return_inverse=True)[1]
    features = (one[:, None] == np.array(kept)).astype(float) - (other[:, None] == np.array(kept))
    separated = connected_components(wins > 0, directed=True, connection="strong")[1]
    n_prompts = len(index) ** 2 / np.square(np.bincount(index)).sum()  # effective, see rlhf.statistics
    logit = clustered_logit(
        y,
        features,
        index,
        repeats=max(1.0, 2 * len(y) / ((len(kept) + 1) * n_prompts)),  # a system's comparisons on one prompt
        separated=len({separated[i] for i in [start, *kept]}) > 1,
    )
    return {
        str(names[system]): _estimate(logit, k, int(np.count_nonzero((one == system) | (other == system))))
        for k, system in enumerate(kept)
    }


def win_chance(strength: Estimate) -> Estimate:
    """Returns a strength as the chance to be preferred to the baseline, in [0, 1]; without an interval, [0, 1]."""
    low = 0.0 if strength.low is None else float(expit(strength.low))
    high = 1.0 if strength.high is None else float(expit(strength.high))
    return Estimate(float(expit(strength.mean)), low, high, strength.n)


def _estimate(logit: ClusteredLogit, k: int, n: int) -> Estimate:
    strength = float(logit.coefficients[k])
    if not logit.known[k]:
        return Estimate(strength, None, None, n)
    t = float(stdtrit(max(logit.effective_clusters[k] - 1.0, 1.0), 0.975))
    half_width = wilson_half_width(float(np.sqrt(logit.covariance[k, k])), t)
    return Estimate(strength, strength - half_width, strength + half_width, n)
