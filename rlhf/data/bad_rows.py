"""What happens to rows that cannot be used: the run ends at the first, or they are counted and listed in a file."""

import json
import logging
from pathlib import Path
from typing import Literal

from rlhf.data.files import Row
from rlhf.errors import InputError
from rlhf.runs import is_first_process

logger = logging.getLogger(__name__)
FILE_NAME = "skipped_rows.jsonl"


class BadRows:
    """Bad rows of one reading of some files.

    Args:
        on_bad_rows: "error" makes the first bad row an `InputError`; "skip" collects them for `report`.
        output_dir: folder for `skipped_rows.jsonl` with file, row and reason of each; None writes no file.
    """

    def __init__(self, on_bad_rows: Literal["error", "skip"], output_dir: str | Path | None):
        self.on_bad_rows = on_bad_rows
        self.output_dir = output_dir
        self.records: list[dict[str, str]] = []
        self.files: set[str] = set()
        self.rows_read = 0

    def __len__(self) -> int:
        return len(self.records)

    def read(self, row: Row) -> None:
        """Counts a row, good or bad."""
        self.rows_read += 1
        self.files.add(row.file)

    def add(self, row: Row, reason: str) -> None:
        """Raises or collects, as `on_bad_rows` says."""
        if self.on_bad_rows == "error":
            raise InputError(f"{row.file}, {row.place}: {reason}, or leave bad rows out with --on_bad_rows skip.")
        self.records.append({"file": row.file, "row": row.place, "reason": reason})

    def report(self) -> None:
        """Logs how many rows were skipped and lists them; of a file read before, the list is replaced."""
        if self.records:
            first = self.records[0]
            logger.warning(
                "skipped %d of %d rows, the first being %s, %s: %s",
                *(len(self), self.rows_read, first["file"], first["row"], first["reason"]),
            )
        if self.output_dir is None or not is_first_process():
            return
        path = Path(self.output_dir) / FILE_NAME
        kept = [record for record in _read_records(path) if record["file"] not in self.files]
        if kept or self.records or path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            lines = [json.dumps(record, ensure_ascii=False) + "\n" for record in kept + self.records]
            path.write_text("".join(lines), encoding="utf-8", errors="backslashreplace")


def _read_records(path: Path) -> list[dict[str, str]]:
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
