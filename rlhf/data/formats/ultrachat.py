"""Dialogues as lists of texts, the user's and the assistant's in turn.

openbmb/UltraChat: {"id", "data": [text, ...]}
GAIR/lima:         {"conversations": [text, ...], "source"}

HuggingFaceH4/ultrachat_200k has `messages` and needs no conversion.
"""

from collections.abc import Iterator
from typing import Any

from rlhf.data.formats.base import Format, Row
from rlhf.data.schemas import RowError


def is_dialogue(row: Row) -> bool:
    return "id" in row and isinstance(row.get("data"), list)


def is_list_of_texts(row: Row) -> bool:
    turns = row.get("conversations")
    return isinstance(turns, list) and bool(turns) and all(isinstance(turn, str) for turn in turns)


def demonstrations(row: Row) -> Iterator[Row]:
    """Takes the last answer, with the dialogue before it as the prompt."""
    yield {"messages": _messages(row.get("data"), "data")}


def text_demonstrations(row: Row) -> Iterator[Row]:
    yield {"messages": _messages(row.get("conversations"), "conversations")}


def _messages(turns: Any, column: str) -> list[dict[str, Any]]:
    if not isinstance(turns, list) or not turns:
        raise RowError(f"column {column} is not a list of texts; the turns of a dialogue are needed")
    return [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(turns)]


# The schema of prompts drops the last answer.
ULTRACHAT = Format(
    title="UltraChat dialogues",
    matches=is_dialogue,
    columns=("data",),
    kinds={"demonstrations": demonstrations, "prompts": demonstrations},
)
LIMA = Format(
    title="dialogues as lists of texts",
    matches=is_list_of_texts,
    columns=("conversations", "source"),
    kinds={"demonstrations": text_demonstrations, "prompts": text_demonstrations},
)
