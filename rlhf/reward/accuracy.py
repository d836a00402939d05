"""How often, and how surely, the reward model agrees with the labelers."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from rlhf.reward.clusters import clustered_accuracy, clustered_difference
from rlhf.reward.length import length_bias

PADDING = -100  # fills the grids of prompts with fewer completions than the widest; what the HF Trainer pads with


@dataclass(frozen=True)
class Predictions:
    """What a model says of R ranked prompts, and what the labelers said.

    Attributes:
        scores: [R, K] float.
        ranks: [R, K] integers, PADDING where a prompt has fewer completions.
        lengths: [R, K] tokens of each completion.
        prompt_ids: [R], equal for rows of one conversation, which are one cluster.
        labeler_group_ids: [R], -1 for none.
    """

    scores: np.ndarray
    ranks: np.ndarray
    lengths: np.ndarray
    prompt_ids: np.ndarray
    labeler_group_ids: np.ndarray

    def pairs(self) -> "Pairs":
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
    """All pairs that labelers did not tie; every attribute is [P].

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
    """Pairwise accuracy overall, by K, by labeler group and by margin; calibration; the part that length plays.

    A pair that labelers tied is left out; a pair that the model scores equally counts half.

    Args:
        labeler_groups: the names behind `labeler_group_ids`.
        training_groups: those whose rankings the model has learned from.

    Returns:
        `loss`: of `kwise_loss`, exact where the Trainer's mean over batches is not (an uneven last batch on several
        devices); `accuracy`, `low`, `high`, `n_pairs`, `n_prompts`; `accuracy_by_k` and `accuracy_by_group`: dicts of
        the same five; `labeler_gap`: accuracy on the groups trained on minus that on the others, see `labeler_gap`;
        `accuracy_by_margin`: see `accuracy_by_margin`; `reliability`, `calibration_error`: see `reliability_curve`;
        `length`: see `rlhf.reward.length.length_bias`.
    """
    pairs = predictions.pairs()
    correct, k, group = pairs.correct, pairs.k, pairs.labeler_group_ids
    losses = np.logaddexp(0.0, -pairs.margins) / (k * (k - 1) / 2)

    def among(chosen: np.ndarray) -> dict[str, Any]:
        return clustered_accuracy(correct[chosen], pairs.prompt_ids[chosen])

    reliability = reliability_curve(pairs.margins)
    return {
        "loss": float(losses.sum() / len(predictions.ranks)),
        **among(np.full(len(correct), True)),
        "accuracy_by_k": {str(size): among(k == size) for size in np.unique(k)},
        "accuracy_by_group": {labeler_groups[i]: among(group == i) for i in np.unique(group) if i >= 0},
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


def labeler_gap(pairs: Pairs, training_group_ids: list[int]) -> dict[str, float] | None:
    """Accuracy on labelers that the model has learned from minus that on others: `difference`, `low`, `high`.

    None where one of the two is missing.
    """
    trained = np.isin(pairs.labeler_group_ids, training_group_ids)
    others = ~trained & (pairs.labeler_group_ids >= 0)
    correct, clusters = pairs.correct, pairs.prompt_ids
    return clustered_difference(correct[trained], correct[others], clusters[trained], clusters[others])


def accuracy_by_margin(pairs: Pairs, bins: int = 5) -> list[dict[str, Any]]:
    """Accuracy on the fifth of the pairs that the model finds closest, on the next fifth, and so on.

    Returns:
        for each: `margin_from` and `margin_to`, the least and greatest |margin|, and the accuracy with its interval.
    """
    size, order = np.abs(pairs.margins), np.argsort(np.abs(pairs.margins), kind="stable")
    correct = pairs.correct
    return [
        {
            "margin_from": float(size[part[0]]),
            "margin_to": float(size[part[-1]]),
            **clustered_accuracy(correct[part], pairs.prompt_ids[part]),
        }
        for part in np.array_split(order, bins)
        if len(part)
    ]


def reliability_curve(margins: np.ndarray, bins: int = 10) -> list[dict[str, float]]:
    """Predicted against observed probability that the model's choice is the labeler's, in bins of the prediction.

    Args:
        margins: [P] score of the labeler's choice minus score of the other.

    Returns:
        for each bin of [0.5, 1] that has pairs: `predicted` (mean of sigmoid |margin|), `observed`, `n_pairs`.
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
    """The expected calibration error of a reliability curve:  sum over bins of n / N * |predicted - observed|."""
    total = sum(row["n_pairs"] for row in curve)
    if not total:
        return None
    return sum(row["n_pairs"] * abs(row["predicted"] - row["observed"]) for row in curve) / total


def flat_metrics(report: dict[str, Any]) -> dict[str, float]:
    """The report's numbers that are worth a curve, under one flat name each, for the Trainer's log."""
    by_k = {f"accuracy_k{k}": part["accuracy"] for k, part in report["accuracy_by_k"].items()}
    by_group = {f"accuracy_{name}": part["accuracy"] for name, part in report["accuracy_by_group"].items()}
    overall = {name: report[name] for name in ("loss", "accuracy", "calibration_error")}
    overall["length_correlation"] = report["length"]["correlation_within_prompts"]
    gap = report["labeler_gap"] or {}
    gap = {f"labeler_gap{suffix}": gap.get(name) for suffix, name in (("", "difference"), ("_low", "low"))}
    return {name: value for name, value in {**overall, **by_k, **by_group, **gap}.items() if value is not None}
