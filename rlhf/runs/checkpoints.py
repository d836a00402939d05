"""Checkpoints that are saved completely or not at all, and the one that a run resumes from."""

import json
import os
import re
import shutil
from pathlib import Path

from transformers import Trainer, TrainingArguments
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, rotate_checkpoints

from rlhf.errors import InputError

PARTIAL = ".partial-checkpoint"  # in output_dir; holds a checkpoint that is not complete


class AtomicCheckpoints(Trainer):
    """Mixin for transformers.Trainer: a checkpoint gets its name only after all its files are on the disk.

    The Trainer writes into a staging folder, which is synchronized to the disk and then renamed. A process that is
    killed while it saves leaves the staging folder. Nothing reads it, and the next checkpoint replaces it.

        class SFTTrainer(AtomicCheckpoints, trl.SFTTrainer): ...
    """

    _staging: Path | None = None

    def _get_output_dir(self, trial) -> str:
        return str(self._staging or super()._get_output_dir(trial))

    def _save_checkpoint(self, model, trial) -> None:
        folder = Path(self._get_output_dir(trial))
        name = f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}"
        if self.args.should_save:
            shutil.rmtree(folder / PARTIAL, ignore_errors=True)
        self.accelerator.wait_for_everyone()
        self._staging = folder / PARTIAL
        try:
            super()._save_checkpoint(model, trial)
        finally:
            self._staging = None
        self.accelerator.wait_for_everyone()  # every process has written its files
        if self.state.best_model_checkpoint == str(folder / PARTIAL / name):
            self.state.best_model_checkpoint = str(folder / name)
        if self.args.should_save:
            self.state.save_to_json(str(folder / PARTIAL / name / TRAINER_STATE_NAME))
            commit_folder(folder / PARTIAL / name, folder / name)
            shutil.rmtree(folder / PARTIAL)
            rotate_checkpoints(
                output_dir=str(folder),
                save_total_limit=self.args.save_total_limit,
                best_model_checkpoint=self.state.best_model_checkpoint,
                use_mtime=True,
            )
        self.accelerator.wait_for_everyone()
        if self.args.push_to_hub:
            super()._push_from_checkpoint(str(folder / name))

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        """Does nothing: the staging folder will be renamed. `_save_checkpoint` pushes the renamed folder."""


def commit_folder(written: Path, name: Path) -> None:
    """Renames the folder `written` to `name` after all its files have reached the disk."""
    for path in sorted(written.rglob("*"), reverse=True):
        fsync(path)
    fsync(written)
    if name.exists():  # from an earlier run, or from before a run resumed at an earlier step
        old = written.parent / f"old-{name.name}"
        name.rename(old)
        written.rename(name)
        shutil.rmtree(old)
    else:
        written.rename(name)
    fsync(name.parent)


def fsync(path: Path) -> None:
    """Flushes a file, or the entries of a folder, to the disk."""
    if os.name == "nt" and path.is_dir():  # Windows cannot open folders
        return
    file = os.open(path, os.O_RDONLY)
    try:
        os.fsync(file)
    finally:
        os.close(file)


def find_checkpoint(args: TrainingArguments) -> str | None:
    """Returns the checkpoint for `trainer.train`; None to train from the beginning.

    Args:
        args: `resume_from_checkpoint` is a checkpoint's folder, or `true` for the last complete one in `output_dir`.

    Raises:
        InputError: that checkpoint does not exist or is not complete.
    """
    option = args.resume_from_checkpoint
    if option is None or str(option).lower() == "false":
        return None
    if str(option).lower() == "true":
        assert args.output_dir is not None, "TrainingArguments replaces None"
        checkpoints = complete_checkpoints(args.output_dir)
        if not checkpoints:
            raise InputError(f"{args.output_dir} holds no checkpoint to resume from. Leave resume_from_checkpoint out.")
        return str(checkpoints[-1])
    if not is_complete(Path(option)):
        raise InputError(
            f"resume_from_checkpoint {option} is not the folder of a checkpoint (its trainer_state.json is missing "
            "or damaged). Pass a checkpoint-<step> folder, or true for the last one in output_dir."
        )
    return str(option)


def complete_checkpoints(output_dir: str | Path) -> list[Path]:
    """Returns the complete checkpoints in a run's folder, the oldest first."""
    named = {path: re.fullmatch(rf"{PREFIX_CHECKPOINT_DIR}-(\d+)", path.name) for path in Path(output_dir).glob("*")}
    steps = {path: int(match[1]) for path, match in named.items() if match and is_complete(path)}
    return sorted(steps, key=steps.__getitem__)


def is_complete(checkpoint: Path) -> bool:
    """True if the file that every Trainer writes last exists and is valid JSON."""
    try:
        json.loads((checkpoint / TRAINER_STATE_NAME).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return True
