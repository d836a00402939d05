"""Small label stores with nothing but the view that readers use."""

import json
import sqlite3
from pathlib import Path


def write_store(path: Path, **rows: list[dict]) -> Path:
    """Writes an SQLite file in WAL mode whose label_rows are the given lists, by kind."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with sqlite3.connect(path) as store:
        store.execute("PRAGMA journal_mode=WAL")
        store.execute("CREATE TABLE judged(kind, content)")
        store.execute("CREATE VIEW label_rows AS SELECT kind, content FROM judged ORDER BY rowid")
        add_rows(store, **rows)
    store.close()
    return path


def add_rows(store: sqlite3.Connection, **rows: list[dict]) -> None:
    for kind, contents in rows.items():
        store.executemany("INSERT INTO judged VALUES (?, ?)", [(kind, json.dumps(row)) for row in contents])


def ranking(i: int, labeler: str = "ann", ranks=(0, 1), **more) -> dict:
    completions = [f"Answer {i} it is.", "no", "perhaps"][: len(ranks)]
    return {
        "prompt": f"Question {i}?", "completions": completions, "ranks": list(ranks), "labeler_id": labeler, **more
    }  # fmt: skip


def written(i: int, labeler: str = "ann") -> dict:
    return {"prompt": f"Question {i}?", "completion": f"Answer {i} it is.", "labeler_id": labeler}


def rated(i: int, rating: float, labeler: str = "ann", **flags) -> dict:
    return written(i, labeler) | {"rating": rating, "flags": flags}
