"""Reads what labelers have judged from the store of `rlhf label`, an SQLite file, also while its server writes.

The store has a view `label_rows(kind, content)`. Each content is a JSON object with the columns of our files:

| kind | columns |
|---|---|
| comparison | `prompt`, `completions`, `ranks`, `labeler_id` |
| demonstration | `prompt`, `completion`, `labeler_id` |
| rating | `prompt`, `completion`, `rating`, `flags`, `labeler_id` |

Nothing else of the store is read, and nothing is written. A reader sees the judgments that were there when it began.
"""

import json
import sqlite3
from collections.abc import Callable, Generator, Iterator
from contextlib import closing
from dataclasses import replace
from functools import partial
from pathlib import Path

from rlhf.data.cells import unique_keys
from rlhf.data.files import SourceRow
from rlhf.data.sources import Splits
from rlhf.data.splits import split_of_name
from rlhf.errors import InputError, first_line
from rlhf.runs.digests import json_digest

SUFFIXES = (".db", ".sqlite", ".sqlite3")
HEADER = b"SQLite format 3\0"
# Kind -> columns that are read. Ratings beside a ranking are rows of their own.
COLUMNS = {
    "comparison": ("prompt", "completions", "ranks", "labeler_id", "labeler_group"),
    "demonstration": ("prompt", "completion", "labeler_id", "labeler_group"),
    "rating": ("prompt", "completion", "rating", "flags", "labeler_id"),
}
# What a stage loads -> kinds of rows.
KINDS = {
    "demonstrations": ("demonstration",),
    "comparisons": ("comparison",),
    "votes": ("comparison",),
    "prompts": tuple(COLUMNS),
}
GROUP = "json_extract(content, '$.labeler_group')"
HELD_OUT = "heldout"  # labeler_group of those who make no training data, as in the sandbox


def is_label_store(name: str | Path) -> bool:
    """True for a name that ends in one of `SUFFIXES`, whether it exists or not, and for any SQLite file."""
    try:
        path = Path(name).expanduser()
        if path.name.lower().endswith(SUFFIXES):
            return not path.is_dir()
        if not path.is_file():
            return False
        with path.open("rb") as file:
            return file.read(len(HEADER)) == HEADER
    except (OSError, RuntimeError, ValueError):  # no path: a name on the Hub, or one that another reader refuses
        return False


def find_label_splits(name: str, kind: str) -> Splits:
    """Returns the own splits of a store; call one for its rows.

    All rows are train rows, unless the name of the file says otherwise. But those of held-out labelers are validation
    rows: they produce none of the training data (arXiv 2203.02155, section 3.4).

    Args:
        kind: key of `KINDS`.

    Raises:
        InputError: there are no such rows in a store, or the file is no store.
    """
    path = Path(name).expanduser()
    if kind not in KINDS:
        raise InputError(f"{path} is a label store, which has no {kind} text. Give another file or data set.")
    own = split_of_name(path.name) or "train"
    if kind == "prompts":
        return {own: partial(_prompts, path)}
    read = partial(read_label_rows, path, *KINDS[kind])
    with closing(_open(path)) as store:
        groups = {group for (group,) in _query(store, path, f"SELECT DISTINCT {GROUP} FROM label_rows")}
    if own != "train" or HELD_OUT not in groups:
        return {own: read}
    return {"train": partial(_of_group, read, held_out=False), "validation": partial(_of_group, read, held_out=True)}


def read_label_rows(path: Path, *kinds: str) -> Iterator[SourceRow]:
    """Yields the rows of one or more kinds, in the order of `kinds` and of the judgments.

    If some prompts are messages, those that are text become a message of the user, so that all have one form.

    Raises:
        InputError: the file is missing, no label store or damaged, or has no row of these kinds.
    """
    with closing(_open(path)) as store:
        counts = dict(_query(store, path, "SELECT kind, count(*) FROM label_rows GROUP BY kind"))
        if not any(counts.get(kind) for kind in kinds):
            raise InputError(_nothing(path, kinds, counts))
        forms = _query(store, path, "SELECT DISTINCT json_type(content, '$.prompt') FROM label_rows")
        as_messages = ("array",) in set(forms)
        for kind in kinds:
            with closing(_query(store, path, "SELECT content FROM label_rows WHERE kind = ?", kind)) as found:
                for number, (text,) in enumerate(found, 1):
                    yield _row(path, kind, number, text, as_messages)


