"""report.html in a stage's folder: its curves and samples, drawn again while it trains, and when it ends.

The page needs no other file. The report of a whole recipe, one folder above, is `rlhf.evaluation.report`.
"""

import json
import logging
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from transformers import TrainerCallback

from rlhf.runs.artifacts import read_metrics

logger = logging.getLogger(__name__)

NAME = "report.html"
SECONDS = 60.0  # between two drawings, at least
SHARE = 0.02  # of the time that may go into drawing
SAMPLES_PER_STEP, SAMPLES = 2, 40
POINTS = 500  # of a curve, at most

# Title of the panel -> label of the line -> metric. Panels without a point are left out.
COMMON = {"Learning rate": {"learning rate": "learning_rate"}, "Norm of the gradient": {"norm": "grad_norm"}}
PANELS: dict[str, dict[str, dict[str, str]]] = {
    "pretrain": {"Loss": {"training": "loss", "validation": "eval_loss"}} | COMMON,
    "sft": {
        "Loss on responses, nats per token": {"training": "loss", "validation": "eval_loss"},
        "Share of tokens predicted": {"training": "mean_token_accuracy", "validation": "eval_mean_token_accuracy"},
        "Entropy, nats per token": {"training": "entropy", "validation": "eval_entropy"},
        **COMMON,
    },
    "reward": {
        "Loss": {"training": "loss", "validation": "eval_loss"},
        "Accuracy on pairs": {"training": "accuracy", "validation": "eval_accuracy"},
        "Reward": {"mean": "mean_reward", "highest": "max_reward"},
        "Difference of the scores of a pair": {"training": "margin"},
        **COMMON,
    },
    "ppo": {
        "Reward": {"training": "objective/score", "validation": "eval_objective/score"},
        "KL from the reference, nats per response": {"training": "objective/kl", "validation": "eval_objective/kl"},
        "Length, tokens": {"training": "rollout/length", "validation": "eval_rollout/length"},
        "Entropy, nats per response": {"training": "objective/entropy", "validation": "eval_objective/entropy"},
        "Share that ends by itself": {"training": "rollout/eos_rate", "validation": "eval_rollout/eos_rate"},
        "Value model: explained variance": {"explained variance": "val/explained_variance"},
        "Loss of the policy": {"policy": "loss/policy"},
        "Loss of the value model": {"value": "loss/value"},
        "Loss on pretraining text": {"text": "loss/ptx"},
        "Share of clipped ratios": {"clipped": "policy/clipfrac"},
        "Weight of the KL penalty": {"beta": "objective/kl_coef"},
        **COMMON,
    },
}


class LiveReport(TrainerCallback):
    """Draws the page after a log, at most once a minute, and so seldom that it takes 2 % of the time (first process).

    Args:
        stage: key of `PANELS`.
    """

    def __init__(self, stage: str):
        self.stage, self.due = stage, float("inf")

    def on_train_begin(self, args, state, control, **kwargs):
        self.due = time.monotonic() + SECONDS if state.is_world_process_zero else float("inf")

    def on_log(self, args, state, control, logs=None, **kwargs):
        started = time.monotonic()
        if started < self.due or not read_metrics(args.output_dir):
            return
        try:
            write_stage_report(args.output_dir, self.stage, f"step {state.global_step:,} of {state.max_steps:,}")
        except Exception as error:  # a full disk, or a fault of ours: the training goes on without the page
            logger.warning("%s is not drawn any more: %s", Path(args.output_dir) / NAME, error)
            self.due = float("inf")
            return
        spent = time.monotonic() - started
        self.due = started + spent + max(SECONDS, spent / SHARE)


def write_stage_report(folder: str | Path, stage: str, progress: str = "") -> Path:
    """Writes report.html of one stage's folder; returns its path.

    Args:
        folder: with metrics.jsonl and, if there are any, samples.jsonl and config.yaml.
        progress: how far the training is; "" for one that has ended. A page of a running one loads itself again.
    """
    from rlhf import plots  # not at the top: matplotlib takes a second to load

    folder = Path(folder).resolve()
    rows = read_metrics(folder)
    x, rows = with_episodes(rows)
    panels: list[tuple[str, dict[str, plots.Curve]]] = [
        (title, {label: line for label, metric in lines.items() if (line := points(rows, x, metric))[0]})
        for title, lines in PANELS[stage].items()
    ]
    panels = [panel for panel in panels if panel[1]]
    svg = plots.inline_svg(plots.curves(panels, x, columns=2), "curves") if panels else ""
    environment = Environment(
        loader=PackageLoader("rlhf.runs", "."), autoescape=True, undefined=StrictUndefined, trim_blocks=True,
        lstrip_blocks=True,
    )  # fmt: skip
    page = environment.get_template("stage_report.html.j2").render(
        title=f"{stage}: {folder.parent.name}/{folder.name}",
        state=f"Training, {progress}, at {time.strftime('%H:%M')}" if progress else _end(folder),
        running=bool(progress),
        seconds=round(SECONDS),
        figure=Markup(svg),
        samples=read_samples(folder / "samples.jsonl"),
        config=(folder / "config.yaml").read_text(encoding="utf-8") if (folder / "config.yaml").exists() else "",
    )
    new = folder / f".{NAME}.new"
    new.write_text(page, encoding="utf-8", errors="replace")
    os.replace(new, folder / NAME)  # a browser never reads half a page
    return folder / NAME


def _end(folder: Path) -> str:
    return "Finished" if (folder / "result.json").exists() else "Not finished"


def with_episodes(rows: list[dict[str, Any]]) -> tuple[str, list[dict[str, Any]]]:
    """Returns the x of the curves and the rows with it: "episode", also for evaluations, where training counts them."""
    counted = next((row for row in reversed(rows) if row.get("episode") and row["step"]), None)
    if counted is None:
        return "step", rows
    return "episode", [row | {"episode": row["step"] * counted["episode"] / counted["step"]} for row in rows]


def points(rows: Sequence[dict[str, Any]], x: str, metric: str) -> tuple[list[float], list[float]]:
    """Returns x and y of the rows that hold the metric as a number; of very many, some hundreds evenly."""
    known = [(row[x], row[metric]) for row in rows if isinstance(row.get(metric), int | float)]
    known = known[:: len(known) // POINTS + 1]
    return [a for a, _ in known], [b for _, b in known]


def read_samples(path: Path) -> list[dict[str, Any]]:
    """Returns the first samples of each step, at most `SAMPLES`, evenly from beginning to end; [] without the file."""
    if not path.exists():
        return []
    rows = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            row = json.loads(line)
        except ValueError:  # a line that is being written
            break
        same = [other for other in rows if (other["step"], other["source"]) == (row["step"], row["source"])]
        if len(same) < SAMPLES_PER_STEP:
            rows.append(row)
    return rows if len(rows) <= SAMPLES else [rows[i * (len(rows) - 1) // (SAMPLES - 1)] for i in range(SAMPLES)]
