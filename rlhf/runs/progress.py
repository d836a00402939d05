"""The table of a training on the console: a few columns of the metrics, in place of transformers' dict of all."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from tqdm.auto import tqdm
from transformers import PrinterCallback, ProgressCallback, Trainer, TrainerCallback

from rlhf.runs.console import clock, duration, say, show, show_device, show_model
from rlhf.runs.stage_report import LiveReport
from rlhf.runs.trackers import name_runs

ROWS = 6  # of a run, at most, unless they are five minutes apart
ROW_SECONDS = 300.0
ESTIMATE_SECONDS = 60.0  # after which the time is estimated
LONG = 600.0  # seconds left, from which a line says when the run will end; shorter runs have the column


@dataclass(frozen=True)
class Column:
    """A column: title, the metric it shows, and how; `form` gets the value."""

    title: str
    metric: str
    form: Callable[[Any], str] = "{:.3f}".format


def _whole(value: float) -> str:
    return f"{value:,.0f}"


STEP, EPOCH = Column("step", "step", _whole), Column("epoch", "epoch", "{:.2f}".format)
LOSS, VALIDATION = Column("loss", "loss"), Column("val. loss", "eval_loss")
RATE = Column("learning rate", "learning_rate", "{:.2e}".format)
SPEED, LEFT = Column("tokens/s", "tokens_per_s", _whole), Column("time left", "left", duration)

COLUMNS: dict[str, tuple[Column, ...]] = {
    "pretrain": (STEP, EPOCH, LOSS, VALIDATION, RATE, LEFT),
    "sft": (STEP, EPOCH, LOSS, VALIDATION, RATE, SPEED, LEFT),
    "reward": (STEP, EPOCH, LOSS, Column("accuracy", "accuracy"), Column("val. accuracy", "eval_accuracy"), RATE, LEFT),
    "ppo": (
        Column("episodes", "episode", _whole),
        Column("reward", "objective/score"),
        Column("KL", "objective/kl", "{:.2f}".format),
        Column("length", "rollout/length", "{:.1f}".format),
        Column("entropy", "objective/entropy", "{:.2f}".format),
        LEFT,
    ),
}


def watch(trainer: Trainer, stage: str, model_name: str) -> None:
    """Makes a trainer print the table of its stage instead of transformers' bar and dict, and keep report.html.

    Args:
        stage: key of `COLUMNS`.
        model_name: of the base, for the line about its parameters.
    """
    for callback in (ProgressCallback, PrinterCallback):
        trainer.remove_callback(callback)
    name_runs(trainer, stage)
    trainer.add_callback(LiveReport(stage))
    trainer.add_callback(ProgressTable(COLUMNS[stage], model_name, bar=stage != "ppo"))  # sampling has a bar of its own


class ProgressTable(TrainerCallback):
    """Prints model, length of the run and device as training begins, then about eight rows, or one in five minutes.

    A row holds the latest value of each metric since the row before, so that a validation loss stands beside the
    training loss of about the same step. A row is printed when the next step begins, after the evaluation of its own.

    Args:
        bar: show tqdm's bar of steps where stderr is a terminal.
    """

    def __init__(self, columns: Sequence[Column], model_name: str, bar: bool = True):
        self.columns, self.model_name, self.show_bar = columns, model_name, bar
        self.bar: tqdm | None = None

    def on_train_begin(self, args, state, control, model=None, **kwargs):
        self.active = state.is_world_process_zero
        self.started = self.printed = time.monotonic()
        self.first_step, self.next_row = state.global_step, 0.0
        self.values: dict[str, Any] = {}
        self.left: float | None = None
        self.estimated = self.headed = False
        self.tokens, self.spent = 0.0, 0.0  # at the last log; seconds of training until then
        self.evaluating = 0.0  # seconds of evaluation so far
        if not self.active:
            return
        if model is not None:
            show_model(self.model_name, model)
        show("run", plan(args, state))
        show_device(args.device, args.world_size)
        hidden = args.disable_tqdm or not self.show_bar
        self.bar = tqdm(
            total=state.max_steps, initial=state.global_step, unit="step", leave=False, disable=hidden or None
        )

    def on_step_begin(self, args, state, control, **kwargs):
        self._print_row(state)

    def on_step_end(self, args, state, control, **kwargs):
        if not self.active:
            return
        elapsed, done = time.monotonic() - self.started, state.global_step - self.first_step
        if state.global_step % getattr(args, "steps_per_rollout", 1) == 0:  # the steps of a rollout are not even
            self.left = elapsed / done * (state.max_steps - state.global_step)
        if self.bar is not None:
            self.bar.update(state.global_step - self.bar.n)

    def on_log(self, args, state, control, logs=None, **kwargs):
        if not getattr(self, "active", False) or not logs:
            return
        self.evaluating += logs.get("eval_runtime", 0.0)
        if "loss" in logs:
            self.values |= {"step": state.global_step} | self._speed(logs)
        self.values |= logs | {"epoch": state.epoch}

    def on_train_end(self, args, state, control, **kwargs):
        self.left = 0.0
        self._print_row(state, last=True)
        self.active = False
        if self.bar is not None:
            self.bar.close()

    def _speed(self, logs: dict[str, float]) -> dict[str, float]:
        """Returns tokens per second of training since the last log, if the stage counts tokens."""
        tokens, spent = logs.get("num_tokens"), time.monotonic() - self.started - self.evaluating
        if tokens is None or tokens <= self.tokens:
            return {}
        speed = (tokens - self.tokens) / max(spent - self.spent, 1e-9)
        self.tokens, self.spent = tokens, spent
        return {"tokens_per_s": speed}

    def _print_row(self, state, last: bool = False) -> None:
        if not self.active:
            return
        now, lines = time.monotonic(), []
        if self.left is not None and not self.estimated and now - self.started >= ESTIMATE_SECONDS:
            self.estimated = True
            if self.left >= LONG:
                lines.append(f"estimate  {duration(now - self.started + self.left)} in all, until {clock(self.left)}")
        due = state.global_step >= self.next_row or now - self.printed >= ROW_SECONDS
        if "loss" in self.values and (due or last):
            if not self.headed:
                lines += [row_text([column.title for column in self.columns], self.columns)]
            self.headed, self.printed = True, now
            self.next_row = (state.global_step * ROWS // state.max_steps + 1) * state.max_steps / ROWS
            values = self.values | {"left": self.left}
            known = [values.get(column.metric) for column in self.columns]
            cells = ["" if v is None else column.form(v) for v, column in zip(known, self.columns, strict=True)]
            lines.append(row_text(cells, self.columns))
            self.values = {}
        if lines:
            say(*lines)


def row_text(cells: Sequence[str], columns: Sequence[Column]) -> str:
    """Returns one line of the table, its cells flush right."""
    return "  ".join(f"{cell:>{max(9, len(column.title))}}" for cell, column in zip(cells, columns, strict=True))


def plan(args: Any, state: Any) -> str:
    """Returns the length of a run in words: steps, rows or episodes, and where it resumes."""
    if hasattr(args, "rollout_size"):
        episodes = state.max_steps // args.steps_per_rollout * args.rollout_size
        text = f"{episodes:,} episodes in rollouts of {args.rollout_size:,}, {args.steps_per_rollout} steps each"
    else:
        rows = args.train_batch_size * args.gradient_accumulation_steps * args.world_size
        epochs = "epoch" if state.num_train_epochs == 1 else "epochs"
        text = f"{state.num_train_epochs:g} {epochs}, {state.max_steps:,} steps of {rows:,} row{'s' * (rows > 1)}"
    return text + (f"; resumed after step {state.global_step:,}" if state.global_step else "")
