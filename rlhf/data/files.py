"""Reads rows of json, jsonl, csv, tsv, parquet and txt files, each with its line, so that a bad row can be found."""

import csv
import gzip
import json
import re
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from io import BufferedIOBase
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet

from rlhf.data.cells import unique_keys
from rlhf.data.checks import RowError
from rlhf.data.spellings import QUESTIONS, SCORES
from rlhf.errors import InputError, first_line

SUFFIXES = (
    ".jsonl",
    ".jsonl.gz",
    ".json",
    ".json.gz",
    ".csv",
    ".csv.gz",
    ".tsv",
    ".tsv.gz",
    ".parquet",
    ".txt",
    ".txt.gz",
)
DELIMITERS = ",;\t|"
# Columns of numbers, which are text in a csv cell.
NUMBERS = frozenset(
    (
        *(
            "best",
            "worst",
            "rank",
            "helpfulness",
            "preference_strength",
            "overall_preference",
            "choice",
            "labels",
            "turn",
        ),
        *("score_0", "score_1", "weight", *(name for pair in SCORES for name in pair)),
    )
)
NUMBER = re.compile(r"-?\d{1,9}(\.\d+)?")
SPLITS = {"train", "validation", "valid", "val", "dev", "test"}
ROW_KEYS = {"prompt", "messages", "conversations", *QUESTIONS}  # one of them is in every row
CONTAINERS = ("data", "train", "rows", "examples", "samples", "records", "items")  # keys of a list of rows
csv.field_size_limit(2**31 - 1)  # the default of 128 KiB is less than one long document


@dataclass(frozen=True)
class SourceRow:
    """A row as it was read.

    Attributes:
        file: path, or name of the Hub dataset and its split.
        place: "line 7" of a text file, "row 7" of other sources, from 1.
        content: columns; empty if the row cannot be read.
        fault: reason why it cannot be read, and the remedy.
    """

    file: str
    place: str
    content: dict[str, Any]
    fault: str | None = None


def read_rows(path: Path) -> Iterator[SourceRow]:
    """Yields the rows of a file in order, without empty lines.

    A line that is not UTF-8 or not JSON becomes a row with a fault, and reading continues after it.

    Raises:
        InputError: the file as a whole cannot be read.
    """
    kind = path.name.lower().removesuffix(".gz").rsplit(".", 1)[-1]
    if kind == "parquet":
        return _parquet_rows(path)
    if kind in ("csv", "tsv"):
        return _csv_rows(path, "\t" if kind == "tsv" else ",")
    if kind == "txt":
        return _text_rows(path)
    if kind == "json" and _starts_with(path, b"["):
        return _json_array_rows(path)
    if kind == "json" and _starts_with(path, b"{") and not _first_line_is_row(path):
        return _json_object_rows(path)
    if kind == "jsonl" and _starts_with(path, b"[") and (rows := _array_of_rows(path)):
        return rows
    return _jsonl_rows(path)


def sound_rows(path: Path) -> Iterator[SourceRow]:
    """Yields the rows of a file of which every row must be readable.

    Raises:
        InputError: a row cannot be read, by file and place.
    """
    for row in read_rows(path):
        with named_row(row):
            pass
        yield row


@contextmanager
def named_row(row: SourceRow, before: str = "") -> Iterator[None]:
    """Reads a row that must be good: its fault, or a RowError inside, is an InputError with file and place.

    Args:
        before: beginning of the message.
    """
    try:
        if row.fault:
            raise RowError(row.fault)
        yield
    except RowError as error:
        raise InputError(f"{before}{row.file}, {row.place}: {error}.") from error


def is_readable(path: Path) -> bool:
    """True if the file's name ends in one of `SUFFIXES`."""
    return path.name.lower().endswith(SUFFIXES)


def _lines(path: Path) -> Iterator[tuple[int, str, str | None]]:
    """Yields (number, text, fault) of each line; the text of a line with a fault is empty."""
    try:
        with _open(path) as file:
            for number, line in enumerate(file, 1):
                try:
                    yield number, line.decode("utf-8-sig" if number == 1 else "utf-8"), None
                except UnicodeDecodeError as error:
                    byte = f"byte 0x{line[error.start]:02x} at position {error.start + 1}"
                    yield number, "", f"not UTF-8 text ({byte} of the line); save the file as UTF-8"
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(
            f"{path} cannot be read: {first_line(error)}. Check its permissions, or copy it here again."
        ) from error


