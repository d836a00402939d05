"""Files that the stages of a run left in their folders, and the report's sections about them."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlhf import plots
from rlhf.evaluation.report_figures import intervals
from rlhf.evaluation.report_parts import COUNT, PERCENT, RAW, Column, Figure, Part, Section, Table, number
from rlhf.evaluation.report_tables import Summary, reward_model
from rlhf.evaluation.summary import STAGES
from rlhf.runs.artifacts import read_metrics, read_result

PPO_PANELS = {
    "objective/score": "Reward model's score",
    "objective/kl": "KL from SFT, nats per response",
    "rollout/length": "Length, tokens",
    "objective/entropy": "Entropy, nats per response",
    "rollout/eos_rate": "Share that ends by itself",
    "val/explained_variance": "Value model: explained variance",
}
Panels = list[tuple[str, dict[str, plots.Curve]]]


@dataclass(frozen=True)
class Stage:
    """Files in the folder of a stage; empty if the stage was not run.

    Attributes:
        result: result.json; None if the stage has not finished.
        metrics: rows of metrics.jsonl.
        environment: environment.json.
        config: text of config.yaml.
    """

    result: dict[str, Any] | None
    metrics: list[dict[str, Any]]
    environment: dict[str, Any]
    config: str


def read_stages(recipe_dir: str | Path) -> dict[str, Stage]:
    """Reads the folders of all stages in `recipe_dir`, including the evaluation's own."""
    return {name: read_stage(Path(recipe_dir) / name) for name in (*STAGES, "evaluate")}


def read_stage(folder: Path) -> Stage:
    """Reads the folder of one stage. It may be missing."""

    def text(name: str) -> str:
        return (folder / name).read_text(encoding="utf-8") if (folder / name).exists() else ""

    return Stage(
        result=read_result(folder) if (folder / "result.json").exists() else None,
        metrics=read_metrics(folder),
        environment=json.loads(text("environment.json") or "{}"),
        config=text("config.yaml"),
    )


def versions(stages: dict[str, Stage]) -> dict[str, str]:
    """Returns the package versions that the latest stage recorded."""
    latest = next((stage.environment for stage in reversed(stages.values()) if stage.environment), {})
    found = {"python": latest.get("python"), **latest.get("packages", {}), "git commit": latest.get("git_commit")}
    return {name: version for name, version in found.items() if version}


def chosen_epoch(sft: Stage) -> dict[str, Any] | None:
    """Returns the row of the checkpoint that PPO starts from: `epoch`, `eval_loss` and, if measured, `rm_score`."""
    result = sft.result or {}
    return next((row for row in result.get("epochs", []) if row["checkpoint"] == result.get("chosen")), None)


# -- sections ---------------------------------------------------------------------------------------------------------


def stage_sections(summary: Summary, stages: dict[str, Stage]) -> list[Section]:
    """Returns the sections about SFT, the reward model and PPO."""
    return [
        Section("Supervised fine-tuning", [*_sft_words(stages["sft"]), _sft(stages["sft"])]),
        Section("Reward model", _reward_parts(summary, stages["reward"])),
        Section("PPO", [_ppo(stages["ppo"])]),
    ]


def _sft_words(sft: Stage) -> list[Part]:
    if not _sft_panels(sft):
        return []
    text = (
        "In the paper, validation loss rises after one epoch while the answers keep improving. The checkpoint is "
        "therefore chosen by the reward model’s score of answers to validation prompts, or by validation loss if there "
        "is no reward model."
    )
    if chosen := chosen_epoch(sft):
        judge = "the reward model" if chosen.get("rm_score") is not None else "validation loss"
        text += f" The dashed line is the chosen one: epoch {number(chosen['epoch'], COUNT)}, by {judge}."
    return [text]


def _reward_parts(summary: Summary, reward: Stage) -> list[Part]:
    if not reward.result:
        return ["Not run: there is no result of the reward model’s stage.", *_filled(reward_model(summary))]
    agreement = (summary.get("reward_model") or {}).get("labeler_agreement")
    text = "How often the reward model ranks two held-out answers as the labeler did; ties are left out."
    if agreement is not None:
        text += " The dashed line is how often two labelers agree."
    return [text, _accuracy(summary, reward), _reliability(reward), *_filled(reward_model(summary))]


