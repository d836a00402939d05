"""Schemas of the four kinds of rows, and the common spellings that are read as them.

| kind | columns |
|---|---|
| demonstrations | `prompt`, `completion` |
| comparisons | `prompt`, `completions` (K >= 2 texts), `ranks` (K integers, 0 = best, equal = tie) |
| prompts | `prompt` |
| pretraining | `text` |

A prompt is text, or messages that end in the user's turn. These are read, too:
- TRL's `messages` as a demonstration of its last assistant turn;
- `prompt`/`chosen`/`rejected`, or `chosen`/`rejected` that begin with their prompt, as a comparison with K = 2;
- `ratings` of completions, or the indices `best` and `worst`, in place of ranks.

Each function takes a row as read and returns the row of the schema, or raises `RowError`. Optional columns
(`OPTIONAL_COLUMNS`, and `ratings` of a comparison) are kept; all others are dropped.
"""

import re
from typing import Any

from rlhf.data.encode import plain_messages
from rlhf.data.ranking import best_worst_ranks, rating_ranks

Row = dict[str, Any]  # column name: value

ROLES = ("system", "user", "assistant")
OPTIONAL_COLUMNS = ("user_id", "category", "source", "labeler_id", "labeler_group")


class RowError(ValueError):
    """Reason why a row cannot be used, and what it needs; messages put the file and line before it."""


def demonstration(row: Row) -> Row:
    """Returns `prompt` and `completion`: one assistant message if the prompt is messages, else text."""
    if _is_conversation(row):
        prompt, answer = _split_conversation(row["messages"], "messages")
    else:
        prompt, answer = check_prompt(_column(row, "prompt")), _answer(_column(row, "completion"), "completion")
    completion = answer if isinstance(prompt, str) else [{"role": "assistant", "content": answer}]
    return {"prompt": prompt, "completion": completion, **_optional_columns(row)}


def comparison(row: Row) -> Row:
    """Returns `prompt`, `completions` as texts, and `ranks` without gaps: [1, 3, 3] becomes [0, 1, 1].

    Without ranks, `ratings` order the completions (higher is better); without these, the indices `best` and `worst`.
    """
    if row.get("completions") is None and row.get("chosen") is not None:
        return _chosen_rejected(row)
    prompt = check_prompt(_column(row, "prompt"))
    completions = _column(row, "completions")
    if not isinstance(completions, list):
        raise RowError(f"column completions is {_kind(completions)}; a list of texts is needed")
    if len(completions) < 2:
        raise RowError(f"column completions has K = {len(completions)}; at least 2 are needed for a comparison")
    texts = [_answer(value, f"completions[{i}]") for i, value in enumerate(completions)]
    ratings = {"ratings": _ratings(row["ratings"], len(texts))} if row.get("ratings") is not None else {}
    if row.get("ranks") is None and ratings:
        ranks = rating_ranks(ratings["ratings"])
    elif row.get("ranks") is None and row.get("best") is not None:
        ranks = best_worst_ranks(_index(row, "best", len(texts)), _index(row, "worst", len(texts)), len(texts))
    else:
        ranks = _ranks(_column(row, "ranks"), len(texts))
    return {"prompt": prompt, "completions": texts, "ranks": ranks, **_optional_columns(row), **ratings}


def prompt(row: Row) -> Row:
    """Returns `prompt`; of a conversation, the messages up to the last one of the user.

    The row's demonstration and comparison have the same prompt, so that all stages ask in one way.
    """
    if _is_pair_of_conversations(row):
        return {"prompt": _chosen_rejected(row)["prompt"], **_optional_columns(row)}
    if _is_conversation(row):
        messages = check_messages(row["messages"], "messages")
        while messages and messages[-1]["role"] != "user":
            messages = messages[:-1]
        return {"prompt": check_prompt(messages), **_optional_columns(row)}
    return {"prompt": check_prompt(_column(row, "prompt")), **_optional_columns(row)}


