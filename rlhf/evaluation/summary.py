"""Numbers of one evaluation: judged answers and the stages' results -> summary.json."""

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rlhf.errors import InputError
from rlhf.evaluation.best_of_n import best_of_n_kl
from rlhf.evaluation.preferences import (
    AXES,
    AnswerRow,
    Score,
    arms_of,
    by_category,
    compare,
    gain,
    gold,
    gold_accuracy,
    mean_score,
    reward,
    share,
    share_gain,
)
from rlhf.statistics import Estimate, spread_over_runs

SETTINGS = ("dataset", "model", "split", "seed", "max_new_tokens", "temperature")
STAGES = ("sft", "reward", "ppo")


def summarize(
    rows: list[AnswerRow],
    results: dict[str, dict | None],
    settings: dict[str, Any],
    seconds: float,
    other_runs: Sequence[dict[str, Any]] = (),
) -> dict[str, Any]:
    """Returns all numbers of summary.json; a number that could not be measured is null.

    `gold` and `win_rate_vs_sft` come from the gold judge alone and are null without one. The verdicts of the reward
    model, which PPO was trained against, have their own fields.

    Args:
        rows: judged answers, see `rlhf.evaluation.preferences`.
        results: stage -> its result.json, or None if the stage was not run.
        settings: dataset, model, split, seed, max_new_tokens, temperature, best_of_n (optional), the number of prompts
            that were left out because a stage was trained on them (None: unknown), and the limits of
            `rlhf.evaluation.gold.labeler_limits` (optional).
        seconds: duration of the evaluation.
        other_runs: summaries of other runs of the recipe. The intervals are over prompts, for the models of this run;
            `over_runs` has the mean and the range of the numbers of all runs.
    """
    summary = _summary(rows, results, settings, seconds)
    return summary | {"over_runs": over_runs([summary, *other_runs]) if other_runs else None}


def read_summary(run: str | Path) -> dict[str, Any]:
    """Returns the summary.json of a run folder.

    Raises:
        InputError: there is none.
    """
    path = Path(run) / "summary.json"
    if not path.is_file():
        raise InputError(f"{path} does not exist. Evaluate that run first, or leave it out of other_runs.")
    return json.loads(path.read_text(encoding="utf-8"))


