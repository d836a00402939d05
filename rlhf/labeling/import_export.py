"""Rankings in; labels out, as JSON lines that the stages read, as Argilla's records, and as CSV for spreadsheets."""

import csv
import io
import json
import os
import uuid
from collections.abc import Iterable, Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

from rlhf.errors import InputError
from rlhf.labeling import people
from rlhf.labeling.items import LIKERT, Item, Judgment, Rating, stored_order
from rlhf.labeling.queue import add_batch, find_item, record
from rlhf.labeling.screening import COUNTS
from rlhf.labeling.store import Store

FORMULA = tuple("=+-@\t\r\n＝＋－＠")  # a spreadsheet runs a cell that begins with one of these
USERS = uuid.uuid5(uuid.NAMESPACE_URL, "rlhf-labelers")
JUDGED = f"""
    select i.digest, i.kind, i.prompt, i.completions, i.sources, b.name as batch, l.name as labeler, j.ranks, j.ratings,
        j.demonstration, j.unrankable, j.notes
    from judgments j join items i on i.id = j.item join labelers l on l.id = j.labeler join batches b on b.id = i.batch
    where j.skipped is null and {COUNTS}
    order by i.id, j.created
"""


def import_rankings(
    store: Store, rows: Iterable[Mapping[str, Any]], batch: str, labeler: str = "imported", *, now: float | None = None
) -> int:
    """Takes rankings in as judgments of their `labeler_id`, who is added if need be, and returns how many are new.

    A ranking of an item that the labeler has judged already counts for nothing.

    Args:
        rows: comparisons of `rlhf.labeling.make_items.read_rankings`.
        batch: name of the batch of those items that are not in the store.
        labeler: name for rows without a labeler.
    """
    rows = list(rows)
    items = [ranking_item(row) for row in rows]
    new = 0
    with store.write() as db:
        add_batch(store, batch, items, now=now)
        known = {one.name: one.id for one in people.labelers(store)}
        for item, row in zip(items, rows, strict=True):
            name = row.get("labeler_id") or labeler
            if name not in known:
                people.add_labeler(store, name, held_out=row.get("labeler_group") == "heldout", now=now)
                known[name] = people.find_labeler(store, name).id
            item_id = find_item(store, item)
            assert item_id is not None  # it is in the batch, or was there before
            [completions] = db.execute("select completions from items where id = ?", (item_id,)).fetchone()
            judgment = _judgment(row, stored_order(item, json.loads(completions)))
            new += record(store, item_id, known[name], judgment, now=now)
    return new


def ranking_item(row: Mapping[str, Any], gold: bool = False) -> Item:
    """Returns the item of a comparison, to be ranked again or with its ranks as gold."""
    ranks = {"ranks": list(row["ranks"])} if gold else None
    return Item("comparison", row["prompt"], row["completions"], gold=ranks)


def export_jsonl(store: Store, folder: str | Path) -> dict[str, int]:
    """Writes comparisons.jsonl, demonstrations.jsonl and ratings.jsonl, and returns the number of rows of each.

    Each is a `dataset_name` of a stage, or a file for the judge people.
    """
    with store.read() as db:
        rows = db.execute("select kind, content from label_rows").fetchall()
    counts = {}
    for kind in ("comparison", "demonstration", "rating"):
        lines = [row["content"] for row in rows if row["kind"] == kind]
        _write(Path(folder).expanduser() / f"{kind}s.jsonl", "".join(f"{line}\n" for line in lines))
        counts[f"{kind}s"] = len(lines)
    return counts


def export_argilla(store: Store, path: str | Path) -> dict[str, int]:
    """Writes one file of records for Argilla's `dataset.records.from_json`, and returns the number of records.

    Fields are prompt and completion_1, completion_2, ...; questions are ranking (names of completions, the best first),
    ranks (JSON, 0 = best; a ranking of Argilla's has no ties), and for each completion rating_1, flags_1 (the names of
    those that are true) and notes_1; demonstration; notes. The id of a user is a UUID made of the labeler's name, which
    is in the record's metadata.
    """
    with store.read() as db:
        rows = db.execute(JUDGED).fetchall()
    records = [_record(list(group)) for _, group in groupby(rows, key=lambda row: row["digest"])]
    _write(Path(path).expanduser(), json.dumps(records, ensure_ascii=False, indent=1) + "\n")
    return {"records": len(records)}


