"""Tables of the Markdown files that a run writes: model cards, data cards and reports."""

import re
from collections.abc import Iterable, Sequence
from typing import Any


def markdown_table(header: Sequence[Any], rows: Iterable[Sequence[Any]]) -> str:
    """Returns a Markdown table without a newline at its end; each cell becomes one line of text.

    Args:
        header: names of the columns; "" for a column without a name.
        rows: cells of each row, as many as the header has.
    """
    lines = [_row(header), "|---" * len(header) + "|", *map(_row, rows)]
    return "\n".join(lines)


def _row(cells: Sequence[Any]) -> str:
    return "| " + " | ".join(_cell(str(cell)) for cell in cells) + " |"


def _cell(text: str) -> str:
    one_line = " ".join(text.split())
    return re.sub(r"(\\*)\|", r"\1\1\\|", one_line)  # a backslash before the pipe would escape our own
