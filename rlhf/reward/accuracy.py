"""Pairwise accuracy of the reward model on the labelers' rankings, and the calibration of its margins."""

import logging
from dataclasses import dataclass
from typing import Any

import numpy as np
from transformers import TrainerCallback

from rlhf.reward.length import length_bias
from rlhf.statistics import clustered_accuracy, clustered_difference

logger = logging.getLogger(__name__)

PADDING = -100  # in [R, K] arrays, after the last completion of a prompt; the HF Trainer pads with the same number


@dataclass(frozen=True)
class Predictions:
    """Scores of R ranked prompts, beside the labelers' ranks.

    Attributes:
        scores: [R, K] float.
        ranks: [R, K] integers, PADDING where a prompt has fewer than K completions.
        lengths: [R, K] tokens of each completion.
        prompt_ids: [R], equal for rows of one conversation, which are one cluster.
        labeler_group_ids: [R], -1 for a row without labeler group.
    """

    scores: np.ndarray
    ranks: np.ndarray
    lengths: np.ndarray
    prompt_ids: np.ndarray
    labeler_group_ids: np.ndarray

    def pairs(self) -> "Pairs":
        """Returns the pairs of completions that the labelers did not tie."""
        present = self.ranks != PADDING
        decided = self.ranks[:, :, None] < self.ranks[:, None, :]
        rows, winners, losers = (present[:, :, None] & present[:, None, :] & decided).nonzero()
        scores, lengths = self.scores.astype(float), self.lengths.astype(int)
        return Pairs(
            margins=scores[rows, winners] - scores[rows, losers],
            length_differences=lengths[rows, winners] - lengths[rows, losers],
            k=present.sum(1)[rows],
            prompt_ids=self.prompt_ids[rows],
            labeler_group_ids=self.labeler_group_ids[rows],
        )


@dataclass(frozen=True)
class Pairs:
    """Pairs of completions that labelers did not tie. Every attribute is [P].

    Attributes:
        margins: score of the labeler's choice minus score of the other.
        length_differences: tokens of the labeler's choice minus tokens of the other.
        k: completions of the prompt.
    """

    margins: np.ndarray
    length_differences: np.ndarray
    k: np.ndarray
    prompt_ids: np.ndarray
    labeler_group_ids: np.ndarray

    @property
    def correct(self) -> np.ndarray:
        return ordered_correctly(self.margins)


def ordered_correctly(margins: np.ndarray) -> np.ndarray:
    """Returns 1 where the labeler's choice has the higher score, 0 where it has the lower, 0.5 for equal scores."""
    return np.where(margins == 0, 0.5, margins > 0)


def accuracy_report(
    predictions: Predictions, labeler_groups: list[str], training_groups: frozenset[str] = frozenset()
) -> dict[str, Any]:
    """Computes pairwise accuracy overall, by K, by labeler group and by margin; calibration; length bias.

    Pairs that labelers tied are left out. Pairs with equal scores count half.

    Args:
        labeler_groups: names that `labeler_group_ids` index.
        training_groups: names of the labeler groups that the model was trained on.

    Returns:
        `loss`: `kwise_loss` over all prompts (the Trainer's mean over batches is inexact if several devices share an
        uneven last batch); `accuracy`, `low`, `high`, `n_pairs`, `n_prompts`; `accuracy_by_k` and `accuracy_by_group`:
        dicts of the same five; `labeler_gap`, `accuracy_by_margin`: see the functions of these names; `reliability`:
        see `reliability_curve`; `calibration_error`; `length`: see `rlhf.reward.length.length_bias`.
    """
    pairs = predictions.pairs()
    correct, k, group = pairs.correct, pairs.k, pairs.labeler_group_ids
    losses = np.logaddexp(0.0, -pairs.margins) / (k * (k - 1) / 2)

    def accuracy_among(chosen: np.ndarray) -> dict[str, Any]:
        return clustered_accuracy(correct[chosen], pairs.prompt_ids[chosen])

    reliability = reliability_curve(pairs.margins)
    return {
        "loss": float(losses.sum() / len(predictions.ranks)),
        **accuracy_among(np.full(len(correct), True)),
        "accuracy_by_k": {str(size): accuracy_among(k == size) for size in np.unique(k)},
        "accuracy_by_group": {labeler_groups[i]: accuracy_among(group == i) for i in np.unique(group) if i >= 0},
        "labeler_gap": labeler_gap(pairs, [labeler_groups.index(name) for name in training_groups]),
        "accuracy_by_margin": accuracy_by_margin(pairs),
        "reliability": reliability,
        "calibration_error": calibration_error(reliability),
        "length": length_bias(
            predictions.scores,
            predictions.lengths,
            predictions.ranks != PADDING,
            pairs.margins,
            pairs.length_differences,
        ),
    }


