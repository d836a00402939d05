"""Judgments: taken in once, revised, and listed.

A page carries the key of its task and the revision that it shows. A judgment of the current revision is taken in; the
same judgment sent again changes nothing; another one of an old revision is refused. So a double click, a reload or a
second tab neither doubles nor overwrites a judgment. Judgments that are revised are kept (table `revisions`).
"""

import json
import secrets
import sqlite3
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from rlhf.labeling import screening
from rlhf.labeling.items import MAX_SECONDS, Conflict, Judgment, Task, check_judgment, dense_ranks
from rlhf.labeling.store import Store, time_or_now
from rlhf.labeling.tasks import as_task, task_row

CONTENT = ("ranks", "ratings", "demonstration", "skipped", "unrankable", "notes")
LAST = "select key from judgments where labeler = ? order by coalesce(revised, created) desc limit ?"


@dataclass(frozen=True)
class Judged:
    """A line of a labeler's history. Times are Unix seconds."""

    key: str
    kind: str
    prompt: str | list[dict[str, str]]
    skipped: str | None
    unrankable: bool
    created: float
    revised: float | None


def submit(
    store: Store,
    key: str,
    labeler_id: int,
    judgment: Judgment,
    *,
    now: float | None = None,
    flags: Collection[str] | None = None,
) -> bool:
    """Takes a judgment in, also after its lease. True if it is new, False if it was taken in before.

    Args:
        judgment: in the order of the screen. That of a later revision replaces the one before.
        flags: known names, for `check_judgment`.

    Raises:
        TaskNotFound: there is no such task, or it is another labeler's.
        Conflict: the task was judged in another way since the page was made.
        InputError: the judgment is incomplete or out of range.
    """
    now = time_or_now(now)
    with store.write() as db:
        row = task_row(db, key, labeler_id)
        shown = json.loads(row["shown"])
        check_judgment(row["kind"], len(shown), judgment, flags)
        content = _by_index(judgment, shown)
        if judgment.revision != row["revision"]:
            if content == _taken(db, row, judgment.revision):
                return False
            raise Conflict("This item was judged in another way since the page was opened. Reload it to see how.")
        seconds = min(judgment.seconds, MAX_SECONDS)
        if row["revision"]:
            _revise(db, row, content, seconds, now)
        else:
            db.execute(
                "insert into judgments (key, item, labeler, ranks, ratings, demonstration, skipped, unrankable, notes, "
                "seconds, created) values (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
                (key, row["item"], labeler_id, *content.values(), seconds, now),
            )
            db.execute("update labelers set done = done + 1 where id = ?", (labeler_id,))
        db.execute("update tasks set revision = revision + 1, draft = null where key = ?", (key,))
        before = bool(row["revision"]) and row["skipped"] is None
        _count(db, row, (judgment.skipped is None) - before)
        if row["is_gold"]:
            screening.update(store, labeler_id)
    return True


def reopen(store: Store, labeler_id: int, key: str | None = None) -> Task | None:
    """Returns a judged task, the last one without a key, with the judgment as its draft; None if there is none.

    The judgment holds until the page is submitted again.

    Raises:
        TaskNotFound: there is no task of this key, or it is another labeler's.
    """
    with store.read() as db:
        last = db.execute(LAST, (labeler_id, 1)).fetchone() if key is None else {"key": key}
        return None if last is None else as_task(task_row(db, last["key"], labeler_id))


def history(store: Store, labeler_id: int, limit: int = 50) -> list[Judged]:
    """Returns a labeler's last judgments, the last one first."""
    with store.read() as db:
        keys = [row["key"] for row in db.execute(LAST, (labeler_id, limit))]
        rows = [task_row(db, key, labeler_id) for key in keys]
    return [
        Judged(
            *(row["key"], row["kind"], json.loads(row["prompt"]), row["skipped"], bool(row["unrankable"])),
            *(row["created"], row["revised"]),
        )
        for row in rows
    ]


