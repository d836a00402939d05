"""Adds the verdicts of the judges to the answers."""

from collections.abc import Iterable, Sequence
from dataclasses import asdict
from typing import Any

from rlhf.evaluation.preference_numbers import PAIRS, SCORES
from rlhf.evaluation.preferences import AnswerRow, systems_of
from rlhf.evaluation.verdicts import Judge, PairwiseJudge, ScoringJudge
from rlhf.runs.artifacts import is_first_process
from rlhf.runs.system_names import rival
from rlhf.statistics import cluster_share


def judge_answers(rows: list[AnswerRow], judges: Iterable[Judge], baseline: str) -> dict[str, dict[str, Any]]:
    """Sets `scores`, `likert`, `flags` and `preferences` of every row (see `rlhf.evaluation.preferences`).

    In a launch of several processes all must call it. Judges of pairs are asked in the first process alone, and compare
    every answer with the baseline's.

    Returns:
        Name -> what `rlhf.evaluation.summary.summarize` wants to know of a judge.
    """
    for row in rows:
        row |= {"scores": {}, "likert": {}, "flags": {}, "preferences": {}}
    entries = {}
    for judge in judges:
        entries[judge.name] = {"about": judge.about, "optimized": judge.optimized}
        if isinstance(judge, ScoringJudge):
            _score(rows, judge)
            entries[judge.name]["kind"] = SCORES
        else:
            consistency = _prefer(rows, judge, baseline) if is_first_process() else None
            entries[judge.name] |= {"kind": PAIRS, "consistency": consistency}
    return entries


def _score(rows: list[AnswerRow], judge: ScoringJudge) -> None:
    columns = [[row[name] for row in rows] for name in ("prompt", "response", "ended")]
    for row, verdict in zip(rows, judge.score(*columns), strict=True):
        row["scores"][judge.name] = verdict.score if verdict else None
        row["likert"][judge.name] = verdict.likert if verdict else None
        row["flags"][judge.name] = dict(verdict.flags) if verdict else {}


def _prefer(rows: list[AnswerRow], judge: PairwiseJudge, baseline: str) -> dict[str, Any] | None:
    """Returns the share of the pairs judged alike in both orders; None if the judge does not say."""
    pairs = pairs_with_baseline(rows, baseline)
    columns = (
        [row["prompt"] for row, _ in pairs],
        [row["response"] for row, _ in pairs],
        [other["response"] for _, other in pairs],
    )
    for (row, _), preference in zip(pairs, judge.prefer(*columns), strict=True):
        row["preferences"][judge.name] = preference
    alike = zip(pairs, judge.consistency(*columns), strict=True)
    known = [(value, row["key"]) for (row, _), value in alike if value is not None]
    return asdict(cluster_share(*zip(*known, strict=True))) if known else None


def pairs_with_baseline(rows: Sequence[AnswerRow], baseline: str) -> list[tuple[AnswerRow, AnswerRow]]:
    """Returns each answer with the baseline's answer to the same prompt."""
    systems = systems_of(rows)
    by_system = {(row["system"], row["prompt_id"]): row for row in rows}
    pairs = [(row, by_system.get((rival(row["system"], baseline, systems), row["prompt_id"]))) for row in rows]
    return [(row, other) for row, other in pairs if other is not None]