def _open(path: Path) -> BufferedIOBase:
    return gzip.open(path, "rb") if path.name.lower().endswith(".gz") else path.open("rb")


def _starts_with(path: Path, start: bytes) -> bool:
    try:
        with _open(path) as file:
            return file.read(1024).removeprefix(b"\xef\xbb\xbf").lstrip().startswith(start)
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(
            f"{path} cannot be read: {first_line(error)}. Check its permissions, or copy it here again."
        ) from error


def _jsonl_rows(path: Path) -> Iterator[SourceRow]:
    for number, line, fault in _lines(path):
        if fault is None and not line.strip():
            continue
        content = {}
        if fault is None:
            content, fault = _parse_object(line)
        yield SourceRow(str(path), f"line {number}", content, fault)


def _parse_object(text: str) -> tuple[dict[str, Any], str | None]:
    try:
        value = json.loads(text, object_pairs_hook=unique_keys)
    except json.JSONDecodeError as error:
        return {}, f"not valid JSON ({error.msg} at column {error.colno}); each line needs one JSON object"
    except (ValueError, RecursionError) as error:  # a number of thousands of digits, brackets nested too deep
        return {}, f"not usable JSON ({error}); each line needs one JSON object"
    return _object(value)


def _object(value: Any) -> tuple[dict[str, Any], str | None]:
    if not isinstance(value, dict):
        return {}, f"a JSON {type(value).__name__}; an object with the columns as keys is needed"
    fault = _pandas_fault(value)
    return ({}, fault) if fault else (value, None)


def _pandas_fault(value: dict[str, Any]) -> str | None:
    """Returns a fault for a whole table in one object, as pandas writes it by default or with orient."""
    remedy = 'write rows with to_json(path, orient="records", lines=True)'
    if value.keys() <= {"columns", "index", "data"} and all(
        isinstance(value.get(n), list) for n in ("columns", "data")
    ):
        return f'a table that pandas wrote with orient="split"; {remedy}'
    if not value or not all(isinstance(inner, dict) and inner for inner in value.values()):
        return None
    if all(all(map(str.isdigit, inner)) for inner in value.values()):
        return f"a table that pandas wrote by default, which holds columns and not rows; {remedy}"
    if all(map(str.isdigit, value)) or all(inner.keys() & ROW_KEYS for inner in value.values()):
        return f'a table that pandas wrote with orient="index"; {remedy}'
    return None


def _json_array_rows(path: Path) -> Iterator[SourceRow]:
    return _rows_of_values(path, _whole_json(path))


def _json_object_rows(path: Path) -> Iterator[SourceRow]:
    """Yields the rows of an object that holds them in one list, {"data": [...]}; any other object is one row."""
    value = _whole_json(path)
    holders = [key for key, rows in value.items() if isinstance(rows, list) and rows and isinstance(rows[0], dict)]
    if len(value) > 1 and value.keys() <= SPLITS:
        raise InputError(f"{path} holds several splits ({', '.join(value)}). Write each into a file of its own.")
    if len(holders) == 1 and holders[0] in CONTAINERS:
        return _rows_of_values(path, value[holders[0]])
    if fault := _pandas_fault(value):
        raise InputError(f"{path} is {fault}.")
    return _rows_of_values(path, [value])


def _array_of_rows(path: Path) -> Iterator[SourceRow] | None:
    """Returns the rows of an array of objects in a file that is named like JSON lines; None if it is none."""
    try:
        values = _whole_json(path)
    except InputError:
        return None
    return _rows_of_values(path, values) if values and all(isinstance(value, dict) for value in values) else None


def _first_line_is_row(path: Path) -> bool:
    """True for JSON lines in a file that is named like JSON."""
    lines = [line for _, line, fault in islice(_lines(path), 100) if fault or line.strip()]
    content, fault = _parse_object(lines[0]) if lines else ({}, None)
    return len(lines) > 1 and fault is None and not (len(content) == 1 and next(iter(content)) in CONTAINERS)


def _whole_json(path: Path) -> Any:
    text = []
    for number, line, fault in _lines(path):
        if fault:
            raise InputError(f"{path}, line {number}: {fault}.")
        text.append(line)
    try:
        return json.loads("".join(text), object_pairs_hook=unique_keys)
    except json.JSONDecodeError as error:
        raise InputError(f"{path}, line {error.lineno} is not valid JSON ({error.msg}). Correct it there.") from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is not usable JSON ({error}). Write one JSON object per line instead.") from error


