"""report.html: one self-contained page from summary.json, the judged answers and the folders of the stages."""

import base64
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from rlhf import plots
from rlhf.data.encode import prompt_text
from rlhf.evaluation.preferences import AXES, NAMES, AnswerRow, showcase
from rlhf.evaluation.report_fields import ARMS, MODELS, report_fields
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


def write_report(
    path: str | Path, title: str, summary: dict[str, Any], rows: list[AnswerRow], stages: dict[str, Stage]
) -> None:
    """Writes the page. Each section without data says so."""
    html = render(title, json.loads(json.dumps(summary)), rows, stages)  # the page shows what summary.json has
    Path(path).write_text(html, encoding="utf-8")


def render(title: str, summary: dict[str, Any], rows: list[AnswerRow], stages: dict[str, Stage]) -> str:
    """Returns the page as HTML."""
    summary, rows = report_fields(summary, rows)
    environment = Environment(
        loader=PackageLoader("rlhf.evaluation", "."),
        autoescape=True,  # answers may contain markup
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {"percent": percent, "number": number, "duration": duration, "within": within}
    environment.filters |= {"prompt_text": prompt_text, "faults": faults}
    present = [model for model in MODELS if any(row["arm"] == model for row in rows)]
    return environment.get_template("report.html.j2").render(
        title=title,
        summary=summary,
        stages=stages,
        models=present,
        arms=[arm for arm in ARMS if any(row["arm"] == arm for row in rows)],
        names=NAMES,
        colors=plots.COLORS,
        axes={name: AXES[name] for name in AXES if name in (summary["axes"] or {})},
        figures=figures(summary, stages),
        chosen=chosen_epoch(stages["sft"]),
        answer_cards=answer_cards(rows),
        versions=_versions(stages),
    )


# -- figures ----------------------------------------------------------------------------------------------------------


def figures(summary: dict[str, Any], stages: dict[str, Stage]) -> dict[str, Markup | None]:
    """Returns name -> data URI of an SVG; None for a figure without data."""
    svgs = {
        "wins": _wins(summary),
        "gold": _gold(summary),
        "sft": _sft(stages["sft"]),
        "accuracy": _accuracy(stages["reward"], summary["reward_model"]["labeler_agreement"]),
        "reliability": _reliability(stages["reward"]),
        "ppo": _ppo(stages["ppo"]),
    }
    return {name: _data_uri(svg) if svg else None for name, svg in svgs.items()}


def _wins(summary: dict[str, Any]) -> str | None:
    """Draws the win rates by gold, then by the reward model: on RLHF only, unless it is the only judge."""
    rows, names = [], {**NAMES, "base": "base"}
    for judge, suffix in (("gold", ""), ("reward model", "_by_reward_model")):
        for model, rival in (("ppo", "sft"), ("sft_best", "sft"), ("sft", "base")):
            if model == "sft" and suffix and summary["gold"]:
                continue
            wins = summary[f"win_rate_vs_{rival}{suffix}"] or {}
            for arm, decoding in ((model, "sampled"), (f"{model}_greedy", "greedy")):
                if arm in wins:
                    label = f"{NAMES[model]} over {names[rival]}, {decoding} ({judge})"
                    rows.append((label, plots.COLORS[model], wins[arm]))
    return plots.intervals(rows, "win rate, ties count half", reference=0.5, limits=(-0.02, 1.08)) if rows else None


def _gold(summary: dict[str, Any]) -> str | None:
    estimates = summary["gold_intervals"] or {}
    rows = [
        (f"{NAMES[model]}, {decoding}", plots.COLORS[model], estimates[model + suffix])
        for suffix, decoding in (("", "sampled"), ("_greedy", "greedy"))
        for model in MODELS
        if model + suffix in estimates
    ]
    return plots.intervals(rows, "mean gold score", limits=(-0.02, 1.08)) if rows else None


def _sft(sft: Stage) -> str | None:
    lines = {
        label: _curve(sft.metrics, "epoch", key) for label, key in (("training", "loss"), ("validation", "eval_loss"))
    }
    panels = [("Loss on responses", {label: curve for label, curve in lines.items() if curve[0]})]
    scored = [row for row in (sft.result or {}).get("epochs", []) if row.get("rm_score") is not None]
    if scored:
        band = [1.96 * row.get("rm_score_se", 0.0) for row in scored]
        panels.append(("Reward model's score", {"score": (*_curve(scored, "epoch", "rm_score"), band)}))
    panels = [panel for panel in panels if panel[1]]
    return plots.curves(panels, "epoch", columns=2, mark=(chosen_epoch(sft) or {}).get("epoch")) if panels else None


def chosen_epoch(sft: Stage) -> dict[str, Any] | None:
    """Returns the row of the checkpoint that PPO starts from: `epoch`, `eval_loss` and, if measured, `rm_score`."""
    result = sft.result or {}
    return next((row for row in result.get("epochs", []) if row["checkpoint"] == result.get("chosen")), None)


def _accuracy(reward: Stage, labeler_agreement: float | None) -> str | None:
    if not reward.result or reward.result.get("accuracy") is None:
        return None
    accuracies = {"all": reward.result}
    accuracies |= {f"{name} labelers": row for name, row in reward.result.get("accuracy_by_group", {}).items()}
    accuracies |= {f"K = {k}": row for k, row in reward.result.get("accuracy_by_k", {}).items()}
    rows = [
        (f"{label} ({row['n_pairs']:,} pairs)", plots.COLORS["sft"], {**row, "mean": row["accuracy"]})
        for label, row in accuracies.items()
    ]
    return plots.intervals(rows, "accuracy on held-out comparisons", reference=labeler_agreement)


def _reliability(reward: Stage) -> str | None:
    bins = (reward.result or {}).get("reliability")
    return plots.reliability(bins) if bins else None


def _ppo(ppo: Stage) -> str | None:
    x = "episode" if any("episode" in row for row in ppo.metrics) else "step"
    panels = [(title, {title: _curve(ppo.metrics, x, key)}) for key, title in PPO_PANELS.items()]
    panels = [panel for panel in panels if next(iter(panel[1].values()))[0]]
    return plots.curves(panels, f"{x}s", columns=3) if panels else None


def _curve(rows: list[dict[str, Any]], x: str, y: str) -> plots.Curve:
    points = [(row[x], row[y]) for row in rows if row.get(x) is not None and row.get(y) is not None]
    return [point[0] for point in points], [point[1] for point in points]


def _data_uri(svg: str) -> Markup:
    return Markup("data:image/svg+xml;base64," + base64.b64encode(svg.encode()).decode())


# -- tables -----------------------------------------------------------------------------------------------------------


def answer_cards(rows: list[AnswerRow]) -> list[dict[str, Any]]:
    """Returns the prompts of `showcase`, each with the greedy and the sampled answer of each model."""
    by_arm = {(row["prompt_id"], row["arm"]): row for row in rows}
    cards = []
    for prompt_id in showcase(rows):
        answers = {arm: by_arm[prompt_id, arm] for arm in ARMS if (prompt_id, arm) in by_arm}
        first = next(iter(answers.values()))
        cards.append({"prompt": first["prompt"], "category": first["category"], "answers": answers})
    return cards


def faults(gold: dict[str, Any]) -> list[str]:
    """Returns the faults that the gold judge found in an answer, in words."""
    return [axis.fault for name, axis in AXES.items() if gold.get(name) is not None and gold[name] != axis.wanted]


def _versions(stages: dict[str, Stage]) -> dict[str, str]:
    """Returns the package versions that the latest stage recorded."""
    latest = next((stage.environment for stage in reversed(stages.values()) if stage.environment), {})
    versions = {"python": latest.get("python"), **latest.get("packages", {}), "git commit": latest.get("git_commit")}
    return {name: version for name, version in versions.items() if version}


# -- numbers as text --------------------------------------------------------------------------------------------------


def percent(value: float | None) -> str:
    """Returns 0.683 as 68 %, and None as a dash."""
    return "–" if value is None else f"{100 * value:.0f}\u202f%"


def number(value: float | None, digits: int = 2) -> str:
    """Returns a number with the given number of decimals, and None as a dash."""
    return "–" if value is None else f"{value:,.{digits}f}"


def within(estimate: dict[str, Any] | None) -> str:
    """Returns the interval of a share, as `65 to 71 %`."""
    if not estimate or estimate["low"] is None:
        return "no interval"
    return f"{100 * estimate['low']:.0f} to {100 * estimate['high']:.0f}\u202f%"


def duration(seconds: float | None) -> str:
    """Returns 512.3 as 8 min 32 s, and None as a dash."""
    if seconds is None:
        return "–"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"
