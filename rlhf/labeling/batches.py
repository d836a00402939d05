"""Batches of items: what waits for labelers, and how many each item wants."""

import json
import random
import sqlite3
from collections.abc import Iterable

from rlhf.errors import InputError
from rlhf.labeling.items import Item, check_item, content_digest, stored_order
from rlhf.labeling.store import Store, time_or_now

FIRST_PLACE = -(2**62)
MAX_PRIORITY = 10**9


def add_batch(
    store: Store,
    name: str,
    items: Iterable[Item],
    priority: int = 0,
    labelers_per_item: int = 1,
    share_for_several: float = 0.0,
    labelers_if_several: int = 3,
    seed: int = 0,
    *,
    now: float | None = None,
) -> int:
    """Adds items to a batch, which is made if there is none of that name, and returns how many are new.

    Items of equal content are one item: of an item that is in the store, only a missing gold judgment is added.

    Args:
        priority: items of the batch with the highest come first. Given for an old batch, it changes the whole batch.
        labelers_per_item: number of labelers who judge an item.
        share_for_several: share of the new items that `labelers_if_several` judge, chosen by `seed`. Agreement is
            measured on them.

    Raises:
        InputError: an item that cannot be shown, by its number from 1; or numbers that make no sense.
    """
    if not (0 <= share_for_several <= 1 and labelers_per_item >= 1 and labelers_if_several >= 1):
        raise InputError(
            f"labelers_per_item is {labelers_per_item}, labelers_if_several {labelers_if_several} and "
            f"share_for_several {share_for_several}. Give at least 1 labeler, and a share from 0 to 1."
        )
    if not name.strip() or abs(priority) > MAX_PRIORITY:
        raise InputError(f"Batch {name!r} has priority {priority}. Give a name, and at most {MAX_PRIORITY:,}.")
    rows = [(item, _columns(item, f"Batch {name}, item {number}")) for number, item in enumerate(items, 1)]
    now = time_or_now(now)
    with store.write() as db:
        db.execute(
            "insert into batches (name, priority, created) values (?, ?, ?) "
            "on conflict (name) do update set priority = excluded.priority",
            (name, priority, now),
        )
        [batch] = db.execute("select id from batches where name = ?", (name,)).fetchone()
        db.execute("update items set place = ? where batch = ? and place != ?", (-priority, batch, -priority))
        new: list[int] = []
        for item, columns in rows:
            added = db.execute(
                f"insert into items ({', '.join(columns)}, batch, wanted, place, created) "
                "values (?, ?, ?, ?, ?, ?, ?, ?, ?, ?) on conflict (digest) do nothing",
                (*columns.values(), batch, labelers_per_item, -priority, now),
            )
            if added.rowcount == 1 and added.lastrowid is not None:
                new.append(added.lastrowid)
            elif item.gold is not None:
                _add_gold(db, item)
        several = random.Random(seed).sample(new, round(share_for_several * len(new)))
        db.executemany("update items set wanted = ? where id = ?", [(labelers_if_several, i) for i in several])
        db.execute("update labelers set next_place = ?, next_item = 0", (FIRST_PLACE,))
    return len(new)


def find_item(store: Store, item: Item) -> int | None:
    """Returns the id of the item of equal content, for `rlhf.labeling.judgments.record`; None if there is none."""
    with store.read() as db:
        row = db.execute("select id from items where digest = ?", (content_digest(item),)).fetchone()
    return None if row is None else row["id"]


def _columns(item: Item, name: str) -> dict[str, str | None]:
    """Returns the columns that an item alone decides on."""
    try:
        check_item(item)
    except InputError as error:
        raise InputError(f"{name}: {error}") from error
    return {
        "digest": content_digest(item),
        "kind": item.kind,
        "prompt": _json(item.prompt),
        "completions": _json(list(item.completions)),
        "sources": None if item.sources is None else _json(list(item.sources)),
        "gold": None if item.gold is None else _json(item.gold),
    }


def _add_gold(db: sqlite3.Connection, item: Item) -> None:
    """Gives a known item its gold judgment. The known item may have its completions in another order."""
    digest = content_digest(item)
    row = db.execute("select completions, gold from items where digest = ?", (digest,)).fetchone()
    if row["gold"] is not None:
        return
    gold = dict(item.gold or {})
    order = stored_order(item, json.loads(row["completions"]))
    for name in ("ranks", "ratings", "flags"):
        if gold.get(name) is not None:
            gold[name] = [gold[name][i] for i in order]
    db.execute("update items set gold = ? where digest = ?", (_json(gold), digest))


def _json(value: object) -> str:
    return json.dumps(value, ensure_ascii=False)
