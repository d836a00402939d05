"""Numbers of one evaluation: judged answers and the stages' results -> summary.json."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rlhf.errors import InputError
from rlhf.evaluation.best_of_n import best_of_n_kl
from rlhf.evaluation.judge_summary import judge_summary
from rlhf.evaluation.preference_numbers import SCORES, agreements, pairs_with_rivals
from rlhf.evaluation.preferences import AnswerRow, Score, accuracy_by, mean_score, share, systems_of
from rlhf.statistics import Estimate, spread_over_runs

SETTINGS = ("dataset", "model", "split", "seed", "max_new_tokens", "temperature")
STAGES = ("sft", "reward", "ppo")
GOLD = "gold"


def summarize(
    rows: list[AnswerRow],
    judges: Mapping[str, Mapping[str, Any]],
    results: dict[str, dict | None],
    settings: dict[str, Any],
    seconds: float,
    other_runs: Sequence[dict[str, Any]] = (),
) -> dict[str, Any]:
    """Returns all numbers of summary.json; a number that could not be measured is null.

    Each judge has numbers of its own; none stands in for another. The one with `optimized` is the reward model that PPO
    was trained against.

    Args:
        rows: judged answers, see `rlhf.evaluation.preferences`.
        judges: name -> `kind` ("scores" or "pairs"), `about` (a sentence), `optimized` (optional).
        results: stage -> its result.json, or None if the stage was not run.
        settings: dataset, model, split, seed, max_new_tokens, temperature, `systems` (name -> spec, optional),
            `baseline` (default `sft`), the number of prompts that were left out because a stage was trained on them
            (None: unknown), and the limits of `rlhf.evaluation.gold.labeler_limits` (optional).
        seconds: duration of the evaluation.
        other_runs: summaries of other runs of the recipe. The intervals are over prompts, for the models of this run;
            `over_runs` has the mean and the range of the numbers of all runs.
    """
    systems, baseline = systems_of(rows), settings.get("baseline", "sft")
    summary = {
        **{name: settings.get(name) for name in SETTINGS},
        "prompts": len({row["prompt_id"] for row in rows}),
        "distinct_prompts": len({row["key"] for row in rows}),
        "prompts_seen_in_training": settings.get("prompts_seen_in_training"),
        "baseline": baseline if baseline in systems else None,
        "systems": {name: _system(rows, name, settings) for name in systems},
        "judges": {name: judge_summary(rows, name, judge, baseline) for name, judge in judges.items()},
        "agreement": agreements(
            {name: pairs_with_rivals(rows, name, judge["kind"], baseline) for name, judge in judges.items()}
        ),
        "reward_model": _reward_model(rows, judges, results.get("reward"), settings),
        "best_of_n": _best_of_n(settings),
        "seconds": _seconds(results, seconds),
        "benchmarks": None,
    }
    return summary | {"over_runs": over_runs([summary, *other_runs]) if other_runs else None}


def read_summary(run: str | Path) -> dict[str, Any]:
    """Returns the summary.json of a run folder.

    Raises:
        InputError: there is none, or it is of a version before judges had numbers of their own.
    """
    path = Path(run) / "summary.json"
    if not path.is_file():
        raise InputError(f"{path} does not exist. Evaluate that run first, or leave it out of other_runs.")
    summary = json.loads(path.read_text(encoding="utf-8"))
    if "judges" not in summary:
        raise InputError(f"{path} is of an older version. Evaluate that run again, or leave it out of other_runs.")
    return summary


def over_runs(summaries: Sequence[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Returns the spread over runs of each judge's win rates and mean scores, and of the reward model's accuracy.

    The names are `<judge>.win_rate.<system>`, `<judge>.mean.<system>` and `reward_model.accuracy`.
    """
    values: dict[str, list[float]] = {}
    for summary in summaries:
        for name, judge in summary["judges"].items():
            for number in ("win_rate", "mean"):
                for system, estimate in (judge[number] or {}).items():
                    values.setdefault(f"{name}.{number}.{system}", []).append(estimate["mean"])
        if summary["reward_model"]["accuracy"] is not None:
            values.setdefault("reward_model.accuracy", []).append(summary["reward_model"]["accuracy"])
    return {name: spread_over_runs(numbers) for name, numbers in values.items()}


