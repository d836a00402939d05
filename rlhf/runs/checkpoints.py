"""Where a training goes on after an interruption, and checkpoints that are there as a whole or not at all."""

import json
import os
import re
import shutil
from pathlib import Path

from transformers import TrainingArguments
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, rotate_checkpoints

from rlhf.errors import InputError

PARTIAL = ".partial-checkpoint"  # in output_dir; what is in it was never finished


class AtomicCheckpoints:
    """For a transformers.Trainer: a checkpoint appears under its name only when all of it is on the disk.

    The Trainer writes into a folder of another name, which is synchronised and renamed at the end. A process that is
    killed while it saves leaves that folder, which nothing reads and the next checkpoint replaces.

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
        self.accelerator.wait_for_everyone()  # every process has written its part
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
        """Not from the folder that is about to be renamed."""


def commit_folder(written: Path, name: Path) -> None:
    """Gives the folder `written` its `name` once all that is in it has reached the disk."""
    for path in sorted(written.rglob("*"), reverse=True):
        fsync(path)
    fsync(written)
    if name.exists():  # a run that was started again, or went on from an earlier step, overwrites it
        old = written.parent / f"old-{name.name}"
        name.rename(old)
        written.rename(name)
        shutil.rmtree(old)
    else:
        written.rename(name)
    fsync(name.parent)


def fsync(path: Path) -> None:
    """Writes a file, or the entries of a folder, from memory to the disk."""
    if os.name == "nt" and path.is_dir():  # Windows opens no folders
        return
    file = os.open(path, os.O_RDONLY)
    try:
        os.fsync(file)
    finally:
        os.close(file)


def find_checkpoint(args: TrainingArguments) -> str | None:
    """The checkpoint that `resume_from_checkpoint` means, for `trainer.train`; None to start anew.

    Args:
        args: `resume_from_checkpoint` is a checkpoint's folder, or `true` for the last whole one in `output_dir`.

    Raises:
        InputError: there is no such checkpoint.
    """
    wanted = args.resume_from_checkpoint
    if wanted is None or str(wanted).lower() == "false":
        return None
    if str(wanted).lower() == "true":
        whole = complete_checkpoints(args.output_dir)
        if not whole:
            raise InputError(f"{args.output_dir} holds no checkpoint to resume from; leave resume_from_checkpoint out.")
        return str(whole[-1])
    if not is_complete(Path(wanted)):
        raise InputError(f"resume_from_checkpoint {wanted} is not the folder of a checkpoint (no trainer_state.json).")
    return str(wanted)


def complete_checkpoints(output_dir: str | Path) -> list[Path]:
    """The checkpoints in a run's folder, the oldest first, without those that were never finished."""
    named = {path: re.fullmatch(rf"{PREFIX_CHECKPOINT_DIR}-(\d+)", path.name) for path in Path(output_dir).glob("*")}
    steps = {path: int(match[1]) for path, match in named.items() if match and is_complete(path)}
    return sorted(steps, key=steps.get)


def is_complete(checkpoint: Path) -> bool:
    """Whether the file that every Trainer writes last is there and complete."""
    try:
        json.loads((checkpoint / TRAINER_STATE_NAME).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return True
