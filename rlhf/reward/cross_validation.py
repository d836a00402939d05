"""Accuracy on labelers, or prompts, that the model has not learned from (arXiv 2203.02155, section 3.5: five folds).

Each fold trains a model on the other four and predicts the pairs of the one held out, so that every row of the training
data is predicted once. Beside it stands what length alone would predict.
"""

import gc
import logging
from collections.abc import Callable
from typing import Any

import numpy as np
from datasets import Dataset

from rlhf.reward.accuracy import agreement
from rlhf.reward.clusters import clustered_accuracy, clustered_difference
from rlhf.reward.folds import COLUMN, TRAINING, FinishedFolds, assign_folds, fold_rows
from rlhf.reward.length import fit_length_model
from rlhf.reward.report import accuracy_cells, number, signed, table
from rlhf.reward.trainer import KWiseRewardTrainer

logger = logging.getLogger(__name__)

PER_PAIR = {"correct": float, "from_length": float, "prompt_ids": np.int64, "known": bool}
MakeTrainer = Callable[[Dataset, Dataset], KWiseRewardTrainer]


def cross_validate(
    make_trainer: MakeTrainer, rows: Dataset, validation: Dataset, by: str, finished: FinishedFolds, seed: int = 0
) -> dict[str, Any]:
    """Trains and evaluates once for each fold.

    Args:
        make_trainer: (training rows, evaluation rows) -> a trainer with a fresh model.
        rows: of `tokenize_comparisons`, all of which are held out once.
        validation: such rows that are never trained on. Where labelers are held out, those of them that the other
            labelers ranked show how much worse the model does on people it does not know.
        by: "labelers", "labeler_groups" or "prompts".
        finished: folds that are not run again; each new one is added as it ends.
        seed: of the division into folds.

    Returns:
        `folds`: for each `held_out` (the labelers or groups, or the number of conversations), `n_train` and the numbers
        of `_fold_result`; the same numbers over all folds; `fold_mean` and `fold_standard_error` of the accuracy.

    Raises:
        InputError: rows do not say who ranked them, or there are too few labelers or prompts to hold one out.
    """
    fold_of = assign_folds(rows[COLUMN[by]], by, seed)
    folds, pairs = [], []
    for fold in range(max(fold_of) + 1):
        if fold not in finished.found:
            train, evaluation = fold_rows(rows, validation, fold_of, fold, by)
            finished.add(fold, _predict_fold(make_trainer(train, evaluation), train))
            gc.collect()
        found = finished.found[fold]
        held_out = sorted({key for key, number in zip(rows[COLUMN[by]], fold_of, strict=True) if number == fold})
        pairs.append([np.array(found[name], dtype) for name, dtype in PER_PAIR.items()])
        result = _fold_result(*pairs[-1])
        folds.append({
            "held_out": len(held_out) if by == "prompts" else held_out, "n_train": found["n_train"], **result
        })  # fmt: skip
        logger.info("fold %d of %d: accuracy %s", fold + 1, max(fold_of) + 1, number(result["accuracy"]))
    accuracies = [fold["accuracy"] for fold in folds if fold["n_pairs"]]
    several = len(accuracies) > 1  # a fold in which labelers tied everything has none
    return {
        "by": by,
        **_fold_result(*map(np.concatenate, zip(*pairs, strict=True))),
        "fold_mean": float(np.mean(accuracies)) if accuracies else None,
        "fold_standard_error": float(np.std(accuracies, ddof=1) / np.sqrt(len(accuracies))) if several else None,
        "folds": folds,
    }


def _predict_fold(trainer: KWiseRewardTrainer, train: Dataset) -> dict[str, Any]:
    """Trains, and predicts the evaluation rows: `n_train`, and for each of P pairs the values of `PER_PAIR`.

    `correct` and `from_length` say whether the model and whether length alone ordered the pair as the labeler did,
    `known` whether its labeler is one of those trained on.
    """
    trainer.train()
    pairs = trainer.predictions(trainer.eval_dataset).pairs()
    from_length = agreement(fit_length_model(length_differences(train)) * pairs.length_differences)
    known = pairs.labeler_group_ids == trainer.labeler_groups.index(TRAINING)
    values = (pairs.correct, from_length, pairs.prompt_ids, known)
    return {"n_train": len(train), **{name: value.tolist() for name, value in zip(PER_PAIR, values, strict=True)}}


def _fold_result(correct: np.ndarray, from_length: np.ndarray, clusters: np.ndarray, known: np.ndarray) -> dict:
    """`clustered_accuracy` on the pairs held out, and beside it:

    `length_only`, the same of the length model; `ahead_of_length_only`, the difference on the same pairs;
    `training_labelers`, accuracy on validation rows of the labelers trained on; `labeler_gap`, that minus the accuracy.
    """
    own, other = ~known, known
    return {
        **clustered_accuracy(correct[own], clusters[own]),
        "length_only": clustered_accuracy(from_length[own], clusters[own]),
        "ahead_of_length_only": clustered_difference(correct[own], from_length[own], clusters[own], clusters[own]),
        "training_labelers": clustered_accuracy(correct[other], clusters[other]),
        "labeler_gap": clustered_difference(correct[other], correct[own], clusters[other], clusters[own]),
    }


def length_differences(rows: Dataset) -> np.ndarray:
    """[P] tokens of the labelers' choice minus tokens of the other, over all pairs of `rows`."""
    found = [
        len(better) - len(worse)
        for ids, ranks in zip(rows["completions_ids"], rows["ranks"], strict=True)
        for better, a in zip(ids, ranks, strict=True)
        for worse, b in zip(ids, ranks, strict=True)
        if a < b
    ]
    return np.array(found, dtype=int)


def cross_validation_text(result: dict[str, Any]) -> str:
    """The result as Markdown."""
    lines = []
    for name, part in [*((str(i + 1), fold) for i, fold in enumerate(result["folds"])), ("all", result)]:
        names = part.get("held_out", "")
        who = ", ".join(names) if isinstance(names, list) else str(names)
        known, length = part["training_labelers"], part["length_only"]
        lines.append([
            name, who, *accuracy_cells(part),
            *accuracy_cells(length)[:2], signed(part["ahead_of_length_only"]),
            *accuracy_cells(known)[:2],
        ])  # fmt: skip
    held_out = "conversations" if result["by"] == "prompts" else result["by"].replace("_", " ")
    head = ["fold", f"{held_out} held out", "accuracy", "95 % interval", "pairs", "prompts"]
    head += ["length only", "95 % interval", "ahead of it by", "training labelers", "95 % interval"]
    mean = f"{number(result['fold_mean'])} +- {number(result['fold_standard_error'])}"
    return (
        f"# Cross-validation by {result['by'].replace('_', ' ')}\n\n{table(head, lines)}\n\nMean of the folds {mean}.\n"
    )