def pretraining(row: Row) -> Row:
    """Returns `text`."""
    return {"text": check_text(_column(row, "text"), "column text")}


def check_prompt(value: Any) -> str | list[dict[str, str]]:
    """Returns text that is not blank, or messages that end in a user turn that is not blank."""
    if isinstance(value, str):
        return check_text(value, "column prompt")
    return _check_prompt_messages(value)


def _check_prompt_messages(value: Any) -> list[dict[str, str]]:
    messages = check_messages(value, "prompt")
    if messages[-1]["role"] != "user":
        raise RowError(f"column prompt ends in a message of the {messages[-1]['role']}; it must end in the user's")
    check_text(messages[-1]["content"], "the last message of column prompt")
    return messages


def check_messages(value: Any, column: str) -> list[dict[str, str]]:
    """Returns at least one {"role", "content"}, with text as content; other keys are dropped."""
    if not isinstance(value, list):
        needed = "a list of messages" if column == "messages" else "text or a list of messages"
        raise RowError(f"column {column} is {_kind(value)}; {needed} is needed")
    if not value:
        raise RowError(f"column {column} is an empty list; at least one message is needed")
    for i, message in enumerate(value):
        name = f"{column}[{i}]"
        if not isinstance(message, dict) or "role" not in message or "content" not in message:
            raise RowError(f"{name} is not a message; an object with role and content is needed")
        if not isinstance(message["role"], str) or message["role"] not in ROLES:
            raise RowError(f"{name} has the role {message['role']!r:.40}; one of {', '.join(ROLES)} is needed")
        check_text(message["content"], f"content of {name}", may_be_blank=True)
    return plain_messages(value)


def check_text(value: Any, name: str, may_be_blank: bool = False) -> str:
    """Returns a string that tokenizers can encode."""
    if not isinstance(value, str):
        raise RowError(f"{name} is {_kind(value)}; text is needed")
    if not may_be_blank and not value.strip():
        raise RowError(f"{name} is empty; text is needed")
    try:
        value.encode()
    except UnicodeEncodeError as error:  # JSON can spell "\\ud83d" without its other half
        raise RowError(
            f"{name} holds half of a surrogate pair at character {error.start}; write the whole pair"
        ) from error
    return value


def _column(row: Row, name: str) -> Any:
    value = row.get(name)
    if value is None:
        present = ", ".join(key for key in row if isinstance(key, str) and row[key] is not None)
        raise RowError(f"no column {name} (there is {present[:200] or 'none'}); add it")
    return value


def _answer(value: Any, name: str) -> str:
    """Returns the text of a completion that is text or a list of one assistant message."""
    if isinstance(value, list):
        messages = check_messages(value, name)
        if len(messages) != 1 or messages[0]["role"] != "assistant":
            raise RowError(f"{name} has {len(messages)} messages; text or one message of the assistant is needed")
        value = messages[0]["content"]
    return check_text(value, name)


def _split_conversation(value: Any, column: str) -> tuple[list[dict[str, str]], str]:
    """Returns the messages before the last assistant turn, and its text; later turns have no answer and are dropped."""
    messages = check_messages(value, column)
    while messages and messages[-1]["role"] != "assistant":
        messages = messages[:-1]
    if len(messages) < 2:
        raise RowError(f"column {column} has no message of the user with the assistant's answer; both are needed")
    asked = _check_prompt_messages(messages[:-1])
    return asked, check_text(messages[-1]["content"], f"the last answer of column {column}")


def _is_conversation(row: Row) -> bool:
    """True if `messages` are the whole row; a text `prompt` beside them is their first message, or a name of it."""
    return row.get("messages") is not None and (row.get("prompt") is None or row.get("completion") is None)


