"""OpenAI's files for preference fine-tuning: {"input": {"messages"}, "preferred_output", "non_preferred_output"}.

Both outputs are lists with one message of the assistant. Its files for supervised fine-tuning, {"messages"}, are one of
TRL's formats.
"""

from collections.abc import Iterator
from typing import Any

from rlhf.data.checks import is_empty
from rlhf.data.formats.base import Format, Row, has
from rlhf.data.schemas import RowError

OUTPUTS = ("preferred_output", "non_preferred_output")


def comparisons(row: Row) -> Iterator[Row]:
    yield {"prompt": _messages(row), "chosen": row.get(OUTPUTS[0]), "rejected": row.get(OUTPUTS[1])}


def prompts(row: Row) -> Iterator[Row]:
    yield {"prompt": _messages(row)}


def _messages(row: Row) -> Any:
    given = row.get("input")
    if not isinstance(given, dict) or not isinstance(given.get("messages"), list):
        raise RowError('column input is not an object with messages; write {"messages": [...]}')
    if not is_empty(given.get("tools")):
        raise RowError("column input has tools, which are not read; leave them out")
    return given["messages"]


OPENAI_PREFERENCES = Format(
    title="preferences in OpenAI's format",
    matches=has("input", *OUTPUTS),
    columns=("input", *OUTPUTS),
    kinds={"comparisons": comparisons, "prompts": prompts},
)
