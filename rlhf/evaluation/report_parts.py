"""Parts of a report, and their text: a number becomes text in `number` alone, so HTML, Markdown and CSV agree.

A table holds plain values: text, numbers, or estimates `{mean, low, high, n}` as summary.json has them. Its columns
say how the numbers are written.
"""

import csv
import html
import io
import re
from dataclasses import dataclass
from typing import Any

from rlhf.runs.markdown import fenced, markdown_table

DASH = "–"  # not measured
FORMULA = "=+-@\uff1d\uff0b\uff0d\uff20"  # first characters of formulas in spreadsheets, and their full-width forms
PATH = re.compile(r"(?<![\w:/.~])(?:~|\.{1,2})?(?:/[\w.@+-]+){2,}/?|(?<![\w:/.~])(?:~|\.\.?)/[\w.@+-]+/?")


@dataclass(frozen=True)
class Unit:
    """Form of the numbers of a column.

    Attributes:
        scale: factor, such as 100 for shares in percent.
        digits: decimals; None gives six significant digits.
        signed: writes the plus of positive numbers.
        null: the value of no difference, in the unit of summary.json; None where the question makes no sense.
    """

    scale: float = 1.0
    digits: int | None = None
    signed: bool = False
    null: float | None = None


RAW = Unit()
COUNT = Unit(digits=0)
PERCENT = Unit(100, 1)
WIN_RATE = Unit(100, 1, null=0.5)
POINTS = Unit(100, 1, signed=True, null=0.0)
LENGTH = Unit(digits=1)
SCORE = Unit(digits=2)
GAIN = Unit(digits=2, signed=True, null=0.0)
METRIC = Unit(digits=3)
METRIC_GAIN = Unit(digits=3, signed=True, null=0.0)


@dataclass(frozen=True)
class Column:
    """Name of a column with its unit of measure, and the form of its numbers."""

    title: str
    unit: Unit = RAW


@dataclass(frozen=True)
class Table:
    """A table of the report; without rows, the report says that it was not measured.

    Attributes:
        name: of its CSV file, without extension.
        rows: values, as many in each row as there are columns. The first one names the row.
    """

    name: str
    title: str
    columns: tuple[Column, ...]
    rows: list[list[Any]]
    note: str = ""
    kind: str = "table"

    def text_columns(self) -> set[int]:
        """Returns the positions of the columns that hold text."""
        return {i for i in range(len(self.columns)) if any(isinstance(row[i], str) for row in self.rows)}


@dataclass(frozen=True)
class Figure:
    """A figure and the numbers that it shows; `svg` is None without data."""

    title: str
    svg: str | None
    data: Table
    caption: str = ""
    kind: str = "figure"


@dataclass(frozen=True)
class Points:
    """A list of sentences."""

    sentences: list[str]
    kind: str = "points"


@dataclass(frozen=True)
class Listing:
    """Text that is shown as it is, folded in HTML."""

    title: str
    text: str
    kind: str = "listing"


@dataclass(frozen=True)
class Answer:
    """An answer of one system with the judges' scores and the faults they found.

    Attributes:
        system: its name for readers.
        color: of CSS.
        cut: says that the answer was cut off; empty if it ended by itself.
        folded: True if HTML shows it on demand.
    """

    system: str
    color: str
    text: str
    scores: list[str]
    faults: list[str]
    cut: str
    folded: bool


@dataclass(frozen=True)
class Card:
    """A prompt with the answers of all systems."""

    category: str
    prompt: str
    answers: list[Answer]
    kind: str = "card"


Part = str | Table | Figure | Points | Listing | Card


@dataclass(frozen=True)
class Section:
    """A heading, and what stands below it; a string is a paragraph."""

    title: str
    parts: list[Part]


# -- numbers as text --------------------------------------------------------------------------------------------------


def number(value: float, unit: Unit = RAW) -> str:
    """Returns a number as text: 0.7365 in percent is 73.7; a difference of 0.021 is +0.02."""
    if unit.digits is None:
        return str(value) if isinstance(value, int) else f"{value * unit.scale:.6g}"
    return f"{value * unit.scale:{'+' if unit.signed else ''}z.{unit.digits}f}"


def estimate_texts(estimate: dict[str, Any], unit: Unit) -> tuple[str, str, str]:
    """Returns mean, low and high as text; the last two are empty where the interval is unknown."""
    low, high = (("" if estimate[end] is None else number(estimate[end], unit)) for end in ("low", "high"))
    return number(estimate["mean"], unit), low, high


def text_of(value: Any, unit: Unit = RAW) -> str:
    """Returns a value of a table as text, an estimate as `73.7 (71.1 to 76.1)`."""
    if value is None or value == "":
        return DASH
    if isinstance(value, dict):
        mean, low, high = estimate_texts(value, unit)
        return f"{mean} ({low} to {high})" if low else mean
    if isinstance(value, bool):
        return "yes" if value else "no"
    return number(value, unit) if isinstance(value, int | float) else str(value)


