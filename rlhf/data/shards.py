"""Prepared prompts as Parquet files of bounded size: <folder>/<split>/00000.parquet, ..."""

from pathlib import Path
from typing import Any

import datasets
from datasets.arrow_writer import ParquetWriter

from rlhf.data.loading import row_features

ROWS_A_FILE = 100_000
COLUMNS = ("prompt", "user_id", "category", "source")


class ShardWriter:
    """Writes the rows of one split as they come; `close` it at the end.

    Args:
        folder: folder of the split, made with the first row.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self.rows = 0
        self._file: ParquetWriter | None = None

    def write(self, row: dict[str, Any]) -> None:
        """Takes a row of the schema of prompts."""
        if self.rows % ROWS_A_FILE == 0:
            self.close()
            self.folder.mkdir(parents=True, exist_ok=True)
            features = row_features("prompts", row)
            self._file = ParquetWriter(
                features=datasets.Features({name: features[name] for name in COLUMNS}),
                path=str(self.folder / f"{self.rows // ROWS_A_FILE:05d}.parquet"),
            )
        assert self._file is not None, "closed"
        self._file.write({name: row.get(name) for name in COLUMNS})
        self.rows += 1

    def close(self) -> None:
        """Finishes the file that is being written."""
        if self._file is not None:
            self._file.finalize()
            self._file = None
