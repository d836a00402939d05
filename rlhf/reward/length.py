"""Length bias: how far length alone explains the model's scores and the labelers' choices."""

from typing import Any

import numpy as np


def length_bias(
    scores: np.ndarray, lengths: np.ndarray, present: np.ndarray, margins: np.ndarray, length_differences: np.ndarray
) -> dict[str, Any]:
    """Correlation of score and length, and how often labelers and model choose the longer completion.

    Args:
        scores, lengths, present: [R, K]; `lengths` in tokens of the completion, `present` is False where a prompt has
            fewer than K completions.
        margins, length_differences: [P], score and length of the labelers' choice minus those of the other.

    Returns:
        `correlation` of score and length over all completions; `correlation_within_prompts`: of their deviations from
        the prompt's means; `labelers_choose_longer` and `model_chooses_longer`: shares of the pairs with different
        lengths, equal scores of the model counted half. None where nothing varies.
    """
    count = np.maximum(present.sum(1, keepdims=True), 1)
    score = np.where(present, scores, 0.0).astype(float)
    length = np.where(present, lengths, 0).astype(float)
    within = [(values - values.sum(1, keepdims=True) / count)[present] for values in (score, length)]
    longer = np.sign(length_differences[length_differences != 0])  # +1 where the labeler chose the longer
    model = np.sign(margins[length_differences != 0]) * longer
    return {
        "correlation": _correlation(score[present], length[present]),
        "correlation_within_prompts": _correlation(*within),
        "labelers_choose_longer": float((longer > 0).mean()) if len(longer) else None,
        "model_chooses_longer": float(((model + 1) / 2).mean()) if len(model) else None,
    }


def fit_length_model(length_differences: np.ndarray) -> float:
    """Fits w of the logistic regression  P(chosen) = sigmoid(w * length difference)  on pairs, by Newton's method.

    There is no intercept, because the order of the two completions carries no information.

    Args:
        length_differences: [P] tokens of the labeler's choice minus tokens of the other.

    Returns:
        w per token; 0 if all lengths are equal.
    """
    scale = float(np.abs(length_differences).max(initial=0))
    if scale == 0:
        return 0.0
    x = length_differences / scale
    w = 0.0
    for _ in range(50):
        p = 1.0 / (1.0 + np.exp(-w * x))
        # A weak Gaussian prior (variance 100): without it, w diverges if the longer completion always wins.
        gradient, curvature = ((1 - p) * x).sum() - w / 100, (p * (1 - p) * x * x).sum() + 1 / 100
        step = gradient / curvature
        w += float(np.clip(step, -5, 5))
        if abs(step) < 1e-10:
            break
    return w / scale


def _correlation(a: np.ndarray, b: np.ndarray) -> float | None:
    """Pearson's correlation; None if one of the two does not vary."""
    if len(a) < 2 or np.ptp(a) < 1e-12 or np.ptp(b) < 1e-12:
        return None
    return float(np.corrcoef(a, b)[0, 1])