def decided(value: Any, unit: Unit) -> bool:
    """Returns True if the interval of an estimate excludes the value of no difference."""
    if not isinstance(value, dict) or unit.null is None or value["low"] is None:
        return False
    return value["low"] > unit.null or value["high"] < unit.null


def duration(seconds: float | None) -> str:
    """Returns 512.3 as 8 min 32 s, and None as a dash."""
    if seconds is None:
        return DASH
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


def without_paths(text: str) -> str:
    """Returns text in which only the last part of an absolute path remains; URLs and relative paths stay."""
    return PATH.sub(lambda match: match.group().rstrip("/").rpartition("/")[2], text)


# -- CSV --------------------------------------------------------------------------------------------------------------


def csv_text(table: Table) -> str:
    """Returns a table as CSV; an estimate has three columns, and a value that was not measured is empty.

    Spreadsheets would run a cell that begins with = + - or @ as a formula. Such a cell begins with an apostrophe
    instead, unless it is a number.
    """
    wide = [any(isinstance(row[i], dict) for row in table.rows) for i in range(len(table.columns))]
    lines = [[cell for column, is_wide in zip(table.columns, wide, strict=True) for cell in _header(column, is_wide)]]
    for row in table.rows:
        cells = [_csv_cells(*cell) for cell in zip(row, table.columns, wide, strict=True)]
        lines.append([text for texts in cells for text in texts])
    file = io.StringIO()
    csv.writer(file, lineterminator="\n").writerows([[defused(text) for text in line] for line in lines])
    return file.getvalue()


def defused(text: str) -> str:
    """Returns the text of a CSV cell, with an apostrophe before what a spreadsheet would take for a formula."""
    if not text.lstrip().startswith(tuple(FORMULA)) or _is_number(text):
        return text
    return "'" + text


def _is_number(text: str) -> bool:
    return re.fullmatch(r"[+-]?\d+(\.\d+)?(e[+-]?\d+)?", text) is not None


def _header(column: Column, wide: bool) -> list[str]:
    return [column.title, f"{column.title}, low", f"{column.title}, high"] if wide else [column.title]


def _csv_cells(value: Any, column: Column, wide: bool) -> list[str]:
    if isinstance(value, dict):
        return list(estimate_texts(value, column.unit))
    text = "" if value is None else text_of(value, column.unit) if value != "" else ""
    return [text, "", ""] if wide else [text]


# -- Markdown ---------------------------------------------------------------------------------------------------------


def markdown(sections: list[Section], figures: bool = True, level: int = 2) -> str:
    """Returns sections as Markdown, in which no name, prompt or answer can act as markup.

    Args:
        figures: links the figures' SVG files, which lie in the folder report/.
        level: of the sections' headings.
    """
    blocks: list[str] = []
    for section in sections:
        blocks.append(f"{'#' * level} {escaped(section.title)}")
        for part in section.parts:
            blocks += _blocks(part, figures, level + 1)
    return "\n\n".join(block for block in blocks if block) + "\n"


def _blocks(part: Part, figures: bool, level: int) -> list[str]:
    if isinstance(part, str):
        return [escaped(part)]
    if isinstance(part, Points):
        return ["\n".join(f"- {escaped(item)}" for item in part.sentences)]
    if isinstance(part, Listing):
        return [f"{escaped(part.title)}:", fenced(part.text)]
    if isinstance(part, Card):
        return _card_blocks(part, level)
    if isinstance(part, Figure):
        if part.svg is None:
            return [f"Not measured: {escaped(part.title)}."]
        return [f"![{escaped(part.title)}](report/{part.data.name}.svg)", escaped(part.caption)] if figures else []
    if not part.rows:
        return [f"Not measured: {escaped(part.title)}."]
    header = [escaped(column.title) for column in part.columns]
    rows = [
        [_markdown_cell(value, column.unit) for value, column in zip(row, part.columns, strict=True)]
        for row in part.rows
    ]
    return [f"**{escaped(part.title)}**", escaped(part.note), markdown_table(header, rows)]


def _markdown_cell(value: Any, unit: Unit) -> str:
    text = escaped(text_of(value, unit))
    return f"**{text}**" if decided(value, unit) else text


def _card_blocks(card: Card, level: int) -> list[str]:
    blocks = [f"{'#' * level} {escaped(card.category or 'prompt')}", fenced(card.prompt)]
    for answer in card.answers:
        remarks = ", ".join([*answer.scores, *answer.faults, *([answer.cut] if answer.cut else [])])
        blocks += [f"**{escaped(answer.system)}**{escaped(': ' + remarks) if remarks else ''}", fenced(answer.text)]
    return blocks


def escaped(text: str) -> str:
    """Returns one line of Markdown that shows the text as it is."""
    line = html.escape(" ".join(text.split()), quote=False).replace("|", "&#124;")
    line = re.sub(r"([\\`*\[\]~$])", r"\\\1", line)
    line = re.sub(r"(?<!\w)_|_(?!\w)", r"\\_", line)  # inside a word it is no markup
    line = re.sub(r"^([#+=-])(?!\d)", r"\\\1", line)  # headings, lists
    return re.sub(r"^(\d+)([.)] )", r"\1\\\2", line)