def csv_text(header: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """Returns a table as CSV in which no cell is a formula, whatever labelers or models have written."""
    text = io.StringIO()
    writer = csv.writer(text, quoting=csv.QUOTE_ALL)  # no separator of a cell's text begins another cell
    writer.writerow(map(safe_cell, header))
    writer.writerows(map(safe_cell, row) for row in rows)
    return text.getvalue()


def safe_cell(value: Any) -> Any:
    """Returns text that a spreadsheet shows and does not run: an apostrophe comes before the sign of a formula.

    Numbers stay as they are.
    """
    if value is None or isinstance(value, bool | int | float):
        return value
    text = str(value).replace("\0", "")
    return f"'{text}" if text.lstrip(" \xa0\u3000\ufeff\u200b").startswith(FORMULA) or text[:1].isspace() else text


def _judgment(row: Mapping[str, Any], order: list[int]) -> Judgment:
    """Returns the judgment of a row in another order of its completions."""
    ratings, low_high = row.get("ratings"), range(LIKERT[0], LIKERT[1] + 1)
    if ratings is not None and all(rating in low_high for rating in ratings):
        ratings = [Rating(int(ratings[i])) for i in order]
    else:  # none, or on another scale
        ratings = None
    return Judgment(ranks=[row["ranks"][i] for i in order], ratings=ratings)


def _record(judged: list[Mapping[str, Any]]) -> dict[str, Any]:
    first = judged[0]
    completions = json.loads(first["completions"])
    names = [f"completion_{i}" for i in range(1, len(completions) + 1)]
    responses: dict[str, list[dict[str, Any]]] = {}
    for row in judged:
        user = str(uuid.uuid5(USERS, row["labeler"]))
        for question, value in _answers(row, names).items():
            answer = {"value": value, "user_id": user, "status": "submitted"}
            responses.setdefault(question, []).append(answer)
    prompt = json.loads(first["prompt"])
    metadata = {"kind": first["kind"], "batch": first["batch"], "labelers": [row["labeler"] for row in judged]}
    if first["sources"] is not None:
        metadata["completion_sources"] = json.loads(first["sources"])
    return {
        "id": first["digest"],
        "fields": {"prompt": _prompt_text(prompt), **dict(zip(names, completions, strict=True))},
        "metadata": metadata,
        "suggestions": {},
        "responses": responses,
        "vectors": {},
    }


def _prompt_text(prompt: str | list[dict[str, str]]) -> str:
    """Returns what `rlhf.data.encode.prompt_text` does, whose module takes seconds to load tokenizers."""
    if isinstance(prompt, str) or len(prompt) == 1:
        return prompt if isinstance(prompt, str) else prompt[0]["content"]
    return "\n\n".join(f"{message['role'].capitalize()}: {message['content']}" for message in prompt)


def _answers(row: Mapping[str, Any], names: list[str]) -> dict[str, Any]:
    """Returns question -> value of one judgment."""
    answers: dict[str, Any] = {}
    if row["ranks"] is not None and not row["unrankable"]:
        ranks = json.loads(row["ranks"])
        answers["ranking"] = [names[i] for i in sorted(range(len(ranks)), key=ranks.__getitem__)]
        answers["ranks"] = json.dumps(ranks)
    for i, rating in enumerate(json.loads(row["ratings"] or "[]"), 1):
        flags = [name for name, value in rating["flags"].items() if value]
        parts = {f"rating_{i}": rating["rating"], f"flags_{i}": flags or None, f"notes_{i}": rating["notes"] or None}
        answers |= {name: value for name, value in parts.items() if value is not None}
    answers |= {name: row[name] for name in ("demonstration", "notes") if row[name]}
    return answers


def _write(path: Path, text: str) -> None:
    """Writes a file, which is whole at any time."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(f".{path.name}.partial")
        partial.write_text(text, encoding="utf-8")
        os.replace(partial, path)
    except OSError as error:
        raise InputError(f"{path} cannot be written ({error.strerror or error}). Give another path.") from error
