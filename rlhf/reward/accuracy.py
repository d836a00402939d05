"""How often, and how surely, the reward model agrees with the labelers."""

from typing import Any

import numpy as np

PADDING = -100  # fills the grids of prompts with fewer completions than the widest; what the HF Trainer pads with


def accuracy_report(
    scores: np.ndarray,
    ranks: np.ndarray,
    prompt_ids: np.ndarray,
    labeler_group_ids: np.ndarray,
    labeler_groups: list[str],
) -> dict[str, Any]:
    """Pairwise accuracy overall, by K and by labeler group, with 95 % intervals, and the reliability curve.

    A pair that labelers tied is left out; a pair that the model scores equally counts half.

    Args:
        scores: [R, K] of R prompts; ranks: [R, K] integers, PADDING where a prompt has fewer completions.
        prompt_ids: [R], equal for rows on the same prompt, which are one cluster.
        labeler_group_ids: [R], positions in `labeler_groups`; -1 for none.

    Returns:
        `loss`: of `kwise_loss`, exact where the Trainer's mean over batches is not (an uneven last batch on several
        devices); `accuracy`, `low`, `high`, `n_pairs`, `n_prompts`; `accuracy_by_k` and `accuracy_by_group`: dicts of
        the same five; `reliability`: see `reliability_curve`.
    """
    present = ranks != PADDING
    pairs = present[:, :, None] & present[:, None, :] & (ranks[:, :, None] < ranks[:, None, :])
    rows, winners, losers = pairs.nonzero()
    margins = scores[rows, winners].astype(float) - scores[rows, losers]  # [P]
    correct = np.where(margins == 0, 0.5, margins > 0)
    k, group = present.sum(1)[rows], labeler_group_ids[rows]
    losses = np.logaddexp(0.0, -margins) / (k * (k - 1) / 2)

    def among(chosen: np.ndarray) -> dict[str, Any]:
        return clustered_accuracy(correct[chosen], prompt_ids[rows][chosen])

    return {
        "loss": float(losses.sum() / len(ranks)),
        **among(np.full(len(rows), True)),
        "accuracy_by_k": {str(size): among(k == size) for size in np.unique(k)},
        "accuracy_by_group": {labeler_groups[i]: among(group == i) for i in np.unique(group) if i >= 0},
        "reliability": reliability_curve(margins),
    }


def clustered_accuracy(correct: np.ndarray, clusters: np.ndarray) -> dict[str, Any]:
    """Mean of `correct` [P] with a 95 % interval that allows for dependence within a cluster.

    The pairs of a prompt share completions, so they are far from independent. The mean is a ratio of two sums over
    prompts; its variance is the usual linearised one:  G / (G - 1) * sum_g (c_g - mean * n_g)^2 / (sum_g n_g)^2.
    """
    if not len(correct):
        return {"accuracy": None, "low": None, "high": None, "n_pairs": 0, "n_prompts": 0}
    _, index = np.unique(clusters, return_inverse=True)
    n, total = np.bincount(index), np.bincount(index, weights=correct)
    mean = total.sum() / n.sum()
    if len(n) > 1:
        variance = len(n) / (len(n) - 1) * np.square(total - mean * n).sum() / n.sum() ** 2
        half_width = 1.96 * np.sqrt(variance)
    else:
        half_width = 1.0  # one prompt says nothing of others
    return {
        "accuracy": float(mean),
        "low": float(max(mean - half_width, 0.0)),
        "high": float(min(mean + half_width, 1.0)),
        "n_pairs": len(correct),
        "n_prompts": len(n),
    }


def reliability_curve(margins: np.ndarray, bins: int = 10) -> list[dict[str, float]]:
    """Predicted against observed probability that the model's choice is the labeler's, in bins of the prediction.

    Args:
        margins: [P] score of the labeler's choice minus score of the other.

    Returns:
        for each bin of [0.5, 1] that has pairs: `predicted` (mean of sigmoid |margin|), `observed`, `n_pairs`.
    """
    predicted = 1.0 / (1.0 + np.exp(-np.abs(margins)))
    observed = np.where(margins == 0, 0.5, margins > 0)
    index = np.clip(((predicted - 0.5) * 2 * bins).astype(int), 0, bins - 1)
    return [
        {
            "predicted": float(predicted[index == i].mean()),
            "observed": float(observed[index == i].mean()),
            "n_pairs": int((index == i).sum()),
        }
        for i in np.unique(index)
    ]


def flat_metrics(report: dict[str, Any]) -> dict[str, float]:
    """The report's loss and accuracies under one flat name each, for the Trainer's log."""
    by_k = {f"accuracy_k{k}": part["accuracy"] for k, part in report["accuracy_by_k"].items()}
    by_group = {f"accuracy_{name}": part["accuracy"] for name, part in report["accuracy_by_group"].items()}
    overall = {name: report[name] for name in ("loss", "accuracy") if report[name] is not None}
    return {**overall, **by_k, **by_group}
