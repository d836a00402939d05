"""Checkpoints by the clock, so that a stop loses minutes at most."""

import time
from pathlib import Path

import torch
from accelerate import PartialState
from transformers import TrainerCallback
from transformers.trainer_utils import SaveStrategy

MINUTES = 10.0
MARK = "saved_by_time"  # a file in such a checkpoint


class SaveByTime(TrainerCallback):
    """Saves a checkpoint when the last one is ten minutes old, unless `save_strategy` is "no".

    Such a checkpoint is there to resume from. It is no candidate of the choice of an epoch, and the next checkpoint
    replaces it (`rlhf.runs.checkpoints.rotate`). The first process's clock decides for all.
    """

    def __init__(self, minutes: float = MINUTES):
        self.seconds = 60 * minutes
        self.saved = time.monotonic()
        self.step: int | None = None  # at which the clock asked for a checkpoint

    def on_train_begin(self, args, state, control, **kwargs):
        self.saved = time.monotonic()

    def on_step_end(self, args, state, control, **kwargs):
        if control.should_save or args.save_strategy == SaveStrategy.NO or state.global_step >= state.max_steps:
            return
        if _agreed(time.monotonic() - self.saved >= self.seconds):
            control.should_save, self.step = True, state.global_step

    def on_save(self, args, state, control, **kwargs):
        self.saved, self.step = time.monotonic(), None


def _agreed(due: bool) -> bool:
    """Returns the first process's answer on every process."""
    state = PartialState()
    if state.num_processes == 1:
        return due
    answer = torch.tensor([due], dtype=torch.uint8, device=state.device)
    torch.distributed.broadcast(answer, src=0)
    return bool(answer.item())


def is_timed(checkpoint: Path) -> bool:
    return (checkpoint / MARK).exists()
