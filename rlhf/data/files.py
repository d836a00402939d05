"""Reads rows of json, jsonl, csv, parquet and txt files, each with its line, so that a bad row can be found."""

import csv
import gzip
import json
import re
import zlib
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from io import BufferedIOBase
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet

from rlhf.errors import InputError

SUFFIXES = (".jsonl", ".jsonl.gz", ".json", ".json.gz", ".csv", ".csv.gz", ".parquet", ".txt", ".txt.gz")
JSON_COLUMNS = ("messages", "completions", "ranks", "ratings", "votes")  # lists, as JSON in a csv cell
MAYBE_MESSAGES = ("prompt", "completion", "chosen", "rejected")  # text, or a list of messages as JSON
INDICES = ("best", "worst")
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
    if kind == "csv":
        return _csv_rows(path)
    if kind == "txt":
        return _text_rows(path)
    if kind == "json" and _starts_with(path, b"["):
        return _json_array_rows(path)
    return _jsonl_rows(path)


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
        raise InputError(f"{path} cannot be read: {getattr(error, 'strerror', None) or error}.") from error


def _open(path: Path) -> BufferedIOBase:
    return gzip.open(path, "rb") if path.name.lower().endswith(".gz") else path.open("rb")


def _starts_with(path: Path, start: bytes) -> bool:
    try:
        with _open(path) as file:
            return file.read(1024).removeprefix(b"\xef\xbb\xbf").lstrip().startswith(start)
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(f"{path} cannot be read: {getattr(error, 'strerror', None) or error}.") from error


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
        value = json.loads(text)
    except json.JSONDecodeError as error:
        return {}, f"not valid JSON ({error.msg} at column {error.colno}); each line needs one JSON object"
    except (ValueError, RecursionError) as error:  # a number of thousands of digits, brackets nested too deep
        return {}, f"not usable JSON ({error}); each line needs one JSON object"
    return _object(value)


def _object(value: Any) -> tuple[dict[str, Any], str | None]:
    if isinstance(value, dict):
        return value, None
    return {}, f"a JSON {type(value).__name__}; an object with the columns as keys is needed"


def _json_array_rows(path: Path) -> Iterator[SourceRow]:
    text = []
    for number, line, fault in _lines(path):
        if fault:
            raise InputError(f"{path}, line {number}: {fault}.")
        text.append(line)
    try:
        values = json.loads("".join(text))
    except json.JSONDecodeError as error:
        raise InputError(f"{path}, line {error.lineno} is not valid JSON ({error.msg}). Correct it there.") from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is not usable JSON ({error}). Write one JSON object per line instead.") from error
    for number, value in enumerate(values, 1):
        content, fault = _object(value)
        yield SourceRow(str(path), f"row {number}", content, fault)


def _text_rows(path: Path) -> Iterator[SourceRow]:
    """Yields one document per line, as `datasets` reads text files."""
    for number, line, fault in _lines(path):
        if fault or line.strip():
            yield SourceRow(str(path), f"line {number}", {} if fault else {"text": line.strip()}, fault)


def _csv_rows(path: Path) -> Iterator[SourceRow]:
    reader = csv.reader(_decoded(path), strict=True)
    header, last = None, 0
    try:
        for cells in reader:
            first, last = last + 1, reader.line_num  # a quoted cell may span lines
            if header is None:
                header = cells or None
            elif cells:
                yield _csv_row(path, first, header, cells)
    except csv.Error as error:
        raise InputError(f"{path}, line {last + 1} is not valid CSV ({error}). Check its quotes.") from error


def _decoded(path: Path) -> Iterator[str]:
    for number, line, fault in _lines(path):
        if fault:  # a quoted cell may span lines, so reading cannot continue after a lost line
            raise InputError(f"{path}, line {number}: {fault}.")
        yield line


def _csv_row(path: Path, number: int, header: list[str], cells: list[str]) -> SourceRow:
    place = f"line {number}"
    if len(cells) > len(header):
        fault = f"{len(cells)} cells under {len(header)} columns; put cells that hold commas in quotes"
        return SourceRow(str(path), place, {}, fault)
    content: dict[str, Any] = {name: cell for name, cell in zip(header, cells, strict=False) if cell}
    for name in content.keys() & set(JSON_COLUMNS):
        try:
            content[name] = json.loads(content[name])
        except (ValueError, RecursionError):
            example = "[0, 1, 2]" if name in ("ranks", "ratings") else '["one", "two"]'
            return SourceRow(str(path), place, {}, f"column {name} is not a list in JSON; write it like {example}")
    for name in content.keys() & set(MAYBE_MESSAGES):
        if re.match(r"\[\s*\{", content[name]):
            with suppress(ValueError, RecursionError):  # then it is text that begins like a list
                content[name] = json.loads(content[name])
    for name in content.keys() & set(INDICES):
        if re.fullmatch(r"\d{1,9}", content[name]):
            content[name] = int(content[name])
    return SourceRow(str(path), place, content)


def _parquet_rows(path: Path) -> Iterator[SourceRow]:
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            number = 0
            for batch in file.iter_batches(batch_size=1000):
                for content in batch.to_pylist():
                    number += 1
                    yield SourceRow(str(path), f"row {number}", content)
    except (pyarrow.ArrowException, OSError, ValueError, OverflowError) as error:
        reason = " ".join(str(error).split())
        raise InputError(f"{path} is not a readable Parquet file ({reason}). Write it again.") from error
