"""Which rows are trained on and which are held out in each fold, and the folds that a run has finished."""

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
        known, learned = set(train[COLUMN[by]]), set(train["prompt_id"])
        labels = zip(validation[COLUMN[by]], validation["prompt_id"], strict=True)
        seen = [i for i, (key, prompt) in enumerate(labels) if key in known and prompt not in learned]
        parts.append(_of_group(validation.select(seen), TRAINING))
    return _of_group(train, TRAINING), concatenate_datasets([part for part in parts if len(part)])


def _of_group(dataset: Dataset, group: str) -> Dataset:
    return dataset.remove_columns("labeler_group").add_column("labeler_group", [group] * len(dataset))


class FinishedFolds:
    """`fold-1.json`, `fold-2.json`, ... in a run's folder: what each fold found, so that a run can go on after a stop.

    Attributes:
        found: by fold, from 0.
    """

    def __init__(self, folder: str | Path, settings: dict[str, Any], resume: bool):
        """Reads the folds that are there, or deletes them.

        Args:
            folder: of the run.
            settings: all that decides what a fold finds, as JSON has it; kept with every fold.
            resume: go on after the folds that are there.

        Raises:
            InputError: no fold is there to go on from, or one was found with other settings.
        """
        self.folder, self.settings = Path(folder), json.loads(json.dumps(settings))
        files = {int(path.stem.removeprefix("fold-")) - 1: path for path in self.folder.glob("fold-*.json")}
        if resume and not files:
            raise InputError(f"{folder} holds no finished fold to resume from; leave resume_from_checkpoint out.")
        self.found = {fold: self._read(path) for fold, path in files.items()} if resume else {}
        if not resume and is_first_process():
            for path in files.values():
                path.unlink()

    def add(self, fold: int, found: dict[str, Any]) -> None:
        """Keeps what the fold found, on the disk as a whole or not at all (first process only)."""
        self.found[fold] = found
        if not is_first_process():
            return
        path = self.folder / f"fold-{fold + 1}.json"
        partial = path.with_suffix(".partial")
        partial.write_text(json.dumps({"settings": self.settings, "found": found}) + "\n", encoding="utf-8")
        fsync(partial)
        partial.replace(path)

    def _read(self, path: Path) -> dict[str, Any]:
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            theirs, found = content["settings"], content["found"]
        except (ValueError, KeyError, TypeError) as error:
            raise InputError(f"{path} is damaged; delete it, and the fold is run again.") from error
        for name in sorted(self.settings.keys() | theirs.keys()):
            if self.settings.get(name) != theirs.get(name):
                raise InputError(
                    f"{path} was found with {name} {theirs.get(name)}, not {self.settings.get(name)}, and folds that "
                    "differ in more than their rows have no mean; make it the same, or leave resume_from_checkpoint "
                    "out to start anew."
                )
        return found


def rows_digest(*datasets: Dataset) -> str:
    """A hash of all rows, to tell whether they are those of an earlier run."""
    digest = hashlib.sha256()
    for rows in datasets:
        digest.update(b"\n")
        for row in rows:
            digest.update(json.dumps(row, sort_keys=True).encode())
    return digest.hexdigest()[:16]
