"""Numbers of one judge: means, flags, win rates against the baseline, overall and by category."""

from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Any

from rlhf.evaluation.preference_numbers import (
    SCORES,
    Estimates,
    detectable,
    length_controlled,
    pairs_with_rivals,
    strengths,
)
from rlhf.evaluation.preferences import (
    AnswerRow,
    Score,
    by_category,
    compare,
    flag_of,
    gain,
    likert_of,
    mean_score,
    score_of,
    share,
    share_gain,
    systems_of,
)
from rlhf.runs.system_names import rival
from rlhf.statistics import Estimate


def judge_summary(rows: list[AnswerRow], name: str, judge: Mapping[str, Any], baseline: str) -> dict[str, Any]:
    """Returns the numbers of one judge, as in summary.json under `judges`.

    Args:
        judge: `kind`, `about`, and optionally `optimized` and `consistency`.
        baseline: the system that the others are compared with; a greedy one with the greedy baseline.
    """
    scores = judge["kind"] == SCORES
    overall = _numbers(rows, name, judge["kind"], baseline)
    pairs = pairs_with_rivals(rows, name, judge["kind"], baseline)
    return {
        "kind": judge["kind"],
        "about": judge["about"],
        "optimized": bool(judge.get("optimized")),
        **overall,
        "gain": _paired(rows, baseline, score_of(name), gain) or None if scores else None,
        "length_controlled_win_rate": length_controlled(pairs),
        "bradley_terry": strengths(rows, name, judge["kind"], baseline, pairs),
        "consistency": judge.get("consistency"),
        "detectable_difference": detectable(pairs),
        "categories": {
            category: _category(members, name, judge["kind"], baseline)
            for category, members in by_category(rows).items()
        },
        "categories_with_higher_mean": _improved(rows, name, baseline) if scores else None,
    }


def _numbers(rows: list[AnswerRow], name: str, kind: str, baseline: str) -> dict[str, Any]:
    flags = {flag: estimates for flag in _flags(rows, name) if (estimates := _means(rows, flag_of(name, flag), share))}
    return {
        "mean": _means(rows, score_of(name)) or None,
        "likert": _means(rows, likert_of(name)) or None,
        "flags": flags or None,
        "win_rate": _win_rates(rows, name, kind, baseline),
    }


def _category(rows: list[AnswerRow], name: str, kind: str, baseline: str) -> dict[str, Any]:
    """Returns the numbers of one category, with the change of each flag against the baseline."""
    changes = {flag: _paired(rows, baseline, flag_of(name, flag), share_gain) for flag in _flags(rows, name)}
    return {
        "prompts": len({row["prompt_id"] for row in rows}),
        **_numbers(rows, name, kind, baseline),
        "flags_gain": {flag: change for flag, change in changes.items() if change} or None,
    }


def _win_rates(rows: list[AnswerRow], name: str, kind: str, baseline: str) -> Estimates:
    """Returns the win rate over the baseline of each other system."""
    if kind == SCORES:
        return _paired(rows, baseline, score_of(name), compare)
    return _means(rows, lambda row: row["preferences"].get(name), share)


def _flags(rows: list[AnswerRow], name: str) -> list[str]:
    return list(dict.fromkeys(flag for row in rows for flag in row["flags"].get(name) or ()))


def _means(rows: list[AnswerRow], score: Score, statistic: Callable = mean_score) -> Estimates:
    """Returns system -> estimate of the mean score, for the systems that the score applies to."""
    estimates = {system: statistic(rows, system, score) for system in systems_of(rows)}
    return _plain(estimates)


def _paired(rows: list[AnswerRow], baseline: str, score: Score, statistic: Callable) -> Estimates:
    """Returns system -> `statistic` of the system and its rival, for the systems that have one."""
    systems = systems_of(rows)
    pairs = {system: other for system in systems if (other := rival(system, baseline, systems))}
    return _plain({system: statistic(rows, system, other, score) for system, other in pairs.items()})


def _plain(estimates: Mapping[str, Estimate | None]) -> Estimates:
    return {system: asdict(estimate) for system, estimate in estimates.items() if estimate}


def _improved(rows: list[AnswerRow], name: str, baseline: str) -> dict[str, dict[str, int]] | None:
    """Returns system -> the number of categories in which its mean score is above its rival's, and their number."""
    systems, improved = systems_of(rows), {}
    means = [_means(members, score_of(name)) for members in by_category(rows).values()]
    for system in systems:
        other = rival(system, baseline, systems)
        both = [category for category in means if system in category and other in category]
        if other and both:
            higher = sum(category[system]["mean"] > category[other]["mean"] for category in both)
            improved[system] = {"higher": higher, "of": len(both)}
    return improved or None
