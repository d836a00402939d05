"""The description of a published format, and helpers for the functions that read it."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rlhf.data.checks import Row, RowError, check_text, is_empty
from rlhf.data.messages import Messages, previous_turns, with_system


@dataclass(frozen=True)
class Format:
    """A published format: how to recognize its rows, and how to convert them to rows of our schemas.

    A conversion returns any number of rows, which the schema checks, and raises `RowError` if it cannot read its input.

    Attributes:
        title: content of its files, for the message "<file> holds <title>, which have no <kind>".
        matches: true for rows of this format and of no other.
        columns: what is read, and published columns that need not be. Any other column that may change what a row means
            is refused (`rlhf.data.columns`).
        kinds: conversions to "demonstrations", "comparisons" and "prompts", as far as the format has them. Each takes a
            row, or with `assemble_by` a list of rows. "votes" converts to one comparison for each verdict of a labeler.
        assemble_by: key of a row, for formats with one message or one completion a row. Rows with equal keys are
            converted together, wherever in the source they are. Raises `RowError` for a row without a key.
        language: language of a row (with `assemble_by`, of a list of rows), which `dataset_config` selects.
    """

    title: str
    matches: Callable[[Row], bool]
    columns: Sequence[str]
    kinds: Mapping[str, Callable[[Any], Iterable[Row]]]
    assemble_by: Callable[[Row], str] | None = None
    language: Callable[[Any], str | None] | None = None


def has(*columns: str) -> Callable[[Row], bool]:
    """Returns a test for rows that have all these columns; some may be null."""
    needed = set(columns)
    return lambda row: needed <= row.keys()


def required_text(row: Row, column: str) -> str:
    """Returns a column that must be text and not blank."""
    if row.get(column) is None:
        raise RowError(f"no text in column {column}; add it")
    return check_text(row[column], f"column {column}")


def optional_text(row: Row, column: str) -> str:
    """Returns a column that may be blank or missing, then as ""."""
    return check_text(row[column], f"column {column}", may_be_blank=True) if row.get(column) is not None else ""


def user(*paragraphs: str) -> list[dict[str, str]]:
    """Returns one message of the user, without the blank paragraphs."""
    return [{"role": "user", "content": "\n\n".join(text for text in paragraphs if text.strip())}]


def conversation(row: Row, question: Messages) -> Messages:
    """Returns the question after the row's columns `system` and `history`, which may be empty or missing."""
    before = previous_turns(row.get("history"), "history")
    return with_system([*before, *question], row.get("system"), "system")


def has_text(row: Row, *columns: str) -> bool:
    """True if the row has something in all these columns."""
    return all(not is_empty(row.get(column)) for column in columns)


def assistant(text: Any) -> list[dict[str, Any]]:
    """Returns one message of the assistant."""
    return [{"role": "assistant", "content": text}]
