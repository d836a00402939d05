"""Finds the columns that name the split of each row, and reads what they name.

A column of any name does, if most of its values are words for a split: {"subset": "test"}, {"ml_use": "TRAIN"}. So do
flags ({"is_test": true}), lists of one word, and the keys of objects ({"metadata": {"split": "test"}}). A column named
split or partition has no other meaning, so all of its values must be such words.
"""

import re
from collections.abc import Callable, Iterator
from functools import cache
from typing import Any, Literal

from rlhf.data.cells import parse_value
from rlhf.data.checks import TRUTH_VALUES, Row, is_empty
from rlhf.data.columns import parse_columns
from rlhf.data.files import SourceRow
from rlhf.data.schemas import KNOWN
from rlhf.data.splits import SPLITS, Split, split_of_name

HEAD = 1000  # rows in which the columns are looked for
# Prompts and answers, which may be any word, and people: InstructGPT holds out labelers, and trains on their rankings.
READ_OTHERWISE = KNOWN - {"category", "source"}
SPLIT_NAME = re.compile(r"(?i)(?<![a-z])(data|dataset)?(splits?|partition)[\W\d_]*$")
# Names that often stand for split; one word for validation or test among their values is enough.
LIKELY_NAMES = frozenset(["set", "dataset", "subset", "fold", "phase", "usage", "use", "stage", "part"])
TOPICS = frozenset(["development", "evaluation", "evaluate", "validate", "benchmark", "benchmarks", "tests", "testing"])
SHORT: dict[str, Split] = {"tr": "train", "trn": "train", "va": "validation", "te": "test", "tst": "test"}
FLAG = re.compile("^(is|in|for)[^a-z]*(?=[a-z])")
BARE_FLAGS = frozenset(["train", "training", "val", "validation", "dev", "test", "heldout", "holdout", "unseen"])

Named = Split | Literal["not train"]
Path = tuple[str, ...]  # names of a column and, within an object, of its key


def find_split_columns(head: list[SourceRow], columns: list[str] | None) -> list[Path]:
    """Returns the columns, and the keys within objects, that name the split of each row.

    Args:
        head: first rows of the source.
        columns: --columns. What it renames or leaves out names no split.
    """
    skip = READ_OTHERWISE | parse_columns(columns).keys()
    values: dict[Path, list[Any]] = {}
    for row in head:
        for path, value in _cells(row.content, skip):
            if not is_empty(value):
                values.setdefault(path, []).append(value)
    return [path for path, found in values.items() if _names_splits(path[-1], found)]


def role_of(row: SourceRow, paths: list[Path], own: Split) -> Split:
    """Returns what a row is for: the latest of train, validation and test, by its file and by its columns.

    Raises:
        ValueError: a column that names splits holds something else. The message is a fault of the row.
    """
    named = [_named(path, value) for path in paths if not is_empty(value := _value(row.content, path))]
    places = [SPLITS.index(own), *(SPLITS.index(role) for role in named if role != "not train")]
    if "not train" in named and not {"validation", "test"} & set(named):
        places.append(SPLITS.index("test"))
    return SPLITS[max(places)]


def by_role(rows: Callable[[], Iterator[SourceRow]], paths: list[Path], own: Split, part: Split) -> Iterator[SourceRow]:
    """Yields the rows of one part. A row whose columns cannot be read stands with those of the source's own split."""
    for row in rows():
        try:
            role = role_of(row, paths, own)
        except ValueError as error:
            role, row = own, SourceRow(row.file, row.place, {}, row.fault or str(error))
        if role == part:
            yield row


def _cells(content: Row, skip: Any) -> Iterator[tuple[Path, Any]]:
    for name, value in content.items():
        if name in skip:
            continue
        inner = _as_object(value)
        if inner is None:
            yield (name,), value
        else:
            yield from (((name, str(key)), item) for key, item in inner.items())


def _value(content: Row, path: Path) -> Any:
    value = content.get(path[0])
    if len(path) == 1:
        return value
    inner = _as_object(value)
    return {str(key): item for key, item in inner.items()}.get(path[1]) if inner is not None else None


def _as_object(value: Any) -> dict[Any, Any] | None:
    """Returns an object, also one that a file spells as text."""
    if isinstance(value, str) and value.startswith("{") and len(value) < 10_000:
        try:
            value = parse_value(value)
        except ValueError:
            return None
    return value if isinstance(value, dict) else None


def _names_splits(name: str, values: list[Any]) -> bool:
    if _flag(name, values) is not None or SPLIT_NAME.search(_spaced(name)):
        return True
    is_likely = re.split("[^a-z]+", _spaced(name).lower().strip("_0123456789 "))[-1] in LIKELY_NAMES
    found = [word for word in (_word(value, is_likely) for value in values) if word is not None]
    return 2 * len(found) >= len(values) or (is_likely and bool({"validation", "test"} & set(found)))


def _named(path: Path, value: Any) -> Named:
    """Returns what one value names.

    Raises:
        ValueError: it names nothing.
    """
    flag = _flag(path[-1], [value])
    if flag is not None:
        if TRUTH_VALUES[str(value).strip().lower()]:
            return flag
        return "not train" if flag == "train" else "train"
    named = _word(value, True) or (split_of_name(value) if isinstance(value, str) else None)
    if named is None:
        raise ValueError(
            f"column {'.'.join(path)} names the split of other rows, and is {value!r:.40} here; write train, "
            f"validation or test, or leave the column out with --columns ignore={path[0]}"
        )
    return named


def _word(value: Any, is_likely: bool) -> Split | None:
    """Returns the split that a whole value names: "TEST", "valid1", ["test"]."""
    if isinstance(value, list) and len(value) == 1:
        value = value[0]
    return _split_of_word(value, is_likely) if isinstance(value, str) and len(value) < 40 else None


@cache
def _split_of_word(word: str, is_likely: bool) -> Split | None:
    word = word.strip().rstrip("0123456789_- ").lower()
    if not is_likely and word in TOPICS:
        return None
    return split_of_name(word, whole=True) or (SHORT.get(word) if is_likely else None)


def _flag(name: str, values: list[Any]) -> Split | None:
    """Returns the split of which a column says true or false, such as is_test."""
    word, has_prefix = FLAG.subn("", _spaced(name).lower(), count=1)
    word = re.sub("[^a-z]", "", word)
    is_flag = word in BARE_FLAGS or (has_prefix and word in ("eval", "evaluation", "benchmark"))
    num_truths = sum(map(_is_truth, values))
    if not is_flag or num_truths < len(values) / (2 if has_prefix else 1):
        return None
    return split_of_name(word, whole=True)


def _is_truth(value: Any) -> bool:
    return not isinstance(value, list | dict) and str(value).strip().lower() in TRUTH_VALUES


@cache
def _spaced(name: str) -> str:
    return re.sub("(?<=[a-z0-9])(?=[A-Z])", "_", str(name))