def over_runs(summaries: Sequence[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Returns the spread over runs of each arm's win rate and gold score, and of the reward model's accuracy."""
    values: dict[str, list[float]] = {}
    for summary in summaries:
        for arm, estimate in (summary["win_rate_vs_sft"] or summary["win_rate_vs_sft_by_reward_model"] or {}).items():
            values.setdefault(f"win_rate_vs_sft.{arm}", []).append(estimate["mean"])
        for arm, mean in (summary["gold"] or {}).items():
            values.setdefault(f"gold.{arm}", []).append(mean)
        if summary["reward_model"]["accuracy"] is not None:
            values.setdefault("reward_model.accuracy", []).append(summary["reward_model"]["accuracy"])
    return {name: spread_over_runs(numbers) for name, numbers in values.items()}


def _summary(
    rows: list[AnswerRow], results: dict[str, dict | None], settings: dict[str, Any], seconds: float
) -> dict[str, Any]:
    overall = _by_arm(rows, gold("overall"))
    best = settings.get("best_of_n")
    return {
        **{name: settings.get(name) for name in SETTINGS},
        "prompts": len({row["prompt_id"] for row in rows}),
        "prompts_seen_in_training": settings.get("prompts_seen_in_training"),
        "distinct_prompts": len({row["key"] for row in rows}),
        "gold": {arm: estimate["mean"] for arm, estimate in overall.items()} or None,
        "gold_intervals": overall or None,
        "likert": _means(_by_arm(rows, gold("likert"))) or None,
        "win_rate_vs_sft": _against(rows, "sft", gold("overall")) or None,
        "win_rate_vs_base": _against(rows, "base", gold("overall")) or None,
        "gold_gain_vs_sft": _paired(rows, "sft", gold("overall"), gain) or None,
        "win_rate_vs_sft_by_reward_model": _against(rows, "sft", reward) or None,
        "win_rate_vs_base_by_reward_model": _against(rows, "base", reward) or None,
        "reward": _by_arm(rows, reward) or None,
        "reward_model": _reward_model(rows, results.get("reward"), settings),
        "best_of_n": {"n": settings["best_of_n"], "kl": best_of_n_kl(settings["best_of_n"])} if best else None,
        "kl": _mean_or_none(mean_score(rows, "ppo", lambda row: row.get("kl"))),
        "kl_interval": _plain(mean_score(rows, "ppo", lambda row: row.get("kl"))),
        "tokens": _by_arm(rows, lambda row: row["tokens"]),
        "ended": _by_arm(rows, lambda row: float(row["ended"]), share),
        "axes": {name: estimates for name in AXES if (estimates := _by_arm(rows, gold(name), share))} or None,
        "categories": {name: _category(category) for name, category in by_category(rows).items()},
        "categories_with_higher_gold": _improved(rows),
        "seconds": _seconds(results, seconds),
    }


def _category(rows: list[AnswerRow]) -> dict[str, Any]:
    return {
        "prompts": len({row["prompt_id"] for row in rows}),
        "gold": _means(_by_arm(rows, gold("overall"))) or None,
        "reward": _means(_by_arm(rows, reward)) or None,
        "win_rate_vs_sft": _against(rows, "sft", gold("overall")) or None,
        "win_rate_vs_sft_by_reward_model": _against(rows, "sft", reward) or None,
        "axes": {name: means for name in AXES if (means := _means(_by_arm(rows, gold(name), share)))} or None,
        "axes_gain_vs_sft": {name: gains for name in AXES if (gains := _paired(rows, "sft", gold(name), share_gain))}
        or None,
    }


def _by_arm(rows: list[AnswerRow], score: Score, statistic: Callable = mean_score) -> dict[str, dict[str, Any]]:
    """Returns arm -> estimate of the mean score, for the arms that the score applies to."""
    estimates = {arm: statistic(rows, arm, score) for arm in arms_of(rows)}
    return {arm: asdict(estimate) for arm, estimate in estimates.items() if estimate}


def _against(rows: list[AnswerRow], model: str, score: Score) -> dict[str, dict[str, Any]]:
    """Returns arm -> win rate over `model` with the same decoding, for the arms of other models."""
    return _paired(rows, model, score, compare)


def _paired(rows: list[AnswerRow], model: str, score: Score, statistic: Callable) -> dict[str, dict[str, Any]]:
    """Returns arm -> `statistic` of the arm and `model` with the same decoding, for the arms of other models."""
    estimates = {
        arm: statistic(rows, arm, model + ("_greedy" if arm.endswith("_greedy") else ""), score)
        for arm in arms_of(rows)
        if arm.removesuffix("_greedy") != model
    }
    return {arm: asdict(estimate) for arm, estimate in estimates.items() if estimate}


def _reward_model(rows: list[AnswerRow], result: dict | None, settings: dict[str, Any]) -> dict[str, Any]:
    groups = (result or {}).get("accuracy_by_group") or {}
    return {
        "accuracy": (result or {}).get("accuracy"),
        "training_labeler_accuracy": groups.get("training", {}).get("accuracy"),
        "heldout_labeler_accuracy": groups.get("heldout", {}).get("accuracy"),
        "labeler_agreement": settings.get("labeler_agreement"),
        "attainable_accuracy": settings.get("attainable_accuracy"),
        # The distribution where PPO starts and the one where it ends: over-optimization lowers the second accuracy.
        "gold_accuracy_on_sft_pairs": _plain(gold_accuracy(rows, "sft", "sft_greedy")),
        "gold_accuracy_on_ppo_sft_pairs": _plain(gold_accuracy(rows, "ppo", "sft")),
    }


def _improved(rows: list[AnswerRow]) -> dict[str, int] | None:
    """Returns the number of categories in which PPO's mean gold score of samples is above SFT's."""
    improved = []
    for category in by_category(rows).values():
        means = _means(_by_arm(category, gold("overall")))
        if "sft" in means and "ppo" in means:
            improved.append(means["ppo"] > means["sft"])
    return {"higher": sum(improved), "of": len(improved)} if improved else None


def _seconds(results: dict[str, dict | None], evaluate: float) -> dict[str, float | None]:
    """Returns the duration of each stage; `choice` is the choice of the SFT checkpoint by the reward model."""
    seconds: dict[str, float | None] = {stage: (results.get(stage) or {}).get("seconds") for stage in STAGES}
    seconds |= {"choice": (results.get("sft") or {}).get("choice_seconds"), "evaluate": evaluate}
    return seconds | {"total": sum(value for value in seconds.values() if value is not None)}


def _means(estimates: dict[str, dict[str, Any]]) -> dict[str, float]:
    return {arm: estimate["mean"] for arm, estimate in estimates.items()}


def _mean_or_none(estimate: Estimate | None) -> float | None:
    return estimate.mean if estimate else None


def _plain(estimate: Estimate | None) -> dict[str, Any] | None:
    return asdict(estimate) if estimate else None
