"""Numbers that need the single preferences of a judge: strengths, length control, detectable differences, agreement."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from itertools import combinations
from typing import Any, NamedTuple

import numpy as np

from rlhf.errors import InputError
from rlhf.evaluation.bradley_terry import bradley_terry
from rlhf.evaluation.judge_agreement import judge_agreement
from rlhf.evaluation.length_control import length_controlled_win_rate
from rlhf.evaluation.power import measured_detectable_difference
from rlhf.evaluation.preferences import AnswerRow, score_of, systems_of
from rlhf.runs.artifacts import say_once
from rlhf.runs.system_names import rival

SCORES, PAIRS = "scores", "pairs"  # kinds of judges

Estimates = dict[str, dict[str, Any]]


class Pair(NamedTuple):
    """A judge's preference between the answers of two systems to one prompt.

    Attributes:
        preference: 1 for a, 0 for b, 0.5 for a tie.
        lengths: of the two answers, in characters, which are the same for all tokenizers.
    """

    a: str
    b: str
    preference: float
    lengths: tuple[int, int]
    key: str
    prompt_id: int


def pairs_of(rows: Sequence[AnswerRow], judge: str, kind: str, a: str, b: str) -> list[Pair]:
    """Returns the preferences of a judge between two systems; of a judge of pairs, b must be a's rival."""
    score, others = score_of(judge), {row["prompt_id"]: row for row in rows if row["system"] == b}
    pairs = []
    for row in rows:
        other = others.get(row["prompt_id"])
        if row["system"] != a or other is None:
            continue
        if kind == PAIRS:
            preference = row["preferences"].get(judge)
        else:
            x, y = score(row), score(other)
            preference = None if x is None or y is None else (float(np.sign(round(x - y, 9))) + 1) / 2
        if preference is not None:
            lengths = (len(row["response"]), len(other["response"]))
            pairs.append(Pair(a, b, preference, lengths, row["key"], row["prompt_id"]))
    return pairs


def pairs_with_rivals(rows: Sequence[AnswerRow], judge: str, kind: str, baseline: str) -> dict[str, list[Pair]]:
    """Returns system -> its preferences over the baseline, for the systems that were compared."""
    systems = systems_of(rows)
    rivals = {system: other for system in systems if (other := rival(system, baseline, systems))}
    found = {system: pairs_of(rows, judge, kind, system, other) for system, other in rivals.items()}
    return {system: pairs for system, pairs in found.items() if pairs}


def length_controlled(pairs: Mapping[str, Sequence[Pair]]) -> Estimates | None:
    """Returns system -> win rate at equal lengths; None without statsmodels, which is said, or without pairs."""
    estimates: Estimates = {}
    for system, members in pairs.items():
        lengths, others = zip(*(pair.lengths for pair in members), strict=True)
        try:
            estimate = length_controlled_win_rate(
                [pair.preference for pair in members], lengths, others, [pair.key for pair in members]
            )
        except (InputError, RuntimeError) as error:  # no package; too few or separated preferences
            say_once(f"no length-controlled win rates: {error}", logging.WARNING)
            return None
        if estimate:
            estimates[system] = asdict(estimate)
    return estimates or None


def strengths(
    rows: Sequence[AnswerRow], judge: str, kind: str, baseline: str, compared: Mapping[str, Sequence[Pair]]
) -> Estimates | None:
    """Returns system -> strength against the baseline in log odds; None for two systems, whose win rate says it all.

    Args:
        compared: of `pairs_with_rivals`: all that a judge of pairs has been asked. Of scores, every pair of systems
            counts.
    """
    systems = systems_of(rows)
    pairs = [pair for members in compared.values() for pair in members]
    if kind == SCORES:
        pairs = [pair for a, b in combinations(systems, 2) for pair in pairs_of(rows, judge, kind, a, b)]
    if len({name for pair in pairs for name in (pair.a, pair.b)}) < 3:
        return None
    preferences, keys = [pair.preference for pair in pairs], [pair.key for pair in pairs]
    found = bradley_terry([pair.a for pair in pairs], [pair.b for pair in pairs], preferences, keys, baseline)
    return {name: asdict(found[name]) for name in systems if name in found} or None


def detectable(pairs: Mapping[str, Sequence[Pair]]) -> float | None:
    """Returns the difference from one half that a win rate of any system shows, in 80 of 100 evaluations."""
    smallest = [
        measured_detectable_difference([pair.preference for pair in members], [pair.key for pair in members])
        for members in pairs.values()
    ]
    return max((value for value in smallest if value is not None), default=None)


def agreements(by_judge: Mapping[str, Mapping[str, Sequence[Pair]]]) -> list[dict[str, Any]]:
    """Returns the share of equal preferences of each two judges, on the pairs that both have judged.

    Args:
        by_judge: judge -> the pairs of `pairs_with_rivals`.
    """
    known = {
        judge: {(pair.a, pair.prompt_id): pair for members in pairs.values() for pair in members}
        for judge, pairs in by_judge.items()
    }
    found = []
    for one, other in combinations(known, 2):
        both = [place for place in known[one] if place in known[other]]
        estimate = judge_agreement(
            [known[one][place].preference for place in both],
            [known[other][place].preference for place in both],
            [known[one][place].key for place in both],
        )
        found += [{"judges": [one, other], "agreement": asdict(estimate)}] if estimate else []
    return found
