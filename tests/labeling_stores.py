"""Small label stores for tests. All times are given, so nobody sleeps."""

from pathlib import Path

from rlhf.labeling import people, queue
from rlhf.labeling.items import Item, Judgment
from rlhf.labeling.store import Store

HOUR = 3600.0


def comparison(i: int, k: int = 3, **more) -> Item:
    return Item("comparison", f"Question {i}?", [f"Answer {letter} to {i}." for letter in "abcdefghi"[:k]], **more)


def demonstration(i: int, **more) -> Item:
    return Item("demonstration", f"Task {i}.", **more)


def new_store(folder: Path, items=5, names=("anna", "ben"), **batch) -> Store:
    """Returns a store with labelers of ids 1, 2, ... and items of ids 1, 2, ..."""
    store = Store(folder / "labels.db")
    for name in names:
        people.add_labeler(store, name, now=0.0)
    items = [comparison(i) for i in range(items)] if isinstance(items, int) else items
    queue.add_batch(store, "first", items, now=0.0, **batch)
    return store


def ranking(*ranks: int, **more) -> Judgment:
    return Judgment(ranks=list(ranks or (0, 1, 2)), **more)


def judge(store: Store, labeler: int, judgment: Judgment | None = None, now: float = 0.0):
    """Judges the next task of a labeler, and returns it."""
    task = queue.next_task(store, labeler, now=now)
    assert task is not None
    queue.submit(store, task.key, labeler, judgment or ranking(), now=now)
    return task


def rows(store: Store, query: str, *values) -> list[tuple]:
    with store.read() as db:
        return [tuple(row) for row in db.execute(query, values)]
