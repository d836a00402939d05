"""The reason why a row cannot be used, and checks of single values that every schema and format makes."""

import math
from typing import Any

Row = dict[str, Any]  # column name: value


class RowError(ValueError):
    """Reason why a row cannot be used, and what it needs; messages put the file and line before it."""


def check_text(value: Any, name: str, may_be_blank: bool = False) -> str:
    """Returns a string that tokenizers can encode."""
    if not isinstance(value, str):
        raise RowError(f"{name} is {kind_of(value)}; text is needed")
    if not may_be_blank and not value.strip():
        raise RowError(f"{name} is empty; text is needed")
    try:
        value.encode()
    except UnicodeEncodeError as error:  # JSON can spell "\\ud83d" without its other half
        raise RowError(
            f"{name} holds half of a surrogate pair at character {error.start}; write the whole pair"
        ) from error
    return value


TRUTH_VALUES = {
    **dict.fromkeys(["true", "t", "1", "1.0", "yes"], True),
    **dict.fromkeys(["false", "f", "0", "0.0", "no"], False),
}


def truth_value(value: Any, name: str) -> bool:
    """Returns true or false as files spell them: 1 and 0, 1.0 and 0.0 (pandas), or as words (CSV)."""
    truth = TRUTH_VALUES.get(str(value).strip().lower())
    if truth is None:
        got = kind_of(value) if value is None else repr(value)[:40]
        raise RowError(f"{name} is {got}; true or false is needed")
    return truth


def integer(value: Any) -> Any:
    """Returns 1 for 1.0: pandas makes integers floats where a value is missing. Other values stay as they are."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


def is_empty(value: Any) -> bool:
    """True for a value that says nothing: null, NaN, blank text, and lists and objects of nothing else."""
    if isinstance(value, str):
        return value.strip() in ("", "[]", "{}")
    if isinstance(value, list):
        return all(map(is_empty, value))
    if isinstance(value, dict):  # Parquet has an object of nulls where a row has none
        return all(map(is_empty, value.values()))
    return value is None or is_nan(value)


def is_nan(value: Any) -> bool:
    return isinstance(value, float) and math.isnan(value)


def kind_of(value: Any) -> str:
    """Returns the type of a value for a message: "text", "a list", ..."""
    names = {dict: "an object", list: "a list", str: "text", bool: "true or false", int: "a number", float: "a number"}
    return "null" if value is None else names.get(type(value), type(value).__name__)
