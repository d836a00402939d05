"""Published formats, and how their rows become rows of our schemas: docs/data.md has the table.

A row says by its columns what it is (`detect`); `dataset_format` names a format where a row is to be read as nothing
else. Rows that belong together are gathered on disk, so that no file has to fit into memory.
"""

import hashlib
import json
import sqlite3
from collections.abc import Iterator
from typing import Any

from rlhf.data.files import Row
from rlhf.data.formats import helpsteer, hh, instructions, oasst, summarize, trl, ultrachat, ultrafeedback, votes
from rlhf.data.formats.base import Format

FORMATS: dict[str, Format] = {
    "oasst": oasst.TREES,
    "oasst_messages": oasst.MESSAGES,
    "hh_rlhf": hh.HH_RLHF,
    "summarize_from_feedback": summarize.SUMMARIES,
    "summarize_from_feedback_axis": summarize.SUMMARY_AXES,
    "ultrafeedback": ultrafeedback.ULTRAFEEDBACK,
    "helpsteer2": helpsteer.HELPSTEER2,
    "helpsteer2_preference": helpsteer.HELPSTEER2_PREFERENCE,
    "helpsteer3": helpsteer.HELPSTEER3,
    "alpaca": instructions.ALPACA,
    "dolly": instructions.DOLLY,
    "self_instruct": instructions.SELF_INSTRUCT,
    "ultrachat": ultrachat.ULTRACHAT,
    "trl_unpaired": trl.TRL_UNPAIRED,
    "votes": votes.VOTES,
}


def detect(content: dict[str, Any]) -> str | None:
    """Name of a row's format; None is a row that has to be of our own schema."""
    return next((name for name, form in FORMATS.items() if form.matches(content)), None)


class RowAssembler:
    """Rows that belong together, gathered in a temporary file from wherever in the files of a split they stand."""

    def __init__(self):
        self._rows = sqlite3.connect("")  # a file that SQLite itself deletes, and keeps in memory while it is small
        self._rows.execute("CREATE TABLE rows (number INTEGER PRIMARY KEY, key, format, row)")

    def add(self, name: str, row: Row) -> None:
        """Keeps a row of the format `name`; raises `RowError` if it cannot belong to any group."""
        key = json.dumps([name, FORMATS[name].group_key(row.content)])
        digest = hashlib.blake2b(key.encode(), digest_size=16).digest()
        content = json.dumps([row.file, row.place, row.content], default=str)  # dates, of which no schema knows
        self._rows.execute("INSERT INTO rows (key, format, row) VALUES (?, ?, ?)", (digest, name, content))

    def __iter__(self) -> Iterator[tuple[Format, Row, list[dict[str, Any]]]]:
        """(format, the group's first row, contents of all its rows in their order), in the order of the first rows."""
        self._rows.execute("CREATE INDEX IF NOT EXISTS groups ON rows (key, number)")
        firsts = self._rows.execute("SELECT key, format FROM rows GROUP BY key ORDER BY min(number)")
        for key, name in firsts:
            members = self._rows.execute("SELECT row FROM rows WHERE key = ? ORDER BY number", (key,))
            rows = [Row(*json.loads(row)) for (row,) in members]
            yield FORMATS[name], rows[0], [row.content for row in rows]
