"""Prepared prompts as Parquet files of bounded size: <folder>/<split>/00000.parquet, ..."""

from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet

ROWS_A_FILE = 100_000
ROWS_A_WRITE = 1_000  # held in memory until written
LABELS = ("user_id", "category", "source")


class ShardWriter:
    """Writes the rows of one split as they come; use it in a `with` block, or `close` it.

    Args:
        folder: of the split; it is made when there is a first row.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self.rows = 0
        self._waiting: list[dict[str, Any]] = []
        self._file: pyarrow.parquet.ParquetWriter | None = None

    def write(self, row: dict[str, Any]) -> None:
        """Takes a row of the schema of prompts."""
        self._waiting.append({name: row.get(name) for name in ("prompt", *LABELS)})
        self.rows += 1
        if len(self._waiting) == ROWS_A_WRITE:
            self._flush()
        if self.rows % ROWS_A_FILE == 0:
            self.close()

    def close(self) -> None:
        """Finishes the file that is being written."""
        self._flush()
        if self._file is not None:
            self._file.close()
            self._file = None

    def __enter__(self) -> "ShardWriter":
        return self

    def __exit__(self, *_) -> None:
        self.close()

    def _flush(self) -> None:
        if not self._waiting:
            return
        schema = _schema(self._waiting[0]["prompt"])
        if self._file is None:
            self.folder.mkdir(parents=True, exist_ok=True)
            number = (self.rows - 1) // ROWS_A_FILE
            self._file = pyarrow.parquet.ParquetWriter(self.folder / f"{number:05d}.parquet", schema)
        self._file.write_table(pyarrow.Table.from_pylist(self._waiting, schema))
        self._waiting = []


def _schema(prompt: Any) -> pyarrow.Schema:
    text = pyarrow.string()
    message = pyarrow.struct([("role", text), ("content", text)])
    kind = text if isinstance(prompt, str) else pyarrow.list_(message)
    return pyarrow.schema([("prompt", kind), *((name, text) for name in LABELS)])
