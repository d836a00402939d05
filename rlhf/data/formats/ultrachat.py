"""UltraChat: {"id", "data": [user's text, assistant's text, user's text, ...]}.

HuggingFaceH4/ultrachat_200k has `messages` and needs no conversion.
"""

from collections.abc import Iterator

from rlhf.data.formats.base import Format, Row
from rlhf.data.schemas import RowError


def is_dialogue(row: Row) -> bool:
    return "id" in row and isinstance(row.get("data"), list)


def demonstrations(row: Row) -> Iterator[Row]:
    """Takes the last answer, with the dialogue before it as the prompt."""
    turns = row.get("data")
    if not isinstance(turns, list) or not turns:
        raise RowError("column data is not a list of texts; the turns of a dialogue are needed")
    yield {"messages": [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(turns)]}


prompts = demonstrations  # the schema of prompts drops the last answer

ULTRACHAT = Format(
    title="UltraChat dialogues",
    matches=is_dialogue,
    columns=("data",),
    kinds={"demonstrations": demonstrations, "prompts": prompts},
)
