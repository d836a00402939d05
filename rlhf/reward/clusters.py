"""Means over pairs with 95 % intervals that count prompts, not pairs.

The pairs of a prompt share completions, so they are far from independent. A mean over pairs is a ratio of two sums over
prompts, and its variance is the usual linearised one, with u_g what prompt g contributes to the error:

    u_g = (c_g - mean * n_g) / sum_h n_h,    variance = G / (G - 1) * sum_g u_g^2

where c_g and n_g are the sum and number of the values of prompt g. For a difference of two means the u_g are
subtracted, which also allows for prompts that both have. (Evaluation resamples prompts; here they are too many for it.)
"""

from typing import Any

import numpy as np

Z = 1.96


def clustered_accuracy(correct: np.ndarray, clusters: np.ndarray) -> dict[str, Any]:
    """Mean of `correct` [P] in [0, 1] as `accuracy`, with `low`, `high`, `n_pairs` and `n_prompts`.

    One prompt says nothing of others: its interval is [0, 1].
    """
    if not len(correct):
        return {"accuracy": None, "low": None, "high": None, "n_pairs": 0, "n_prompts": 0}
    names, index = np.unique(clusters, return_inverse=True)
    mean, contributions = _mean(correct, index, len(names))
    half_width = Z * _standard_error(contributions) if len(names) > 1 else 1.0
    return {
        "accuracy": mean,
        "low": max(mean - half_width, 0.0),
        "high": min(mean + half_width, 1.0),
        "n_pairs": len(correct),
        "n_prompts": len(names),
    }


def clustered_difference(
    a: np.ndarray, b: np.ndarray, a_clusters: np.ndarray, b_clusters: np.ndarray
) -> dict[str, float] | None:
    """Mean of `a` [P] minus mean of `b` [Q] as `difference`, with `low` and `high`; None if one is empty.

    The same clusters twice make it a paired comparison.
    """
    if not len(a) or not len(b):
        return None
    names, index = np.unique(np.concatenate([a_clusters, b_clusters]), return_inverse=True)
    a_mean, a_contributions = _mean(a, index[: len(a)], len(names))
    b_mean, b_contributions = _mean(b, index[len(a) :], len(names))
    half_width = Z * _standard_error(a_contributions - b_contributions) if len(names) > 1 else 1.0
    return {
        "difference": a_mean - b_mean,
        "low": max(a_mean - b_mean - half_width, -1.0),
        "high": min(a_mean - b_mean + half_width, 1.0),
    }


def _mean(values: np.ndarray, index: np.ndarray, groups: int) -> tuple[float, np.ndarray]:
    """The mean and u [groups]."""
    n, total = np.bincount(index, minlength=groups), np.bincount(index, weights=values, minlength=groups)
    mean = total.sum() / n.sum()
    return float(mean), (total - mean * n) / n.sum()


def _standard_error(contributions: np.ndarray) -> float:
    groups = len(contributions)
    return float(np.sqrt(groups / (groups - 1) * np.square(contributions).sum()))