def _prompts(path: Path) -> Iterator[SourceRow]:
    """Yields each prompt once."""
    seen = set()
    for row in read_label_rows(path, *KINDS["prompts"]):
        prompt = row.content.get("prompt")
        digest = json_digest(prompt)
        if row.fault or digest not in seen:
            seen.add(digest)
            yield replace(row, content={} if row.fault else {"prompt": prompt})


def _of_group(read: Callable[[], Iterator[SourceRow]], held_out: bool) -> Iterator[SourceRow]:
    """Yields the rows of held-out labelers, or those of all others, who are the group training."""
    for row in read():
        group = row.content.get("labeler_group") or "training"
        if (group == HELD_OUT) == held_out:
            yield replace(row, content=row.content | {"labeler_group": group} if row.content else {})


def _open(path: Path) -> sqlite3.Connection:
    """Returns a connection that cannot write and sees one state of the store, whatever its server adds meanwhile."""
    if not path.is_file():
        raise InputError(f"{path} does not exist. Correct the path, or make a store with `rlhf label`.")
    uri = f"{path.resolve().as_uri()}?mode=ro"
    log = path.with_name(f"{path.name}-wal")
    has_log = log.exists() and log.stat().st_size > 0
    try:
        return _connected(uri)
    except sqlite3.OperationalError as error:
        if "label_rows" in str(error):
            raise InputError(
                f"{path} is a database without the view label_rows, so no label store. Give one of `rlhf label`."
            ) from error
        if has_log:
            raise InputError(
                f"{path} cannot be read ({error}). Give the right to write to its folder: {path.name}-wal holds labels."
            ) from error
        try:
            return _connected(f"{uri}&immutable=1")  # in a folder where SQLite may not write its log of readers
        except sqlite3.DatabaseError as again:
            raise InputError(f"{path} cannot be read ({again}). Correct its rights.") from again
    except sqlite3.DatabaseError as error:
        raise InputError(
            f"{path} is not a readable SQLite database ({error}). Give a store of `rlhf label`."
        ) from error


def _connected(uri: str) -> sqlite3.Connection:
    store = sqlite3.connect(uri, uri=True, isolation_level=None)
    try:
        store.execute("BEGIN")
        store.execute("SELECT kind, content FROM label_rows LIMIT 1").fetchone()
    except sqlite3.DatabaseError:
        store.close()
        raise
    return store


def _query(store: sqlite3.Connection, path: Path, query: str, *values: str) -> Generator[tuple]:
    try:
        yield from store.execute(query, values)
    except sqlite3.DatabaseError as error:
        raise InputError(f"{path} cannot be read to its end ({error}). Take a backup of it.") from error


def _row(path: Path, kind: str, number: int, text: str, as_messages: bool) -> SourceRow:
    place = f"{kind} {number}"
    try:
        content = json.loads(text, object_pairs_hook=unique_keys)
    except (TypeError, ValueError, RecursionError) as error:
        return SourceRow(str(path), place, {}, f"not valid JSON ({first_line(error)}); each row needs one JSON object")
    if not isinstance(content, dict):
        return SourceRow(str(path), place, {}, "not a JSON object; the columns as keys are needed")
    content = {name: content[name] for name in COLUMNS[kind] if content.get(name) is not None}
    if as_messages and isinstance(content.get("prompt"), str):
        content["prompt"] = [{"role": "user", "content": content["prompt"]}]
    return SourceRow(str(path), place, content)


def _nothing(path: Path, kinds: tuple[str, ...], counts: dict[str, int]) -> str:
    """Returns the message for a store without rows of these kinds."""
    there = " and ".join(f"{count:,} {kind}{'s' * (count != 1)}" for kind, count in sorted(counts.items()))
    wanted = " and no ".join(f"{kind}s" for kind in kinds)
    some = f"only {there}" if there else "nobody has judged anything yet"
    remedy = "Write demonstrations" if kinds == ("demonstration",) else "Judge completions"
    return f"{path} has no {wanted}: {some}. {remedy} on the page of `rlhf label` first."
