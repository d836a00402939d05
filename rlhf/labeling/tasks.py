"""Tasks: items as one labeler sees them, with her drafts. Another labeler's task is as one that does not exist."""

import json
import math
import sqlite3
from typing import Any

from rlhf.errors import InputError
from rlhf.labeling.items import MAX_SECONDS, Task, TaskNotFound
from rlhf.labeling.store import Store, time_or_now

LEASE_SECONDS = 30 * 60.0
MAX_DRAFT = 1_000_000  # characters of JSON
TASK = """
    select t.*, i.kind, i.prompt, i.completions, i.gold is not null as is_gold, b.name as batch, l.done,
        j.ranks, j.ratings, j.demonstration, j.skipped, j.unrankable, j.notes, j.seconds, j.created, j.revised
    from tasks t join items i on i.id = t.item join batches b on b.id = i.batch join labelers l on l.id = t.labeler
        left join judgments j on j.key = t.key
    where t.key = ? and t.labeler = ?
"""


def find_task(store: Store, key: str, labeler_id: int) -> Task:
    """Returns a labeler's task.

    Raises:
        TaskNotFound: there is none, or it is another labeler's.
    """
    with store.read() as db:
        return as_task(task_row(db, key, labeler_id))


def save_draft(
    store: Store, key: str, labeler_id: int, draft: dict[str, Any], active: float = 0.0, *, now: float | None = None
) -> bool:
    """Keeps a draft, and the item for half an hour more. False for the draft of a page that was submitted since.

    Args:
        draft: JSON object in the order of the screen, with the `revision` of the page (0 without).
        active: seconds in front of the screen so far.

    Raises:
        TaskNotFound: see `find_task`.
        InputError: the draft is no object, or longer than a million characters.
    """
    now = time_or_now(now)
    if not isinstance(draft, dict) or len(text := json.dumps(draft, ensure_ascii=False)) > MAX_DRAFT:
        raise InputError("The draft is no object, or is longer than a million characters. Shorten it.")
    active = active if 0 <= active < math.inf else 0.0
    with store.write() as db:
        row = task_row(db, key, labeler_id)
        if draft.get("revision", 0) != row["revision"]:
            return False
        db.execute(
            "update tasks set draft = ?, active = max(active, ?), expires = ? where key = ?",
            (text, min(active, MAX_SECONDS), now + LEASE_SECONDS, key),
        )
    return True


def task_row(db: sqlite3.Connection, key: str, labeler_id: int) -> sqlite3.Row:
    """Returns the row of `TASK`. Raises TaskNotFound."""
    row = db.execute(TASK, (key, labeler_id)).fetchone()
    if row is None:
        raise TaskNotFound("There is no such task. Go back to the first page for the next one.")
    return row


def as_task(row: sqlite3.Row) -> Task:
    """Returns the task of a row of `TASK`."""
    completions = json.loads(row["completions"])
    draft = None if row["draft"] is None else json.loads(row["draft"])
    if draft is None and row["revision"]:
        draft = shown_judgment(row)
    return Task(
        key=row["key"],
        kind=row["kind"],
        prompt=json.loads(row["prompt"]),
        completions=[completions[i] for i in json.loads(row["shown"])],
        draft=draft,
        revision=row["revision"],
        expires=row["expires"],
        done=row["done"],
        batch=row["batch"],
        active=row["active"],
    )


def shown_judgment(row: sqlite3.Row) -> dict[str, Any]:
    """Returns the judgment in a row of `TASK` as its page sends it, with ranks and ratings in the screen's order."""
    shown = json.loads(row["shown"])
    content = {name: row[name] for name in ("demonstration", "skipped", "notes", "seconds")}
    for name in ("ranks", "ratings"):
        values = None if row[name] is None else json.loads(row[name])
        content[name] = None if values is None else [values[i] for i in shown]
    return content | {"unrankable": bool(row["unrankable"]), "revision": row["revision"]}
