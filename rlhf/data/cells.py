"""Reads cells as they were meant: lists and messages that a file spells as text, and the missing values of pandas.

pandas writes a list to CSV as Python prints it, `[{'role': 'user', 'content': 'Hi'}]`; others write JSON as text into
JSON lines or Parquet. Text that begins like messages is parsed, or the row is refused: it is never used as text.
"""

import ast
import io
import json
import re
import tokenize
import warnings
from itertools import pairwise
from typing import Any

from rlhf.data import spellings
from rlhf.data.checks import Row, RowError, is_nan

# Columns that hold lists: text in the first must spell one, text in the second does if it begins like one.
LISTS = frozenset(["messages", "conversations", "completions", "ranks", "ratings", "votes"])
MAYBE_LISTS = frozenset([*spellings.LISTS, *spellings.CONVERSATIONS, spellings.HISTORY, "scores", "data"]) - LISTS
# An object or a list of objects whose first key is one of a message; an array of numpy or a quoted text of these.
LIKE_MESSAGES = re.compile(
    r"""\s*(array\()?["']?[\[(\s]*(array\()?[\[(\s]*\{\s*\\?["'](role|content|from|value)\\?["']\s*:"""
)
LIKE_A_LIST = re.compile(r"""\s*\[\s*(["'\[({\]]|-?\d)""")
MISSING = ("nan", "NaN", "<NA>", "NaT")  # what `str` makes of the missing values of pandas


def read_cells(row: Row) -> Row:
    """Returns the row with lists in place of text that spells them, and None for missing values.

    Raises:
        RowError: text that must be a list, or begins like messages, cannot be parsed.
    """
    return {name: _cell(name, value) for name, value in row.items()}


def unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Returns the object of these pairs, for `json.loads(..., object_pairs_hook=unique_keys)`.

    Raises:
        ValueError: a key occurs twice, of which `json` would keep the last.
    """
    value = dict(pairs)
    if len(value) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"the key {next(n for n in names if names.count(n) > 1)!r:.40} occurs twice")
    return value


def _cell(name: str, value: Any) -> Any:
    if isinstance(value, str):
        return None if value in MISSING else _text(name, value)
    if isinstance(value, list) and (name in LISTS or name in MAYBE_LISTS):
        return [_text("", item) if isinstance(item, str) else item for item in value]  # messages as text in a list
    return None if is_nan(value) else value


def _text(name: str, text: str) -> Any:
    start = text.lstrip()[:1]
    is_list = (name in LISTS and bool(start)) or (name in MAYBE_LISTS and LIKE_A_LIST.match(text) is not None)
    like_messages = LIKE_MESSAGES.match(text) is not None
    maybe_messages = start in ("[", "{") and ("role" in text or "from" in text)
    if not (is_list or like_messages or maybe_messages):
        return text
    try:
        value = parse_value(text)
    except ValueError as error:
        if name in LISTS:
            raise RowError(_list_needed(name)) from error
        if not is_list and not like_messages:
            return text
        where = f"column {name}" if name else "an item of a list"
        kind = "messages" if like_messages else "a list"
        raise RowError(f"{where} is text that begins like {kind} and cannot be parsed; write it as JSON") from error
    if is_list and not isinstance(value, list):
        raise RowError(_list_needed(name))
    if is_list:
        return [_text("", item) if isinstance(item, str) else item for item in value]
    if isinstance(value, dict) and any(isinstance(inner, list) and _is_messages(inner) for inner in value.values()):
        raise RowError(f"column {name} is text that holds an object with messages; write the messages alone")
    return value if _is_messages(value) else text


def _list_needed(name: str) -> str:
    example = "[0, 1, 2]" if name in ("ranks", "ratings") else '["one", "two"]'
    return f"column {name} is not a list in JSON; write it like {example}"


def parse_value(text: str) -> Any:
    """Returns the value of JSON text, of JSON within JSON text, or of a Python literal.

    Raises:
        ValueError: the text is neither.
    """
    try:
        value = json.loads(text, object_pairs_hook=unique_keys)
    except (ValueError, RecursionError):
        value = _literal(text)
    if isinstance(value, str) and value != text and value.lstrip()[:1] in ("[", "{"):
        return parse_value(value)  # encoded twice
    return value


def _literal(text: str) -> Any:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # an escape that Python does not know
            tree = ast.parse(text.strip(), mode="eval")
            value = ast.literal_eval(tree)
        tokens = [token.type for token in tokenize.generate_tokens(io.StringIO(text.strip()).readline)]
    except (SyntaxError, SyntaxWarning, DeprecationWarning, tokenize.TokenError, MemoryError, RecursionError) as error:
        raise ValueError("neither JSON nor a Python literal") from error
    except TypeError as error:  # a list as a key
        raise ValueError("not a Python literal") from error
    words = [kind for kind in tokens if kind not in (tokenize.NL, tokenize.NEWLINE)]
    if any(a == b == tokenize.STRING for a, b in pairwise(words)):  # Python would join them to one
        raise ValueError("two texts without a comma between them, as numpy prints arrays")
    for node in ast.walk(tree):
        if isinstance(node, ast.Dict) and len({ast.unparse(key) for key in node.keys if key}) < len(node.keys):
            raise ValueError("a key that occurs twice")
    return _lists(value)


def _lists(value: Any) -> Any:
    if isinstance(value, tuple | list):
        return [_lists(item) for item in value]
    return {key: _lists(item) for key, item in value.items()} if isinstance(value, dict) else value


def _is_messages(value: Any) -> bool:
    if isinstance(value, list):
        return bool(value) and all(_is_messages(item) for item in value if not isinstance(item, list))
    return isinstance(value, dict) and ({"role", "content"} <= value.keys() or {"from", "value"} <= value.keys())