def record(store: Store, item_id: int, labeler_id: int, judgment: Judgment, *, now: float | None = None) -> bool:
    """Takes in a judgment that was made elsewhere, in the order of the item's completions. False if she has judged it.

    Raises:
        InputError: see `check_judgment`.
    """
    now = time_or_now(now)
    with store.write() as db:
        if db.execute("select 1 from tasks where item = ? and labeler = ?", (item_id, labeler_id)).fetchone():
            return False
        [completions] = db.execute("select completions from items where id = ?", (item_id,)).fetchone()
        key = secrets.token_urlsafe(16)
        shown = json.dumps(list(range(len(json.loads(completions)))))
        db.execute(
            "insert into tasks (key, item, labeler, shown, expires, started, counted) values (?, ?, ?, ?, ?, ?, 1)",
            (key, item_id, labeler_id, shown, now, now),
        )
        return submit(store, key, labeler_id, judgment, now=now)


def _by_index(judgment: Judgment, shown: list[int]) -> dict[str, Any]:
    """Returns the columns `CONTENT`, with ranks and ratings by index of the completion. A skip is its reason only."""
    if judgment.skipped is not None:
        judgment = Judgment(skipped=judgment.skipped, notes=judgment.notes)
    ranks = None
    if judgment.ranks is not None and not judgment.unrankable:
        ranks = _sorted_back(dense_ranks([rank for rank in judgment.ranks if rank is not None]), shown)
    ratings = None
    if judgment.ratings is not None:
        ratings = _sorted_back([vars(rating) for rating in judgment.ratings], shown)
    return {
        "ranks": None if ranks is None else json.dumps(ranks),
        "ratings": None if ratings is None else json.dumps(ratings, ensure_ascii=False, sort_keys=True),
        "demonstration": judgment.demonstration,
        "skipped": judgment.skipped,
        "unrankable": int(judgment.unrankable),
        "notes": judgment.notes,
    }


def _sorted_back(values: list[Any], shown: list[int]) -> list[Any]:
    by_index = dict(zip(shown, values, strict=True))
    return [by_index[i] for i in range(len(shown))]


def _taken(db: sqlite3.Connection, row: sqlite3.Row, revision: int) -> dict[str, Any] | None:
    """Returns the content that was taken in from the page of a revision; None for a revision that never was."""
    if revision == row["revision"] - 1:
        return {name: row[name] for name in CONTENT}
    old = db.execute(
        "select content from revisions where key = ? and revision = ?", (row["key"], revision + 1)
    ).fetchone()
    return None if old is None else {name: json.loads(old["content"])[name] for name in CONTENT}


def _revise(db: sqlite3.Connection, row: sqlite3.Row, content: dict[str, Any], seconds: float, now: float) -> None:
    old = {name: row[name] for name in (*CONTENT, "seconds", "created", "revised")}
    db.execute(
        "insert into revisions values (?, ?, ?)", (row["key"], row["revision"], json.dumps(old, ensure_ascii=False))
    )
    db.execute(
        "update judgments set ranks = ?, ratings = ?, demonstration = ?, skipped = ?, unrankable = ?, notes = ?, "
        "seconds = ?, revised = ?, grade = null where key = ?",
        (*content.values(), seconds, now, row["key"]),
    )


def _count(db: sqlite3.Connection, row: sqlite3.Row, more: int) -> None:
    """Adds to the number of judgments of an item. An item that lost one is again for those who have walked past it."""
    if not more or not row["counted"]:
        return
    db.execute("update items set judged = judged + ? where id = ?", (more, row["item"]))
    if more < 0:
        [place] = db.execute("select place from items where id = ?", (row["item"],)).fetchone()
        db.execute(
            "update labelers set next_place = ?, next_item = ? where (next_place, next_item) > (?, ?)",
            (place, row["item"], place, row["item"]),
        )
