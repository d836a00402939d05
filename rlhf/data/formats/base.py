"""What a published format is: how its rows are recognised, and what each of them holds in our schemas."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from rlhf.data.schemas import RowError, check_text

Row = dict[str, Any]


@dataclass(frozen=True)
class Format:
    """A published format. What its functions return is still checked by the schema, and may be several rows or none.

    Attributes:
        title: what its files hold, for messages: "<file> holds <title>, which have no <kind>".
        matches: whether a row is of this format and certainly of no other.
        kinds: "demonstrations", "comparisons", "prompts" -> the rows of that schema in a row of this format, or in
            the list of rows that belong together where there is a `group_key`. "votes", where a format has it, are its
            comparisons before they are put together, one for each verdict of one labeler.
        group_key: rows with equal keys belong together, wherever in a file they stand (one message a row, one
            completion a row). Raises `RowError` for a row that cannot belong to any.
        language: of a row, or of the rows that belong together, for formats that mix languages; `dataset_config`
            chooses one.
    """

    title: str
    matches: Callable[[Row], bool]
    kinds: Mapping[str, Callable[[Any], Iterable[Row]]]
    group_key: Callable[[Row], str] | None = None
    language: Callable[[Any], str | None] | None = None


def has(*columns: str) -> Callable[[Row], bool]:
    """Whether a row has all these columns; some may be null."""
    needed = set(columns)
    return lambda row: needed <= row.keys()


def text_of(row: Row, column: str) -> str:
    """A column that has to be text."""
    if row.get(column) is None:
        raise RowError(f"no text in column {column}; add it")
    return check_text(row[column], f"column {column}")


def optional_text(row: Row, column: str) -> str:
    """A column that may be blank or missing: "" then."""
    return check_text(row[column], f"column {column}", may_be_blank=True) if row.get(column) is not None else ""


def user(*parts: str) -> list[dict[str, str]]:
    """One message of the user; its parts, as far as they are not blank, in paragraphs."""
    return [{"role": "user", "content": "\n\n".join(part for part in parts if part.strip())}]


def assistant(text: Any) -> list[dict[str, Any]]:
    """One message of the assistant."""
    return [{"role": "assistant", "content": text}]