def as_text(summary: dict[str, Any]) -> str:
    """Returns mean scores and win rates as a table for the terminal, one line for each system."""
    judges = summary["judges"]
    header = ["", *(text for name in judges for text in (name, f"{name}: wins over {summary['baseline']}"))]
    lines = [header]
    for system in summary["systems"]:
        cells = [system]
        for judge in judges.values():
            mean, win = (judge["mean"] or {}).get(system), judge["win_rate"].get(system)
            cells.append(f"{mean['mean']:.2f}" if mean else "")
            cells.append(_win_text(win) if win else "")
        lines.append(cells)
    widths = [max(len(line[column]) for line in lines) for column in range(len(header))]
    return "\n".join("  ".join(f"{cell:<{w}}" for cell, w in zip(line, widths, strict=True)).rstrip() for line in lines)


def _win_text(win: dict[str, Any]) -> str:
    interval = "" if win["low"] is None else f" ({100 * win['low']:.0f} to {100 * win['high']:.0f})"
    return f"{100 * win['mean']:.0f} %{interval}"


def _system(rows: list[AnswerRow], name: str, settings: dict[str, Any]) -> dict[str, Any]:
    def mean(score: Score, statistic: Callable[..., Estimate | None] = mean_score) -> dict[str, Any] | None:
        estimate = statistic(rows, name, score)
        return asdict(estimate) if estimate else None

    return {
        "spec": (settings.get("systems") or {}).get(name, {}),
        "tokens": mean(lambda row: row["tokens"]),
        "ended": mean(lambda row: float(row["ended"]), share),
        "kl": mean(lambda row: row.get("kl")),
    }


def _best_of_n(settings: dict[str, Any]) -> dict[str, Any] | None:
    """Returns n and the KL of the first system that takes the best of n."""
    n = next((spec["best_of"] for spec in (settings.get("systems") or {}).values() if spec.get("best_of")), None)
    return {"n": n, "kl": best_of_n_kl(n)} if n else None


def _reward_model(
    rows: list[AnswerRow],
    judges: Mapping[str, Mapping[str, Any]],
    result: dict | None,
    settings: dict[str, Any],
) -> dict[str, Any]:
    groups = (result or {}).get("accuracy_by_group") or {}
    optimized = next((name for name, judge in judges.items() if judge.get("optimized")), None)

    def accuracy(a: str, b: str) -> dict[str, Any] | None:
        if optimized is None or judges.get(GOLD, {}).get("kind") != SCORES:
            return None
        estimate = accuracy_by(rows, a, b, optimized, GOLD)
        return asdict(estimate) if estimate else None

    return {
        "accuracy": (result or {}).get("accuracy"),
        "training_labeler_accuracy": groups.get("training", {}).get("accuracy"),
        "heldout_labeler_accuracy": groups.get("heldout", {}).get("accuracy"),
        "labeler_agreement": settings.get("labeler_agreement"),
        "attainable_accuracy": settings.get("attainable_accuracy"),
        # The distribution where PPO starts and the one where it ends: over-optimization lowers the second accuracy.
        "gold_accuracy_on_sft_pairs": accuracy("sft", "sft_greedy"),
        "gold_accuracy_on_ppo_sft_pairs": accuracy("ppo", "sft"),
    }


def _seconds(results: dict[str, dict | None], evaluate: float) -> dict[str, float | None]:
    """Returns the duration of each stage; `choice` is the choice of the SFT checkpoint by the reward model."""
    seconds: dict[str, float | None] = {stage: (results.get(stage) or {}).get("seconds") for stage in STAGES}
    seconds |= {"choice": (results.get("sft") or {}).get("choice_seconds"), "evaluate": evaluate}
    return seconds | {"total": sum(value for value in seconds.values() if value is not None)}
