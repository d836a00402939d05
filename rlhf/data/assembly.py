"""Assembles rows that are converted together: the messages of a tree, the rated answers to a prompt."""

import hashlib
import json
import sqlite3
from collections.abc import Iterator

from rlhf.data.files import SourceRow
from rlhf.data.formats import FORMATS
from rlhf.data.formats.base import Format
from rlhf.data.schemas import Row


class RowAssembler:
    """Assembles rows with equal keys (`Format.assemble_by`), wherever in the files of a split they are.

    The rows are kept in a temporary file, so that no source must fit into memory.
    """

    def __init__(self):
        self._rows = sqlite3.connect("")  # a file that SQLite deletes, and keeps in memory while it is small
        self._rows.execute("CREATE TABLE rows (number INTEGER PRIMARY KEY, key, format, row)")

    def add(self, name: str, key: str, row: SourceRow) -> None:
        """Keeps a row of the format `name` under its key."""
        digest = hashlib.blake2b(json.dumps([name, key]).encode(), digest_size=16).digest()
        content = json.dumps([row.file, row.place, row.content], default=str)  # str: dates, which no schema reads
        self._rows.execute("INSERT INTO rows (key, format, row) VALUES (?, ?, ?)", (digest, name, content))

    def __iter__(self) -> Iterator[tuple[Format, SourceRow, list[Row]]]:
        """Yields (format, first row, contents of all rows with its key, in order), in the order of the first rows."""
        self._rows.execute("CREATE INDEX IF NOT EXISTS by_key ON rows (key, number)")
        firsts = self._rows.execute("SELECT key, format FROM rows GROUP BY key ORDER BY min(number)")
        for key, name in firsts:
            records = self._rows.execute("SELECT row FROM rows WHERE key = ? ORDER BY number", (key,))
            rows = [SourceRow(*json.loads(record)) for (record,) in records]
            yield FORMATS[name], rows[0], [row.content for row in rows]
