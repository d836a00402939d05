"""Numbers of the admin page: progress, speed, agreement, flags, and each labeler's work."""

import json
import sqlite3
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import asdict
from itertools import combinations
from statistics import median
from typing import Any

from rlhf.errors import InputError
from rlhf.labeling.screening import COUNTS, GRADED, grade_rows
from rlhf.labeling.store import Store, time_or_now

HOUR = 3600.0
BATCHES = """
    select b.name, b.priority, count(i.id) as items, coalesce(sum(i.wanted <= i.judged), 0) as complete,
        coalesce(sum(i.gold is not null), 0) as gold, coalesce(sum(i.wanted), 0) as wanted,
        coalesce(sum(min(i.judged, i.wanted)), 0) as judged
    from batches b left join items i on i.batch = b.id group by b.id order by b.priority desc, b.id
"""
WORK = """
    select labeler, seconds, created, skipped is not null as skipped, unrankable, revised is not null as revised,
        demonstration is not null as demonstrations
    from judgments
"""
# True and answered, of the labels that are given out: not of labelers who have not passed screening.
FLAGS = f"""
    select f.key as name, sum(f.value) as "true", count(*) as answered
    from judgments j join labelers l on l.id = j.labeler, json_each(j.ratings) r, json_each(r.value, '$.flags') f
    where {COUNTS} and f.type in ('true', 'false')
    group by f.key order by f.key
"""
RATINGS = f"""
    select json_extract(r.value, '$.rating') as rating, count(*) as number
    from judgments j join labelers l on l.id = j.labeler, json_each(j.ratings) r
    where {COUNTS} and rating is not null group by rating order by rating
"""
SHARED = f"""
    select j.item, l.name, j.ranks, i.completions
    from judgments j join labelers l on l.id = j.labeler join items i on i.id = j.item
    where j.ranks is not null and {COUNTS}
        and j.item in (select item from judgments where ranks is not null group by item having count(*) > 1)
"""
ITEMS = """
    select b.name as batch, b.priority, i.kind, i.prompt, json_array_length(i.completions) as completions,
        i.wanted, i.judged, coalesce(s.skipped, 0) as skipped, i.gold is not null as gold
    from items i join batches b on b.id = i.batch
        left join (select item, count(*) as skipped from judgments where skipped is not null group by item) s
        on s.item = i.id
    order by i.place, i.id
"""


def overview(store: Store, *, now: float | None = None) -> dict[str, Any]:
    """Returns the numbers of the admin page, as JSON values.

    Returns:
        batches: name, priority, items, complete (have all labelers), gold, wanted and judged (numbers of judgments).
        items, complete, wanted, judged: their sums.
        submitted, skipped, unrankable, demonstrations, revised, last_hour, held: numbers of judgments, and of leases.
        median_seconds: in front of the screen for an item.
        labelers: for each id, name, role, screening, revoked, held_out, submitted, skipped, last_hour, median_seconds,
            last (Unix seconds) and gold: her agreement with the gold items (`rlhf.labeling.screening.Grade`).
        agreement: pairwise (mean, low, high, n) and alpha, each None if unknown, and items with two labelers.
        flags: name -> true, answered. ratings: 1 to 7 -> number.
    """
    now = time_or_now(now)
    with store.snapshot() as db:
        batches = [dict(row) for row in db.execute(BATCHES)]
        work = db.execute(WORK).fetchall()
        labelers = _labelers(db, work, now)
        flags = {row["name"]: {"true": row["true"], "answered": row["answered"]} for row in db.execute(FLAGS)}
        ratings = {row["rating"]: row["number"] for row in db.execute(RATINGS)}
        shared = db.execute(SHARED).fetchall()
        [held] = db.execute("select count(*) from tasks where revision = 0 and expires > ?", (now,)).fetchone()
    return {
        **{name: sum(batch[name] for batch in batches) for name in ("items", "complete", "wanted", "judged")},
        **_speed(work, now),
        **{name: sum(row[name] for row in work) for name in ("skipped", "unrankable", "demonstrations", "revised")},
        "held": held,
        "batches": batches,
        "labelers": labelers,
        "agreement": _agreement(shared),
        "flags": flags,
        "ratings": ratings,
    }


def labeler_rows(store: Store, *, now: float | None = None) -> list[dict[str, Any]]:
    """Returns `labelers` of `overview` alone."""
    with store.snapshot() as db:
        return _labelers(db, db.execute(WORK).fetchall(), time_or_now(now))


def item_rows(store: Store) -> list[dict[str, Any]]:
    """Returns a row for each item, in the order of the queue, as CSV cells.

    Returns:
        batch, priority, kind, prompt (JSON, or its text), completions, wanted, judged, skipped and gold.
    """
    with store.snapshot() as db:
        rows = [dict(row) for row in db.execute(ITEMS)]
    for row in rows:
        prompt = json.loads(row["prompt"])
        row["prompt"] = prompt if isinstance(prompt, str) else row["prompt"]
    return rows


def _speed(work: list[sqlite3.Row], now: float) -> dict[str, Any]:
    seconds = [row["seconds"] for row in work if not row["skipped"]]
    return {
        "submitted": len(work),
        "last_hour": sum(row["created"] > now - HOUR for row in work),
        "median_seconds": median(seconds) if seconds else None,
    }


def _labelers(db: sqlite3.Connection, work: list[sqlite3.Row], now: float) -> list[dict[str, Any]]:
    own, gold = _by_labeler(work), _by_labeler(db.execute(GRADED))
    everybody = db.execute("select * from labelers order by id").fetchall()
    return [_labeler(one, own[one["id"]], gold[one["id"]], now) for one in everybody]


def _labeler(one: sqlite3.Row, work: list[sqlite3.Row], gold: list[sqlite3.Row], now: float) -> dict[str, Any]:
    return {
        **{name: one[name] for name in ("id", "name", "role", "screening")},
        **{name: bool(one[name]) for name in ("revoked", "held_out")},
        **_speed(work, now),
        "skipped": sum(row["skipped"] for row in work),
        "last": max((row["created"] for row in work), default=None),
        "gold": asdict(grade_rows(gold)),
    }


def _by_labeler(rows: Iterable[sqlite3.Row]) -> dict[int, list[sqlite3.Row]]:
    by_labeler: dict[int, list[sqlite3.Row]] = defaultdict(list)
    for row in rows:
        by_labeler[row["labeler"]].append(row)
    return by_labeler


def _agreement(shared: list[sqlite3.Row]) -> dict[str, Any]:
    """Returns both measures over pairs of completions that two labelers have ranked."""
    if not shared:
        return {"pairwise": None, "alpha": None, "items": 0}
    from rlhf.agreement import krippendorff_alpha, pairwise_agreement  # NumPy and SciPy, which the server does without

    pairs: dict[tuple[int, int, int], dict[str, int]] = defaultdict(dict)
    for row in shared:
        ranks, texts = json.loads(row["ranks"]), json.loads(row["completions"])
        for i, j in combinations(range(len(ranks)), 2):
            if texts[i] != texts[j]:
                pairs[row["item"], i, j][row["name"]] = (ranks[i] < ranks[j]) - (ranks[i] > ranks[j])
    several = {pair: votes for pair, votes in pairs.items() if len(votes) > 1}
    pairwise = pairwise_agreement(several)
    try:
        alpha = krippendorff_alpha(several) if several else None
    except InputError:  # the package is in another extra
        alpha = None
    items = len({item for item, _, _ in several})
    return {"pairwise": None if pairwise is None else asdict(pairwise), "alpha": alpha, "items": items}
