"""Markdown files that a run writes: pages of Jinja templates, and tables."""

import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined


def render_template(path: Path, **values: Any) -> str:
    """Returns the page of a Jinja template.

    Args:
        path: the template.
        values: its variables. They are inserted as they are: nothing in them is escaped or read as a template.

    Raises:
        jinja2.UndefinedError: the template names a variable that is not among the values.
    """
    environment = Environment(
        loader=FileSystemLoader(path.parent),
        autoescape=False,  # Markdown
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    return environment.get_template(path.name).render(values)


def fenced(text: str, language: str = "text") -> str:
    """Returns text as a code block, with a fence that is longer than any in the text."""
    longest = max(map(len, re.findall(r"`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}{language}\n{text}\n{fence}"


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
