"""Checkpoints that are saved completely or not at all, know their run, and are resumed by their own run alone."""

import logging
import os
import shutil
from pathlib import Path
from typing import cast

import torch
from datasets import Dataset
from torch import Tensor, nn
from transformers import Trainer, TrainerState
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from rlhf.errors import InputError, NotFiniteError, first_line, is_damage
from rlhf.runs.batches import ROWS
from rlhf.runs.contract import Contract, write_contract
from rlhf.runs.decisive_options import decisive_options
from rlhf.runs.digests import base_identity, frozen_digest, rows_entry
from rlhf.runs.resume import check_resume, complete_checkpoints, is_complete, rows_of_checkpoint
from rlhf.runs.timed import MARK, SaveByTime, is_timed

logger = logging.getLogger(__name__)

PARTIAL = ".partial-checkpoint"  # in output_dir; holds a checkpoint that is not complete


class AtomicCheckpoints(Trainer):
    """Mixin for transformers.Trainer: a checkpoint gets its name only after all its files are on the disk.

    A checkpoint holds the contract of its run (`rlhf.runs.contract`), and `train` refuses to resume from that of
    another run. A recipe sets `contract`; without one, the trainer knows its own options and rows.

    The Trainer writes into a staging folder, which is synchronized to the disk and then renamed. A process that is
    killed while it saves leaves the staging folder. Nothing reads it, and the next checkpoint replaces it.

        class SFTTrainer(AtomicCheckpoints, trl.SFTTrainer): ...
    """

    stage: str | None = None  # a trainer without one, such as a test's, writes no contract
    contract: Contract | None = None
    steps_taken = 0  # by the last `train`, without those of the checkpoint that it resumed from

    _staging: Path | None = None
    _best: str | None = None  # best checkpoint of the run before it resumed

    def train(self, resume_from_checkpoint: str | bool | None = None, *args, **kwargs):
        """Trains as transformers' Trainer does.

        Raises:
            InputError: the checkpoint is of another run, or beyond the end of this one; or the loss is not finite.
            KeyboardInterrupt: the user or the system stopped the run; its message says how to go on.
        """
        checkpoint = self._checkpoint(resume_from_checkpoint)
        if self.stage is not None:
            self.contract = self.contract or self.own_contract()
            check_resume(checkpoint, self.contract)
        self._check_rows(checkpoint)
        start = self._start(checkpoint)  # read now: the next checkpoints may replace this one
        if not any(isinstance(callback, SaveByTime) for callback in self.callback_handler.callbacks):
            self.add_callback(SaveByTime())
        try:
            output = super().train(resume_from_checkpoint, *args, **kwargs)
        except KeyboardInterrupt as error:
            raise KeyboardInterrupt(self._how_to_go_on()) from error
        except Exception as error:
            if checkpoint is not None and is_damage(error):
                raise InputError(
                    f"{checkpoint} is damaged: {first_line(error)}. Resume from an earlier checkpoint of its folder, "
                    "or start again with --overwrite_output_dir true."
                ) from error
            if self.state.global_step > start and not isinstance(error, NotFiniteError):
                error.add_note(f"The run {self._how_to_go_on()}")
            raise
        self._count_steps(start, checkpoint)
        return output

    def training_step(self, *args, **kwargs) -> Tensor:
        """Trains on a batch as transformers' Trainer does, which would go on with a loss that is not finite."""
        loss = super().training_step(*args, **kwargs)
        if not torch.isfinite(loss):
            raise NotFiniteError(
                f"The loss is {loss.item()} after {self.state.global_step} steps. Start again with a learning_rate "
                f"below {self.args.learning_rate:g}, or with --bf16 false and --dtype float32."
            )
        return loss

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Writes the contract beside the adapter that transformers' Trainer saves."""
        super().save_model(output_dir, _internal_call)
        if self.args.should_save and self.contract is not None:
            write_contract(output_dir or str(self.args.output_dir), self.contract)

    def own_contract(self) -> Contract:
        """Returns what the trainer itself knows of its run: frozen networks, such as the reward model, among it."""
        options, defaults = decisive_options(self.args)
        base = getattr(getattr(self.model, "config", None), "_name_or_path", None)
        rows = {"train": self.train_dataset} | ({"eval": self.eval_dataset} if self.stage == "sft" else {})
        known = {name: value for name, value in rows.items() if isinstance(value, Dataset)}
        return Contract(
            stage=str(self.stage),
            base=base_identity(base) if base else {},
            rows={name: rows_entry(value) for name, value in known.items()},
            seed=self.args.seed,
            options=options,
            defaults=defaults,
            parents={"frozen_weights": frozen} if (frozen := frozen_digest(cast(nn.Module, self.model))) else {},
        )

    def _checkpoint(self, option: str | bool | None) -> Path | None:
        """Returns the complete checkpoint that `train` resumes from; None without one (the Trainer then raises)."""
        if option is True:
            return next(reversed(complete_checkpoints(str(self.args.output_dir))), None)
        return Path(option) if option and is_complete(Path(option)) else None

    def _check_rows(self, checkpoint: Path | None) -> None:
        """Raises InputError if the rows of a pass were chosen without regard to the checkpoint.

        They are chosen when the trainer is made, by `args.resume_from_checkpoint`.
        """
        if ROWS not in getattr(self.args, "computed", ()):
            return
        rows = self.args.per_device_train_batch_size
        theirs = rows_of_checkpoint(checkpoint, rows * self.args.gradient_accumulation_steps)
        if theirs not in (None, rows):
            raise InputError(
                f"{checkpoint} was trained with {theirs} rows of a step at a time, and {ROWS}: auto has chosen {rows}. "
                f"Set {ROWS} to {theirs}, or resume_from_checkpoint in the trainer's args, too."
            )

    def _start(self, checkpoint: Path | None) -> int:
        """Returns the step of a checkpoint, 0 for None, and finds its best checkpoint beside it.

        The Trainer forgets the best checkpoint of a run whose folder was moved, and would let it be deleted.
        """
        if checkpoint is None:
            return 0
        state = TrainerState.load_from_json(str(checkpoint / TRAINER_STATE_NAME))
        self._best = state.best_model_checkpoint and str(checkpoint.parent / Path(state.best_model_checkpoint).name)
        return state.global_step

    def _count_steps(self, start: int, checkpoint: Path | None) -> None:
        self.steps_taken = self.state.global_step - start
        if start > self.state.max_steps:
            raise InputError(
                f"{checkpoint} is beyond the end of this run, which has {self.state.max_steps} steps. Resume from an "
                "earlier checkpoint, or train longer."
            )
        if self.steps_taken == 0:
            logger.warning("no step was taken: %s is the end of this run, and the result is its own", checkpoint)

    def _how_to_go_on(self) -> str:
        checkpoints = complete_checkpoints(str(self.args.output_dir))
        stopped = f"stopped at step {self.state.global_step} of {self.state.max_steps}"
        if not checkpoints:
            return f"{stopped}, before the first checkpoint. Start it again."
        step = checkpoints[-1].name.rpartition("-")[2]
        return f"{stopped}. Go on from step {step} with --resume_from_checkpoint true."

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
            callbacks = self.callback_handler.callbacks
            if any(isinstance(c, SaveByTime) and c.step == self.state.global_step for c in callbacks):
                (folder / PARTIAL / name / MARK).write_text("to resume from\n", encoding="utf-8")
            self.state.save_to_json(str(folder / PARTIAL / name / TRAINER_STATE_NAME))
            commit_folder(folder / PARTIAL / name, folder / name)
            shutil.rmtree(folder / PARTIAL)
            best = self.state.best_model_checkpoint or self._best
            rotate(folder, folder / name, self.args.save_total_limit, best)
        self.accelerator.wait_for_everyone()
        if self.args.push_to_hub:
            self.push_checkpoint(str(folder / name))

    def push_checkpoint(self, folder: str) -> None:
        """Uploads a complete checkpoint, with `hub_strategy: every_save`."""
        super()._push_from_checkpoint(folder)

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        """Does nothing: the staging folder will be renamed. `_save_checkpoint` pushes the renamed folder."""


def rotate(folder: Path, newest: Path, limit: int | None, best: str | None) -> None:
    """Deletes the checkpoints by the clock before `newest`, and the oldest others beyond `limit`.

    The newest checkpoint and the best one stay.
    """
    protected = {newest, Path(best or newest)}
    others = [path for path in complete_checkpoints(folder) if path not in protected]
    others.sort(key=lambda path: path.stat().st_mtime)  # a run that was resumed earlier may have left later steps
    regular = [path for path in others if not is_timed(path)]
    surplus = 0
    if limit is not None and limit > 0:
        surplus = len(regular) - max(0, limit - sum(not is_timed(path) for path in protected))
    for path in [path for path in others if is_timed(path)] + regular[: max(0, surplus)]:
        shutil.rmtree(path)


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
