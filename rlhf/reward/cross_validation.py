"""Accuracy on labelers, or prompts, that the model has not learned from (arXiv 2203.02155, section 3.5: five folds).

Each fold trains a model on the other four and predicts the pairs of the one held out, so that every row of the training
data is predicted once. Beside it stands what length alone would predict.
"""

import gc
import random
from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
from datasets import Dataset, concatenate_datasets

from rlhf.errors import InputError
from rlhf.reward.accuracy import agreement
from rlhf.reward.clusters import clustered_accuracy, clustered_difference
from rlhf.reward.length import fit_length_model
from rlhf.reward.report import accuracy_cells, signed, table
from rlhf.reward.trainer import KWiseRewardTrainer

FOLDS = 5
COLUMN = {"labelers": "labeler_id", "labeler_groups": "labeler_group", "prompts": "prompt_id"}
TRAINING, HELD_OUT = "training", "heldout"

MakeTrainer = Callable[[Dataset, Dataset], KWiseRewardTrainer]


def cross_validate(
    make_trainer: MakeTrainer, rows: Dataset, validation: Dataset, by: str, seed: int = 0
) -> dict[str, Any]:
    """Trains and evaluates once for each fold.

    Args:
        make_trainer: (training rows, evaluation rows) -> a trainer with a fresh model.
        rows: of `tokenize_comparisons`, all of which are held out once.
        validation: such rows that are never trained on. Where labelers are held out, those of them that the other
            labelers ranked show how much worse the model does on people it does not know.
        by: "labelers", "labeler_groups" or "prompts".
        seed: of the division into folds.

    Returns:
        `folds`: for each `held_out` (the labelers or groups, or the number of conversations), `n_train` and the numbers
        of `_fold_result`; the same numbers over all folds; `fold_mean` and `fold_standard_error` of the accuracy.

    Raises:
        InputError: rows do not say who ranked them, or there are too few labelers or prompts to hold one out.
    """
    fold_of = assign_folds(rows[COLUMN[by]], by, seed)
    folds, pooled = [], []
    for fold in range(max(fold_of) + 1):
        train, evaluation = fold_rows(rows, validation, fold_of, fold, by)
        trainer = make_trainer(train, evaluation)
        trainer.train()
        pairs = trainer.predictions(trainer.eval_dataset).pairs()
        from_length = agreement(fit_length_model(length_differences(train)) * pairs.length_differences)
        known = pairs.labeler_group_ids == trainer.labeler_groups.index(TRAINING)
        part = (pairs.correct, from_length, pairs.prompt_ids, known)
        held_out = sorted({key for key, number in zip(rows[COLUMN[by]], fold_of, strict=True) if number == fold})
        names = len(held_out) if by == "prompts" else held_out
        folds.append({"held_out": names, "n_train": len(train), **_fold_result(*part)})
        pooled.append(part)
        del trainer
        gc.collect()
    accuracies = [fold["accuracy"] for fold in folds]
    return {
        "by": by,
        **_fold_result(*map(np.concatenate, zip(*pooled, strict=True))),
        "fold_mean": float(np.mean(accuracies)),
        "fold_standard_error": float(np.std(accuracies, ddof=1) / np.sqrt(len(accuracies))),
        "folds": folds,
    }


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


def assign_folds(keys: list[str] | list[int], by: str, seed: int = 0) -> list[int]:
    """The fold of each row, such that equal keys share one and the folds have about equally many rows.

    Keys go, the most frequent first, to the fold that has the fewest rows so far. Groups of labelers are a fold each.

    Raises:
        InputError: fewer than two different keys, or rows without one.
    """
    counts = Counter(keys)
    if "" in counts:
        raise InputError(
            f"cross_validate: {by} needs the column {COLUMN[by]} in all comparisons; {counts['']} of {len(keys)} rows "
            "have none. Add it, or cross-validate by prompts."
        )
    if len(counts) < 2:
        raise InputError(f"cross_validate: {by} needs at least 2 different values of {COLUMN[by]}; there is 1.")
    order = sorted(counts)
    random.Random(seed).shuffle(order)
    order.sort(key=counts.__getitem__, reverse=True)  # stable, so equally frequent keys stay shuffled
    sizes = [0] * (len(counts) if by == "labeler_groups" else min(FOLDS, len(counts)))
    fold = {}
    for key in order:
        fold[key] = sizes.index(min(sizes))
        sizes[fold[key]] += counts[key]
    return [fold[key] for key in keys]


def fold_rows(rows: Dataset, validation: Dataset, fold_of: list[int], fold: int, by: str) -> tuple[Dataset, Dataset]:
    """Rows to train on, and rows to predict: those held out, group "heldout", and validation rows, group "training".

    A conversation that is held out is not trained on either, whoever ranked it: the accuracy is to say how well the
    model knows the labelers, not how well it remembers the completions.
    """
    held_out = rows.select([i for i, number in enumerate(fold_of) if number == fold])
    unseen = set(held_out["prompt_id"])
    train = rows.select(
        [
            i
            for i, (n, prompt) in enumerate(zip(fold_of, rows["prompt_id"], strict=True))
            if n != fold and prompt not in unseen
        ]
    )
    if not len(train):
        raise InputError(
            f"cross_validate: {by} leaves nothing to train on, since every prompt was ranked by all; "
            "cross-validate by prompts."
        )
    parts = [_of_group(held_out, HELD_OUT)]
    if by != "prompts":
        known = set(train[COLUMN[by]])
        seen = [i for i, key in enumerate(validation[COLUMN[by]]) if key in known]
        offset = max(rows["prompt_id"]) + 1  # the two splits number their conversations each on its own
        others = _of_group(validation.select(seen), TRAINING)
        parts.append(others.map(lambda row: {"prompt_id": row["prompt_id"] + offset}) if seen else others)
    return _of_group(train, TRAINING), concatenate_datasets([part for part in parts if len(part)])


def _of_group(dataset: Dataset, group: str) -> Dataset:
    return dataset.remove_columns("labeler_group").add_column("labeler_group", [group] * len(dataset))


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
    mean = f"{result['fold_mean']:.3f} +- {result['fold_standard_error']:.3f}"
    return (
        f"# Cross-validation by {result['by'].replace('_', ' ')}\n\n{table(head, lines)}\n\nMean of the folds {mean}.\n"
    )
