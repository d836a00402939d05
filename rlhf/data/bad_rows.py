"""Handling of rows that cannot be used: the first one ends the run, or all are counted and listed in a file."""

import json
import logging
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from rlhf.data.files import SourceRow
from rlhf.errors import InputError
from rlhf.runs.artifacts import is_first_process

logger = logging.getLogger(__name__)
FILE_NAME = "skipped_rows.jsonl"


class BadRows:
    """Bad rows in one pass over some files.

    Args:
        on_bad_rows: "error" raises `InputError` at the first bad row, "skip" collects bad rows for `report`.
        output_dir: folder for `skipped_rows.jsonl`, with file, row and reason of each. None writes no file.

    Attributes:
        first: file, row and reason of the first bad row; None without any.
    """

    def __init__(self, on_bad_rows: Literal["error", "skip"], output_dir: str | Path | None):
        self.on_bad_rows = on_bad_rows
        self.output_dir = output_dir
        self.files: set[str] = set()
        self.rows_read = 0
        self.count = 0
        self.first: dict[str, str] | None = None
        self._lines = tempfile.TemporaryFile("w+", encoding="utf-8", errors="backslashreplace")  # noqa: SIM115

    def __len__(self) -> int:
        return self.count

    def read(self, row: SourceRow) -> None:
        """Counts a row, good or bad."""
        self.rows_read += 1
        self.files.add(row.file)

    def add(self, row: SourceRow, reason: str) -> None:
        """Raises `InputError` for a bad row or collects it, depending on `on_bad_rows`."""
        if self.on_bad_rows == "error":
            raise InputError(f"{row.file}, {row.place}: {reason}, or leave out bad rows with --on_bad_rows skip.")
        record = {"file": row.file, "row": row.place, "reason": reason}
        self.first = self.first or record
        self.count += 1
        self._lines.write(json.dumps(record, ensure_ascii=False) + "\n")

    def report(self) -> None:
        """Logs the number of skipped rows and lists them in place of the rows listed earlier for the same files."""
        if self.first is not None:
            logger.warning(
                "skipped %d of %d rows, the first being %s, %s: %s",
                *(self.count, self.rows_read, self.first["file"], self.first["row"], self.first["reason"]),
            )
        if self.output_dir is None or not is_first_process():
            return
        path = Path(self.output_dir) / FILE_NAME
        if self.count or path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            merged = path.with_suffix(".new")
            with merged.open("w", encoding="utf-8", errors="backslashreplace") as file:
                file.writelines(line for line in _lines(path) if json.loads(line)["file"] not in self.files)
                self._lines.seek(0)
                file.writelines(self._lines)
            merged.replace(path)


def _lines(path: Path) -> Iterator[str]:
    if path.exists():
        with path.open(encoding="utf-8") as file:
            yield from file
