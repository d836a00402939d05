"""Means and differences with 95 % intervals that resample prompts, not answers."""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

RESAMPLES = 2_000


@dataclass(frozen=True)
class Estimate:
    """A mean with its 95 % interval.

    Attributes:
        mean: of all values.
        low, high: percentile interval; None where a single cluster says nothing of others.
        n: number of values.
    """

    mean: float
    low: float | None
    high: float | None
    n: int


def cluster_mean(values: Sequence[float], clusters: Sequence[Hashable], seed: int = 0) -> Estimate:
    """Mean of `values` with the percentile interval of the cluster bootstrap.

    Answers to the same prompt are alike, so whole prompts are drawn with replacement, each with all its values:

        mean* = sum_g w_g S_g / sum_g w_g N_g,   w ~ Multinomial(G; 1/G, ..., 1/G)

    with S_g and N_g the sum and number of the values of prompt g. The width of an interval of identical values is zero:
    it says that no other value was seen, not that there is none.

    Args:
        values: [N] numbers.
        clusters: [N] hashables, equal for values that belong to one prompt.
        seed: of the resampling.

    Raises:
        ValueError: no values, or not as many clusters as values.
    """
    values = np.asarray(values, dtype=float)
    if not len(values) or len(values) != len(clusters):
        raise ValueError(f"{len(values)} values and {len(clusters)} clusters; equally many, at least one, are needed.")
    index = _cluster_index(clusters)
    counts = np.bincount(index).astype(float)  # [G]
    sums = np.bincount(index, weights=values)  # [G]
    mean = float(sums.sum() / counts.sum())
    if len(counts) == 1:
        return Estimate(mean, None, None, len(values))
    weights = _resampling_weights(len(counts), seed)  # [RESAMPLES, G]
    low, high = np.percentile(weights @ sums / (weights @ counts), [2.5, 97.5])
    return Estimate(mean, float(low), float(high), len(values))


def cluster_difference(a: Sequence[float], b: Sequence[float], clusters: Sequence[Hashable], seed: int = 0) -> Estimate:
    """Mean of a - b for values paired by position; arguments as for `cluster_mean`."""
    return cluster_mean(np.asarray(a, dtype=float) - np.asarray(b, dtype=float), clusters, seed)


def win_rate(a: Sequence[float], b: Sequence[float], clusters: Sequence[Hashable], seed: int = 0) -> Estimate:
    """How often a's score is above b's on the same prompt; a tie counts half.

    Args:
        a, b: [N] scores, paired by position; equal to nine decimals is a tie, since scores are sums of floats.
        clusters, seed: see `cluster_mean`.
    """
    differences = np.round(np.asarray(a, dtype=float) - np.asarray(b, dtype=float), 9)
    return cluster_mean((np.sign(differences) + 1) / 2, clusters, seed)


def _cluster_index(clusters: Sequence[Hashable]) -> np.ndarray:
    """[N] integers 0..G-1 in order of first appearance."""
    numbers: dict[Hashable, int] = {}
    return np.array([numbers.setdefault(cluster, len(numbers)) for cluster in clusters])


@lru_cache(maxsize=4)  # one evaluation asks some hundred times, mostly about the same prompts
def _resampling_weights(groups: int, seed: int) -> np.ndarray:
    """[RESAMPLES, G]: how often each cluster is drawn."""
    weights = np.random.default_rng(seed).multinomial(groups, np.full(groups, 1 / groups), size=RESAMPLES)
    return weights.astype(float)