def _rows_of_values(path: Path, values: list[Any]) -> Iterator[SourceRow]:
    for number, value in enumerate(values, 1):
        content, fault = _object(value)
        yield SourceRow(str(path), f"row {number}", content, fault)


def _text_rows(path: Path) -> Iterator[SourceRow]:
    """Yields one document per line, as `datasets` reads text files."""
    for number, line, fault in _lines(path):
        if fault or line.strip():
            yield SourceRow(str(path), f"line {number}", {} if fault else {"text": line.strip()}, fault)


def _csv_rows(path: Path, default: str) -> Iterator[SourceRow]:
    delimiter = _delimiter(path, default)
    reader = csv.reader(_decoded(path), strict=True, delimiter=delimiter)
    header, last = None, 0
    try:
        for cells in reader:
            first, last = last + 1, reader.line_num  # a quoted cell may span lines
            if header is None:
                header = _header(path, cells) if cells else None
            elif any(cell.strip() for cell in cells):  # spreadsheets write empty rows as ";;"
                yield _csv_row(path, first, header, cells, delimiter)
    except csv.Error as error:
        raise InputError(f"{path}, line {last + 1} is not valid CSV ({error}). Check its quotes.") from error


def _delimiter(path: Path, default: str) -> str:
    """Returns the delimiter that divides the header into the most columns; of equals, the first of `DELIMITERS`."""
    header = next((line for _, line, _ in _lines(path) if line.strip()), "")
    widths = {}
    for delimiter in sorted(DELIMITERS, key=lambda one: one != default):
        with suppress(csv.Error):
            widths[delimiter] = len(next(csv.reader([header], delimiter=delimiter)))
    return max(widths, key=widths.__getitem__, default=default)


def _header(path: Path, cells: list[str]) -> list[str]:
    names = [cell.strip() for cell in cells]
    twice = sorted({name for name in names if name and names.count(name) > 1})
    if twice:
        raise InputError(f"{path} has two columns with the name {twice[0]!r}. Give each its own name.")
    return names


def _decoded(path: Path) -> Iterator[str]:
    for number, line, fault in _lines(path):
        if fault:  # a quoted cell may span lines, so reading cannot continue after a lost line
            raise InputError(f"{path}, line {number}: {fault}.")
        yield line


def _csv_row(path: Path, number: int, header: list[str], cells: list[str], delimiter: str) -> SourceRow:
    place = f"line {number}"
    if delimiter == "\t" and any("\t" in cell and "\n" in cell for cell in cells):
        fault = (
            "a cell holds a tab and a newline: a quotation mark that begins a cell and is not doubled takes "
            "in the lines up to the next one; write each as two in a quoted cell, or write JSON lines"
        )
        return SourceRow(str(path), place, {}, fault)
    if len(cells) != len(header):
        fault = f"{len(cells)} cells under {len(header)} columns; put cells that hold delimiters or newlines in quotes"
        return SourceRow(str(path), place, {}, fault)
    content: dict[str, Any] = {name: cell or None for name, cell in zip(header, cells, strict=True) if name}
    for i, (name, cell) in enumerate(zip(header, cells, strict=True)):
        is_index = i == 0 and NUMBER.fullmatch(cell)  # pandas writes its row numbers under no name
        if not name and cell.strip() and not is_index:
            fault = f"a column without a name holds {cell!r:.40}; name it in the first line"
            return SourceRow(str(path), place, {}, fault)
    for name in content.keys() & NUMBERS:
        if content[name] and NUMBER.fullmatch(content[name]):
            content[name] = float(content[name]) if "." in content[name] else int(content[name])
    return SourceRow(str(path), place, content)


def _parquet_rows(path: Path) -> Iterator[SourceRow]:
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            names = file.schema_arrow.names
            if len(set(names)) < len(names):
                raise InputError(f"{path} has two columns with the same name ({', '.join(names)}). Rename one.")
            number = 0
            for batch in file.iter_batches(batch_size=1000):
                for content in batch.to_pylist():
                    number += 1
                    yield SourceRow(str(path), f"row {number}", content)
    except InputError:
        raise
    except (pyarrow.ArrowException, OSError, ValueError, OverflowError) as error:
        reason = " ".join(str(error).split())
        raise InputError(f"{path} is not a readable Parquet file ({reason}). Write it again.") from error