def _filled(table: Table) -> list[Table]:
    return [table] if table.rows else []


# -- figures ----------------------------------------------------------------------------------------------------------


def _sft(sft: Stage) -> Figure:
    panels = _sft_panels(sft)
    mark = (chosen_epoch(sft) or {}).get("epoch")
    title = "SFT loss and reward-model score by epoch"
    caption = "The band is a 95 % interval." if len(panels) > 1 else ""
    svg = plots.curves(panels, "epoch", columns=2, mark=mark) if panels else None
    return Figure(title, svg, _curves_table("figure_sft", title, "epoch", panels), caption)


def _sft_panels(sft: Stage) -> Panels:
    lines = {
        label: _curve(sft.metrics, "epoch", key) for label, key in (("training", "loss"), ("validation", "eval_loss"))
    }
    panels: Panels = [("Loss on responses", {label: curve for label, curve in lines.items() if curve[0]})]
    scored = [row for row in (sft.result or {}).get("epochs", []) if row.get("rm_score") is not None]
    if scored:
        band = [1.96 * row.get("rm_score_se", 0.0) for row in scored]
        panels.append(("Reward model's score", {"score": (*_curve(scored, "epoch", "rm_score"), band)}))
    return [panel for panel in panels if panel[1]]


def _accuracy(summary: Summary, reward: Stage) -> Figure:
    result = reward.result or {}
    accuracies = {"all": result} if result.get("accuracy") is not None else {}
    if accuracies:
        accuracies |= {f"{name} labelers": row for name, row in result.get("accuracy_by_group", {}).items()}
        accuracies |= {f"K = {k}": row for k, row in result.get("accuracy_by_k", {}).items()}
    rows = [
        (f"{name} ({row['n_pairs']} pairs)", plots.COLORS["sft"], {**row, "mean": row["accuracy"]})
        for name, row in accuracies.items()
        if row.get("accuracy") is not None
    ]
    agreement = (summary.get("reward_model") or {}).get("labeler_agreement")
    column = Column("accuracy on held-out comparisons, %", PERCENT)
    return intervals("figure_accuracy", "Reward model accuracy", rows, column, reference=agreement)


def _reliability(reward: Stage) -> Figure:
    bins = (reward.result or {}).get("reliability") or []
    columns = (Column("predicted"), Column("observed"), Column("pairs"))
    rows = [[row["predicted"], row["observed"], row["n_pairs"]] for row in bins]
    caption = "On the dashed line, a preference of 70 % is right 70 % of the time."
    data = Table("figure_calibration", "Calibration", columns, rows)
    return Figure("Calibration", plots.reliability(bins) if bins else None, data, caption)


def _ppo(ppo: Stage) -> Figure:
    x = "episode" if any("episode" in row for row in ppo.metrics) else "step"
    panels: Panels = [(title, {title: _curve(ppo.metrics, x, key)}) for key, title in PPO_PANELS.items()]
    panels = [panel for panel in panels if next(iter(panel[1].values()))[0]]
    title = "PPO: reward, KL, length, entropy"
    caption = "The score rises by design. Only people or a judge that PPO was not trained to please can say whether "
    caption += "answers got better: watch KL and length."
    svg = plots.curves(panels, f"{x}s", columns=3) if panels else None
    return Figure(title, svg, _curves_table("figure_ppo", title, x, panels), caption)


def _curve(rows: list[dict[str, Any]], x: str, y: str) -> plots.Curve:
    points = [(row[x], row[y]) for row in rows if row.get(x) is not None and row.get(y) is not None]
    return [point[0] for point in points], [point[1] for point in points]


def _curves_table(name: str, title: str, x: str, panels: Panels) -> Table:
    """Returns the points of all lines, one a row; with the half-width of the band where there is one."""
    columns = (Column("panel"), Column("line"), Column(x), Column("value"), Column("half-width", RAW))
    rows = [
        [panel, line, xs[i], ys[i], band[0][i] if band else None]
        for panel, lines in panels
        for line, (xs, ys, *band) in lines.items()
        for i in range(len(xs))
    ]
    return Table(name, title, columns, rows)
