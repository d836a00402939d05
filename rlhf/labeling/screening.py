"""Screening as in appendix B.1 of the paper: labelers first judge gold items, and those who agree get work.

The paper asked for 75 % agreement on flags and on rankings, and 6 of 7 for demonstrations. The settings
`screening_items` (10), `screening_threshold` (0.75) and `screening_demonstration` (6.0) change these.
"""

import json
import sqlite3
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from statistics import fmean
from typing import Any

from rlhf.errors import InputError
from rlhf.labeling.items import LIKERT
from rlhf.labeling.store import Store

# Labelers l whose labels are given out. The view label_rows of schema.sql says the same.
COUNTS = "l.screening in ('none', 'passed')"
ANSWERED = "select count(*) from judgments j join items i on i.id = j.item where j.labeler = ? and i.gold is not null"

GRADED = """
    select j.labeler, j.ranks, j.ratings, j.skipped, j.grade, i.kind, i.gold
    from judgments j join items i on i.id = j.item where i.gold is not null
"""


@dataclass(frozen=True)
class Grade:
    """A labeler's agreement with the gold judgments; None for what no gold item asks for.

    Attributes:
        rankings: share of pairs of completions that she orders as gold does, ties included.
        flags: share of flags, true or false in gold, that she answers alike.
        demonstrations: mean of the admin's grades, 1 to 7. None until all are graded.
        n: number of gold items that she has judged or skipped. A skip agrees with nothing.
        ungraded: number of her demonstrations that wait for a grade.
    """

    rankings: float | None
    flags: float | None
    demonstrations: float | None
    n: int
    ungraded: int


def grade(store: Store, labeler_id: int) -> Grade:
    """Returns the agreement of a labeler with all gold items that she has judged."""
    with store.read() as db:
        return grade_rows(db.execute(f"{GRADED} and j.labeler = ?", (labeler_id,)).fetchall())


def grade_rows(rows: Sequence[sqlite3.Row]) -> Grade:
    """Returns the grade of one labeler's rows of `GRADED`."""
    pairs: list[bool] = []
    flags: list[bool] = []
    grades: list[int | None] = []
    for row in rows:
        gold = json.loads(row["gold"])
        pairs += _equal_pairs(gold.get("ranks"), None if row["ranks"] is None else json.loads(row["ranks"]))
        flags += _equal_flags(gold.get("flags"), None if row["ratings"] is None else json.loads(row["ratings"]))
        if row["kind"] == "demonstration":
            grades.append(LIKERT[0] if row["skipped"] is not None else row["grade"])
    known = [one for one in grades if one is not None]
    return Grade(
        fmean(pairs) if pairs else None,
        fmean(flags) if flags else None,
        fmean(known) if known and len(known) == len(grades) else None,
        len(rows),
        len(grades) - len(known),
    )


def is_answered(store: Store, labeler_id: int) -> bool:
    """True if a labeler has judged as many gold items as screening asks for, or all that there are."""
    with store.read() as db:
        [items] = db.execute("select count(*) from items where gold is not null").fetchone()
        [answered] = db.execute(ANSWERED, (labeler_id,)).fetchone()
    return items > 0 and answered >= min(items, store.setting("screening_items", 10))


def update(store: Store, labeler_id: int) -> str:
    """Decides on a labeler in screening when she has judged enough, and returns her state."""
    with store.write() as db:
        [state] = db.execute("select screening from labelers where id = ?", (labeler_id,)).fetchone()
        if state != "pending" or not is_answered(store, labeler_id):
            return state
        found = grade(store, labeler_id)
        if found.ungraded:
            return state
        limits = (
            (found.rankings, store.setting("screening_threshold", 0.75)),
            (found.flags, store.setting("screening_threshold", 0.75)),
            (found.demonstrations, store.setting("screening_demonstration", 6.0)),
        )
        state = "passed" if all(value is None or value >= limit for value, limit in limits) else "failed"
        set_state(store, labeler_id, state)
    return state


def set_state(store: Store, labeler_id: int, state: str) -> None:
    """Sets a labeler's screening to "none", "pending", "passed" or "failed", as an admin may."""
    if state not in ("none", "pending", "passed", "failed"):
        raise InputError(f"screening is {state!r:.40}. Choose none, pending, passed or failed.")
    with store.write() as db:
        db.execute("update labelers set screening = ? where id = ?", (state, labeler_id))


def grade_demonstration(store: Store, key: str, value: int) -> None:
    """Keeps an admin's grade of the demonstration of a task, 1 (worst) to 7, and decides on its labeler.

    Raises:
        InputError: another value, or no demonstration of this key.
    """
    if isinstance(value, bool) or not isinstance(value, int) or not LIKERT[0] <= value <= LIKERT[1]:
        raise InputError(f"The grade is {value!r:.40}. Choose {LIKERT[0]} to {LIKERT[1]}.")
    with store.write() as db:
        row = db.execute("select labeler from judgments where key = ? and demonstration is not null", (key,)).fetchone()
        if row is None:
            raise InputError("There is no demonstration of this key. Reload the page.")
        db.execute("update judgments set grade = ? where key = ?", (value, key))
        update(store, row["labeler"])


def ungraded_demonstrations(store: Store) -> list[dict[str, Any]]:
    """Returns the demonstrations that wait for a grade: key, labeler, prompt, demonstration and gold, oldest first."""
    with store.read() as db:
        rows = db.execute(
            "select j.key, l.name as labeler, i.prompt, i.gold, j.demonstration from labelers l "
            "join judgments j on j.labeler = l.id join items i on i.id = j.item "
            "where l.screening = 'pending' and i.kind = 'demonstration' and i.gold is not null "
            "and j.skipped is null and j.grade is null order by j.created"
        ).fetchall()
    return [
        dict(row) | {"prompt": json.loads(row["prompt"]), "gold": json.loads(row["gold"]).get("demonstration")}
        for row in rows
    ]


def _equal_pairs(gold: list[int] | None, ranks: list[int] | None) -> list[bool]:
    """One for each pair of completions: both prefer the same, or both say tie."""
    if gold is None:
        return []
    pairs = list(combinations(range(len(gold)), 2))
    if ranks is None:
        return [False] * len(pairs)
    return [_order(gold[i] - gold[j]) == _order(ranks[i] - ranks[j]) for i, j in pairs]


def _equal_flags(gold: list[dict[str, bool | None]] | None, ratings: list[dict[str, Any]] | None) -> list[bool]:
    return [
        ratings is not None and ratings[i]["flags"].get(name) is value
        for i, flags in enumerate(gold or ())
        for name, value in flags.items()
        if value is not None
    ]


def _order(difference: int) -> int:
    return (difference > 0) - (difference < 0)
