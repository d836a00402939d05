"""The numbers of one evaluation: judged rows and the stages' results -> summary.json."""

from collections.abc import Callable
from dataclasses import asdict
from typing import Any

from rlhf.evaluation.best_of_n import best_of_n_kl
from rlhf.evaluation.preferences import (
    AXES,
    Row,
    Score,
    agreement,
    arms_of,
    by_category,
    compare,
    gain,
    gold,
    mean_score,
    reward,
    share,
    share_gain,
)
from rlhf.statistics import Estimate

SETTINGS = ("dataset", "model", "split", "seed", "max_new_tokens")
STAGES = ("sft", "reward", "ppo")


def summarise(
    rows: list[Row], results: dict[str, dict | None], settings: dict[str, Any], seconds: float
) -> dict[str, Any]:
    """All numbers of summary.json; what could not be measured is null.

    `gold`, `win_rate_vs_sft` are judged by the gold judge and null without one: the reward model, which PPO was trained
    against, never takes its place. Its verdicts stand in fields of their own.

    Args:
        rows: judged answers, see `rlhf.evaluation.preferences`.
        results: stage -> its result.json, or None if the stage was not run.
        settings: dataset, model, split, seed, max_new_tokens, best_of_n (or nothing), and the limits of
            `rlhf.evaluation.gold.labeler_limits`.
        seconds: that the evaluation itself took.
    """
    overall = _by_arm(rows, gold("overall"))
    best = settings.get("best_of_n")
    return {
        **{name: settings.get(name) for name in SETTINGS},
        "prompts": len({row["prompt_id"] for row in rows}),
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
        "categories": {name: _category(part) for name, part in by_category(rows).items()},
        "categories_with_higher_gold": _improved(rows),
        "seconds": _seconds(results, seconds),
    }


def _category(rows: list[Row]) -> dict[str, Any]:
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


def _by_arm(rows: list[Row], score: Score, statistic: Callable = mean_score) -> dict[str, dict[str, Any]]:
    """arm -> estimate of the mean score, for the arms that the score applies to."""
    estimates = {arm: statistic(rows, arm, score) for arm in arms_of(rows)}
    return {arm: asdict(estimate) for arm, estimate in estimates.items() if estimate}


def _against(rows: list[Row], model: str, score: Score) -> dict[str, dict[str, Any]]:
    """arm -> win rate over `model` at the same decoding, for the arms of other models."""
    return _paired(rows, model, score, compare)


def _paired(rows: list[Row], model: str, score: Score, statistic: Callable) -> dict[str, dict[str, Any]]:
    """arm -> `statistic` of the arm and `model` at the same decoding, for the arms of other models."""
    estimates = {
        arm: statistic(rows, arm, model + ("_greedy" if arm.endswith("_greedy") else ""), score)
        for arm in arms_of(rows)
        if arm.removesuffix("_greedy") != model
    }
    return {arm: asdict(estimate) for arm, estimate in estimates.items() if estimate}


def _reward_model(rows: list[Row], result: dict | None, settings: dict[str, Any]) -> dict[str, Any]:
    groups = (result or {}).get("accuracy_by_group") or {}
    return {
        "accuracy": (result or {}).get("accuracy"),
        "training_labeler_accuracy": groups.get("training", {}).get("accuracy"),
        "heldout_labeler_accuracy": groups.get("heldout", {}).get("accuracy"),
        "labeler_agreement": settings.get("labeler_agreement"),
        "attainable_accuracy": settings.get("attainable_accuracy"),
        # Where PPO starts, and where it has gone: over-optimisation shows as the fall from the first to the second.
        "gold_accuracy_on_sft_pairs": _plain(agreement(rows, "sft", "sft_greedy")),
        "gold_accuracy_on_ppo_sft_pairs": _plain(agreement(rows, "ppo", "sft")),
    }


def _improved(rows: list[Row]) -> dict[str, int] | None:
    """In how many categories PPO's mean gold score at temperature 1 is above SFT's."""
    pairs = []
    for part in by_category(rows).values():
        means = _means(_by_arm(part, gold("overall")))
        if "sft" in means and "ppo" in means:
            pairs.append(means["ppo"] > means["sft"])
    return {"higher": sum(pairs), "of": len(pairs)} if pairs else None


def _seconds(results: dict[str, dict | None], evaluate: float) -> dict[str, float | None]:
    """Of each stage; `choice` is what it took to choose the SFT checkpoint by the reward model."""
    seconds = {stage: (results.get(stage) or {}).get("seconds") for stage in STAGES}
    seconds |= {"choice": (results.get("sft") or {}).get("choice_seconds"), "evaluate": evaluate}
    return seconds | {"total": sum(value for value in seconds.values() if value is not None)}


def _means(estimates: dict[str, dict[str, Any]]) -> dict[str, float]:
    return {arm: estimate["mean"] for arm, estimate in estimates.items()}


def _mean_or_none(estimate: Estimate | None) -> float | None:
    return estimate.mean if estimate else None


def _plain(estimate: Estimate | None) -> dict[str, Any] | None:
    return asdict(estimate) if estimate else None