def _is_pair_of_conversations(row: Row) -> bool:
    """True if `chosen` and `rejected` begin with their prompt."""
    chosen, rejected = row.get("chosen"), row.get("rejected")
    has_prompt = isinstance(chosen, list) and (row.get("prompt") is None or len(chosen) > 1)
    return rejected is not None and (has_prompt or (isinstance(chosen, str) and row.get("prompt") is None))


def _chosen_rejected(row: Row) -> Row:
    """Returns the comparison of TRL's pair: with a `prompt` column, or with the prompt at the beginning of both."""
    chosen, rejected = _column(row, "chosen"), _column(row, "rejected")
    has_prompt = _is_pair_of_conversations(row)
    if has_prompt and isinstance(chosen, str) and isinstance(rejected, str):
        row = row | {"prompt": _common_words(chosen, rejected)}
        chosen, rejected = (text[len(row["prompt"] or "") :] for text in (chosen, rejected))
    if has_prompt and isinstance(chosen, list):
        prompt, better = _split_conversation(chosen, "chosen")
        other, worse = _split_conversation(rejected, "rejected")
        if prompt != other:
            raise RowError("columns chosen and rejected differ before the last answer; one common prompt is needed")
    else:
        prompt = check_prompt(_column(row, "prompt"))
        better, worse = _answer(chosen, "chosen"), _answer(rejected, "rejected")
    scores = row.get("score_chosen"), row.get("score_rejected")  # of binarized ratings, which may be equal
    tied = scores[0] is not None and scores[0] == scores[1]
    return {"prompt": prompt, "completions": [better, worse], "ranks": [0, 0 if tied else 1], **_optional_columns(row)}


def _common_words(a: str, b: str) -> str | None:
    """Returns the words with which both texts begin, without the space after them; None if there are none."""
    length = next((i for i, pair in enumerate(zip(a, b, strict=False)) if pair[0] != pair[1]), min(len(a), len(b)))
    spaces = [match.start() for match in re.finditer(r"\s", a[:length])]
    return (a[: spaces[-1]].rstrip() or None) if spaces else None  # not within a word


def _index(row: Row, name: str, k: int) -> int:
    value = _column(row, name)
    if type(value) is not int or not 0 <= value < k:
        raise RowError(f"column {name} is {value!r:.40}; the index of one of the {k} completions, from 0, is needed")
    return value


def _ranks(ranks: Any, k: int) -> list[int]:
    if not isinstance(ranks, list) or len(ranks) != k:
        got = f"{len(ranks)} entries" if isinstance(ranks, list) else _kind(ranks)
        raise RowError(f"column ranks is {got} for {k} completions; a list of {k} integers is needed")
    for rank in ranks:
        if not isinstance(rank, int) or isinstance(rank, bool) or rank < 0:
            raise RowError(f"column ranks holds {rank!r:.40}; integers from 0 (the best) are needed")
    places = {rank: place for place, rank in enumerate(sorted(set(ranks)))}
    return [places[rank] for rank in ranks]


def _ratings(ratings: Any, k: int) -> list[float]:
    numbers = isinstance(ratings, list) and all(type(value) in (int, float) and abs(value) < 1e9 for value in ratings)
    if not numbers or len(ratings) != k:
        raise RowError(f"column ratings is not {k} numbers; one for each completion is needed")
    return [float(value) for value in ratings]


def _optional_columns(row: Row) -> dict[str, str]:
    """Returns the optional columns as text: some sources have numbers as ids, others names."""
    values = {name: row[name] for name in OPTIONAL_COLUMNS if row.get(name) is not None}
    for name, value in values.items():
        if not isinstance(value, str | int):
            raise RowError(f"column {name} is {_kind(value)}; text or an integer is needed")
    return {name: check_text(str(value), f"column {name}", may_be_blank=True) for name, value in values.items()}


def _kind(value: Any) -> str:
    names = {dict: "an object", list: "a list", str: "text", bool: "true or false", int: "a number", float: "a number"}
    return "null" if value is None else names.get(type(value), type(value).__name__)
