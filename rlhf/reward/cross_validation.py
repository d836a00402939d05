"""Accuracy on labelers, or prompts, that the model was not trained on (arXiv 2203.02155, section 3.5: five folds).

For each fold a model is trained on the other folds and predicts the pairs of this one, so every row of the training
data is predicted once. The baseline is a model of the lengths alone, fitted on the same folds.
"""

import gc
import logging
from collections.abc import Callable
from typing import Any

import numpy as np
from datasets import Dataset

from rlhf.reward.accuracy import ordered_correctly
from rlhf.reward.folds import COLUMN, TRAINING, FinishedFolds, assign_folds, fold_rows
from rlhf.reward.length import fit_length_model
from rlhf.reward.report import accuracy_cells, difference_cell, three_decimals
from rlhf.reward.trainer import KWiseRewardTrainer
from rlhf.runs.markdown import markdown_table
from rlhf.statistics import clustered_accuracy, clustered_difference

logger = logging.getLogger(__name__)

PER_PAIR = {"correct": float, "from_length": float, "prompt_ids": np.int64, "known": bool}
MakeTrainer = Callable[[Dataset, Dataset], KWiseRewardTrainer]


def cross_validate(
    make_trainer: MakeTrainer, rows: Dataset, validation: Dataset, by: str, finished: FinishedFolds, seed: int = 0
) -> dict[str, Any]:
    """Trains and evaluates once for each fold.

    Args:
        make_trainer: (training rows, evaluation rows) -> a trainer with a fresh model.
        rows: of `tokenize_comparisons`; each is held out once.
        validation: rows that are never trained on. If labelers are held out, the validation rows of the training
            labelers show how much worse the model does on labelers it does not know.
        by: "labelers", "labeler_groups" or "prompts".
        finished: folds that are not run again; each new fold is added as it ends.
        seed: of the division into folds.

    Returns:
        `folds`: for each `held_out` (names of labelers or labeler groups, or the number of conversations), `n_train`
        and the numbers of `_fold_result`; the same numbers over all folds; `fold_mean` and `fold_standard_error` of the
        accuracy.

    Raises:
        InputError: rows do not name their labeler, or there are too few labelers or prompts to hold one out.
    """
    fold_of = assign_folds(rows[COLUMN[by]], by, seed)
    folds, pairs = [], []
    for fold in range(max(fold_of) + 1):
        if fold not in finished.predictions:
            train, evaluation = fold_rows(rows, validation, fold_of, fold, by)
            finished.add(fold, _predict_fold(make_trainer(train, evaluation), train))
            gc.collect()
        predictions = finished.predictions[fold]
        keys = sorted({key for key, number in zip(rows[COLUMN[by]], fold_of, strict=True) if number == fold})
        held_out = len(keys) if by == "prompts" else keys
        pairs.append([np.array(predictions[name], dtype) for name, dtype in PER_PAIR.items()])
        result = _fold_result(*pairs[-1])
        folds.append({"held_out": held_out, "n_train": predictions["n_train"], **result})
        logger.info("fold %d of %d: accuracy %s", fold + 1, max(fold_of) + 1, three_decimals(result["accuracy"]))
    accuracies = [fold["accuracy"] for fold in folds if fold["n_pairs"]]  # a fold of ties alone has no accuracy
    several = len(accuracies) > 1
    return {
        "by": by,
        **_fold_result(*map(np.concatenate, zip(*pairs, strict=True))),
        "fold_mean": float(np.mean(accuracies)) if accuracies else None,
        "fold_standard_error": float(np.std(accuracies, ddof=1) / np.sqrt(len(accuracies))) if several else None,
        "folds": folds,
    }


def _predict_fold(trainer: KWiseRewardTrainer, train: Dataset) -> dict[str, Any]:
    """Trains and predicts the evaluation rows.

    Returns:
        `n_train`, and lists over the P pairs: `correct` and `from_length` (1 if the model, and the length model,
        ordered the pair as the labeler did, .5 for equal scores), `prompt_ids`, `known` (True if the pair's labeler was
        trained on).
    """
    trainer.train()
    pairs = trainer.predictions(trainer.eval_dataset).pairs()
    from_length = ordered_correctly(fit_length_model(length_differences(train)) * pairs.length_differences)
    known = pairs.labeler_group_ids == trainer.labeler_groups.index(TRAINING)
    values = (pairs.correct, from_length, pairs.prompt_ids, known)
    return {"n_train": len(train), **{name: value.tolist() for name, value in zip(PER_PAIR, values, strict=True)}}


def _fold_result(correct: np.ndarray, from_length: np.ndarray, clusters: np.ndarray, known: np.ndarray) -> dict:
    """Returns `clustered_accuracy` on the pairs held out, and beside it:

    `length_only`: the same of the length model; `ahead_of_length_only`: the difference on the same pairs;
    `training_labelers`: accuracy on validation rows of training labelers; `labeler_gap`: that minus the accuracy.
    """
    new = ~known
    return {
        **clustered_accuracy(correct[new], clusters[new]),
        "length_only": clustered_accuracy(from_length[new], clusters[new]),
        "ahead_of_length_only": clustered_difference(correct[new], from_length[new], clusters[new], clusters[new]),
        "training_labelers": clustered_accuracy(correct[known], clusters[known]),
        "labeler_gap": clustered_difference(correct[known], correct[new], clusters[known], clusters[new]),
    }


def length_differences(rows: Dataset) -> np.ndarray:
    """Returns [P] tokens of the labelers' choice minus tokens of the other, over all pairs of `rows`."""
    differences = [
        len(better) - len(worse)
        for ids, ranks in zip(rows["completions_ids"], rows["ranks"], strict=True)
        for better, a in zip(ids, ranks, strict=True)
        for worse, b in zip(ids, ranks, strict=True)
        if a < b
    ]
    return np.array(differences, dtype=int)


def cross_validation_text(result: dict[str, Any]) -> str:
    """Returns the result as Markdown."""
    by = result["by"].replace("_", " ")
    held_out = "conversations" if result["by"] == "prompts" else by
    header = ["fold", f"{held_out} held out", "accuracy", "95 % interval", "pairs", "prompts"]
    header += ["length only", "95 % interval", "ahead of it by", "training labelers", "95 % interval"]
    rows = []
    for number, fold in [*enumerate(result["folds"], 1), ("all", result)]:
        names = fold.get("held_out", "")
        rows.append([
            number, ", ".join(names) if isinstance(names, list) else names, *accuracy_cells(fold),
            *accuracy_cells(fold["length_only"])[:2], difference_cell(fold["ahead_of_length_only"]),
            *accuracy_cells(fold["training_labelers"])[:2],
        ])  # fmt: skip
    mean = f"{three_decimals(result['fold_mean'])} +- {three_decimals(result['fold_standard_error'])}"
    return f"# Cross-validation by {by}\n\n{markdown_table(header, rows)}\n\nMean of the folds {mean}.\n"