def labeler_gap(pairs: Pairs, training_group_ids: list[int]) -> dict[str, float | None] | None:
    """Accuracy on labeler groups that the model was trained on minus that on others: `difference`, `low`, `high`.

    Returns None if there are no pairs of one of the two.
    """
    trained = np.isin(pairs.labeler_group_ids, training_group_ids)
    others = ~trained & (pairs.labeler_group_ids >= 0)
    correct, clusters = pairs.correct, pairs.prompt_ids
    return clustered_difference(correct[trained], correct[others], clusters[trained], clusters[others])


def accuracy_by_margin(pairs: Pairs, bins: int = 5) -> list[dict[str, Any]]:
    """Accuracy in `bins` equal shares of the pairs, sorted by |margin|, smallest first.

    Returns:
        for each bin: `margin_from` and `margin_to`, its smallest and largest |margin|, and the `clustered_accuracy`.
    """
    size, order = np.abs(pairs.margins), np.argsort(np.abs(pairs.margins), kind="stable")
    correct = pairs.correct
    return [
        {
            "margin_from": float(size[chosen[0]]),
            "margin_to": float(size[chosen[-1]]),
            **clustered_accuracy(correct[chosen], pairs.prompt_ids[chosen]),
        }
        for chosen in np.array_split(order, bins)
        if len(chosen)
    ]


def reliability_curve(margins: np.ndarray, bins: int = 10) -> list[dict[str, float]]:
    """Predicted and observed probability that the labeler chooses as the model does, in bins of the prediction.

    Args:
        margins: [P] score of the labeler's choice minus score of the other.

    Returns:
        for each bin of [0.5, 1] with pairs in it: `predicted` (mean of sigmoid |margin|), `observed`, `n_pairs`.
    """
    predicted = 1.0 / (1.0 + np.exp(-np.abs(margins)))
    observed = ordered_correctly(margins)
    index = np.clip(((predicted - 0.5) * 2 * bins).astype(int), 0, bins - 1)
    return [
        {
            "predicted": float(predicted[index == i].mean()),
            "observed": float(observed[index == i].mean()),
            "n_pairs": int((index == i).sum()),
        }
        for i in np.unique(index)
    ]


def calibration_error(curve: list[dict[str, float]]) -> float | None:
    """Expected calibration error of a reliability curve:  sum over bins of n / N * |predicted - observed|."""
    total = sum(row["n_pairs"] for row in curve)
    if not total:
        return None
    return sum(row["n_pairs"] * abs(row["predicted"] - row["observed"]) for row in curve) / total


def flat_metrics(report: dict[str, Any]) -> dict[str, float]:
    """Returns the numbers of the report that the Trainer logs, each under a flat name."""
    by_k = {f"accuracy_k{k}": row["accuracy"] for k, row in report["accuracy_by_k"].items()}
    by_group = {f"accuracy_{name}": row["accuracy"] for name, row in report["accuracy_by_group"].items()}
    overall = {name: report[name] for name in ("loss", "accuracy", "calibration_error")}
    overall["length_correlation"] = report["length"]["correlation_within_prompts"]
    gap = report["labeler_gap"] or {}
    gap = {f"labeler_gap{suffix}": gap.get(name) for suffix, name in (("", "difference"), ("_low", "low"))}
    return {name: value for name, value in {**overall, **by_k, **by_group, **gap}.items() if value is not None}


class LabelerGapWarning(TrainerCallback):
    """Warns if the model learns the tastes of its labelers, not what people in general prefer.

    The labeler gap, accuracy on training labelers minus accuracy on held-out labelers, is rarely 0: labeler groups
    differ in how much their members agree (in the paper, the held-out labelers agreed more, 77.3 to 72.6 %). So the
    warning is about growth: the lower end of the gap's 95 % interval is above the smallest gap of the run so far. It
    needs evaluations during training (`eval_strategy`).
    """

    def on_evaluate(self, args, state, control, metrics=None, **kwargs):
        gap, low = (metrics or {}).get("eval_labeler_gap"), (metrics or {}).get("eval_labeler_gap_low")
        if gap is None or low is None:
            return
        # The Trainer has logged this evaluation already. Checkpoints keep the log, so a resumed run knows earlier gaps.
        *earlier, _ = [log["eval_labeler_gap"] for log in state.log_history if "eval_labeler_gap" in log]
        if earlier and low > max(min(earlier), 0.0):
            logger.warning(
                "step %d: accuracy on held-out labelers is %.3f below that on training labelers (95 %% interval from "
                "%.3f); the smallest gap so far was %.3f. Use fewer epochs, a lower learning rate or more labelers.",
                state.global_step, gap, low, min(earlier),
            )  # fmt: skip
