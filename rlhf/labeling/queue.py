"""The queue: which item a labeler gets next, and for how long it is hers.

Items are in the order of their batch's priority, then of their arrival. All labelers walk along this order, so that an
item for several labelers is complete soon. A lease keeps an item for a labeler for half an hour after her last draft;
then another labeler may get it. No labeler gets an item twice.

The walk starts where `labelers.next_place` and `next_item` say: all items before were judged by her, or need nobody. It
passes only items that others hold now, so its length does not depend on the number of items.
"""

import json
import random
import secrets
import sqlite3
from typing import Any

from rlhf.labeling import screening
from rlhf.labeling.batches import add_batch, find_item
from rlhf.labeling.items import Task
from rlhf.labeling.judgments import history, record, reopen, submit
from rlhf.labeling.store import Store, time_or_now
from rlhf.labeling.tasks import LEASE_SECONDS, as_task, find_task, save_draft, task_row

__all__ = ["add_batch", "find_item", "find_task", "history", "next_task", "record", "reopen", "save_draft", "submit"]

LEASES = "select count(*) from tasks t where t.item = {item} and t.revision = 0 and t.counted = 1 and t.expires > :now"
UNFINISHED = f"""
    select t.key, t.expires, i.wanted > i.judged + ({LEASES.format(item="i.id")}) as is_free
    from tasks t join items i on i.id = t.item
    where t.labeler = :labeler and t.revision = 0
    order by t.expires desc
"""
# The first item from a place on that she has not had. One row is asked for, not a list, because Python would hand its
# global lock to another thread at each row.
FIRST = f"""
    select i.id, i.place, i.wanted > i.judged + ({LEASES.format(item="i.id")}) as is_free
    from items i indexed by wanting
    where i.wanted > i.judged and {{part}}
        and not exists (select 1 from tasks t where t.item = i.id and t.labeler = :labeler) {{free}}
    order by i.place, i.id limit 1
"""
# SQLite uses one column of (place, id) >= (:place, :item), so this takes two queries.
PARTS = ("i.place = :place and i.id >= :item", "i.place > :place")
FREE, FREE_OR_HELD = ([FIRST.format(part=part, free=free) for part in PARTS] for free in ("and is_free", ""))
GOLD = """
    select i.id, i.place from items i indexed by gold_items
    where i.gold is not null and not exists (select 1 from tasks t where t.item = i.id and t.labeler = ?)
    order by i.place, i.id
"""


def next_task(store: Store, labeler_id: int, *, now: float | None = None) -> Task | None:
    """Returns the task that a labeler has begun, else the first item of the queue that is for her, now with a lease.

    During screening that is a gold item. None if there is nothing for her: others hold or have judged what is left, she
    waits for the result of her screening or has failed it, or she was revoked.
    """
    now = time_or_now(now)
    with store.write() as db:
        labeler = db.execute("select * from labelers where id = ?", (labeler_id,)).fetchone()
        if labeler is None or labeler["revoked"] or labeler["screening"] == "failed":
            return None
        key = _unfinished(db, labeler_id, now)
        if key is None and labeler["screening"] == "pending":
            row = None if screening.is_answered(store, labeler_id) else db.execute(GOLD, (labeler_id,)).fetchone()
            key = None if row is None else _lease(db, row, labeler_id, now, counted=False)
        elif key is None:
            key = _next(db, labeler, now)
        return None if key is None else as_task(task_row(db, key, labeler_id))


def _unfinished(db: sqlite3.Connection, labeler: int, now: float) -> str | None:
    """Returns the key of her task with a lease, or with an expired one if its item is still free."""
    for row in db.execute(UNFINISHED, {"labeler": labeler, "now": now}).fetchall():
        if row["expires"] > now or row["is_free"]:
            if row["expires"] < now + LEASE_SECONDS / 2:
                db.execute("update tasks set expires = ? where key = ?", (now + LEASE_SECONDS, row["key"]))
            return row["key"]
    return None


def _next(db: sqlite3.Connection, labeler: sqlite3.Row, now: float) -> str | None:
    values = {"place": labeler["next_place"], "item": labeler["next_item"], "labeler": labeler["id"], "now": now}
    begin = _first(db, FREE_OR_HELD, values)
    if begin is None:
        return None
    if (begin["place"], begin["id"]) != (values["place"], values["item"]):
        # An item that another labeler holds stays the beginning: she may not finish it.
        values |= {"place": begin["place"], "item": begin["id"]}
        db.execute("update labelers set next_place = :place, next_item = :item where id = :labeler", values)
    free = begin if begin["is_free"] else _first(db, FREE, values)
    return None if free is None else _lease(db, free, labeler["id"], now, counted=True)


def _first(db: sqlite3.Connection, queries: list[str], values: dict[str, Any]) -> sqlite3.Row | None:
    for query in queries:
        row = db.execute(query, values).fetchone()
        if row is not None:
            return row
    return None


def _lease(db: sqlite3.Connection, item: sqlite3.Row, labeler: int, now: float, counted: bool) -> str:
    key = secrets.token_urlsafe(16)
    [k] = db.execute("select json_array_length(completions) from items where id = ?", (item["id"],)).fetchone()
    shown = list(range(k))
    random.SystemRandom().shuffle(shown)
    db.execute(
        "insert into tasks (key, item, labeler, shown, expires, started, counted) values (?, ?, ?, ?, ?, ?, ?)",
        (key, item["id"], labeler, json.dumps(shown), now + LEASE_SECONDS, now, counted),
    )
    return key
