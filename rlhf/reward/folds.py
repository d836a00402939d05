"""Folds of cross-validation: the rows to train on and to hold out, and the folds that a run has finished."""

import hashlib
import json
import random
from collections import Counter
from pathlib import Path
from typing import Any

from datasets import Dataset, concatenate_datasets

from rlhf.errors import InputError
from rlhf.runs.artifacts import is_first_process
from rlhf.runs.checkpoints import fsync

FOLDS = 5
COLUMN = {"labelers": "labeler_id", "labeler_groups": "labeler_group", "prompts": "prompt_id"}
TRAINING, HELD_OUT = "training", "heldout"


def assign_folds(keys: list[str] | list[int], by: str, seed: int = 0) -> list[int]:
    """Returns the fold of each row. Rows with equal keys share a fold, and folds have about equally many rows.

    Each key goes to the fold with the fewest rows so far, the most frequent key first. Each labeler group is a fold of
    its own.

    Raises:
        InputError: fewer than two different keys, or rows without a key.
    """
    counts = Counter(keys)
    if "" in counts:
        raise InputError(
            f"cross_validate: {by} needs the column {COLUMN[by]} in all comparisons; {counts['']} of {len(keys)} rows "
            "have none. Add it, or set cross_validate to prompts."
        )
    if len(counts) < 2:
        raise InputError(
            f"cross_validate: {by} needs at least 2 different values of {COLUMN[by]}, but there is 1. "
            "Drop cross_validate."
        )
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
    """Returns the rows to train on and the rows to predict of one fold.

    The rows to predict are those held out, with labeler_group "heldout", and validation rows of the training labelers,
    with labeler_group "training". Training rows of a held-out conversation are dropped, whoever ranked them, because
    the accuracy must show how well the model knows the labelers, not how well it remembers the completions.

    Raises:
        InputError: no row is left to train on.
    """
    held_out = rows.select([i for i, number in enumerate(fold_of) if number == fold])
    unseen = set(held_out["prompt_id"])
    labels = zip(fold_of, rows["prompt_id"], strict=True)
    train = rows.select([i for i, (number, prompt) in enumerate(labels) if number != fold and prompt not in unseen])
    if not len(train):
        raise InputError(
            f"cross_validate: {by} leaves nothing to train on, because all {by.replace('_', ' ')} ranked every prompt. "
            "Set cross_validate to prompts."
        )
    evaluation = [_with_labeler_group(held_out, HELD_OUT)]
    if by != "prompts":
        known, learned = set(train[COLUMN[by]]), set(train["prompt_id"])
        labels = zip(validation[COLUMN[by]], validation["prompt_id"], strict=True)
        of_known = [i for i, (key, prompt) in enumerate(labels) if key in known and prompt not in learned]
        evaluation.append(_with_labeler_group(validation.select(of_known), TRAINING))
    return _with_labeler_group(train, TRAINING), concatenate_datasets([rows for rows in evaluation if len(rows)])


def _with_labeler_group(dataset: Dataset, name: str) -> Dataset:
    return dataset.remove_columns("labeler_group").add_column("labeler_group", [name] * len(dataset))


class FinishedFolds:
    """Finished folds in a run's folder (`fold-1.json`, `fold-2.json`, ...), after which a stopped run can resume.

    Attributes:
        predictions: of each finished fold, by its number from 0.
    """

    def __init__(self, folder: str | Path, settings: dict[str, Any], resume: bool):
        """Reads the folds in `folder`, or deletes them.

        Args:
            folder: of the run.
            settings: everything that determines a fold's predictions, as JSON values; saved with every fold.
            resume: if True, resumes after the folds in `folder`; if False, starts over.

        Raises:
            InputError: there is no fold to resume from, or a fold is damaged or has other settings.
        """
        self.folder, self.settings = Path(folder), json.loads(json.dumps(settings))
        files = {int(path.stem.removeprefix("fold-")) - 1: path for path in self.folder.glob("fold-*.json")}
        if resume and not files:
            raise InputError(f"{folder} holds no finished fold to resume from. Drop resume_from_checkpoint.")
        self.predictions = {fold: self._read(path) for fold, path in files.items()} if resume else {}
        if not resume and is_first_process():
            for path in files.values():
                path.unlink()

    def add(self, fold: int, predictions: dict[str, Any]) -> None:
        """Adds a fold; the first process writes its file atomically."""
        self.predictions[fold] = predictions
        if not is_first_process():
            return
        path = self.folder / f"fold-{fold + 1}.json"
        partial = path.with_suffix(".partial")
        content = {"settings": self.settings, "predictions": predictions}
        partial.write_text(json.dumps(content) + "\n", encoding="utf-8")
        fsync(partial)
        partial.replace(path)

    def _read(self, path: Path) -> dict[str, Any]:
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            settings, predictions = content["settings"], content["predictions"]
        except (ValueError, KeyError, TypeError) as error:
            raise InputError(f"{path} is damaged. Delete it to run the fold again.") from error
        for name in sorted(self.settings.keys() | settings.keys()):
            ours, theirs = self.settings.get(name), settings.get(name)
            if ours != theirs:
                raise InputError(
                    f"{path} was trained with {name} {theirs}, but this run has {ours}. Folds can be averaged only if "
                    f"they differ in their rows alone. Use the same {name}, or drop resume_from_checkpoint to start "
                    "over."
                )
        return predictions


def rows_digest(*datasets: Dataset) -> str:
    """Returns a hash of all rows, to detect that they differ from those of an earlier run."""
    digest = hashlib.sha256()
    for rows in datasets:
        digest.update(b"\n")
        for row in rows:
            digest.update(json.dumps(row, sort_keys=True).encode())
    return digest.hexdigest()[:16]
