"""Anthropic's hh-rlhf: {"chosen", "rejected"}, two transcripts of a conversation that differ in the last answer.

A transcript is one text; every turn begins with a blank line and "Human:" or "Assistant:".
"""

import re
from collections.abc import Iterator

from rlhf.data.formats.base import Format, Row, required_text
from rlhf.data.schemas import RowError

TURN = re.compile(r"\n\n(Human|Assistant):")
ROLES = {"Human": "user", "Assistant": "assistant"}


def is_transcript_pair(row: Row) -> bool:
    chosen = row.get("chosen")
    return (
        row.get("prompt") is None and isinstance(chosen, str) and chosen.startswith("\n\nHuman:") and "rejected" in row
    )


def comparisons(row: Row) -> Iterator[Row]:
    """Converts the transcripts to messages; the schema finds the common prompt, and refuses pairs without one."""
    yield {"chosen": _messages(row, "chosen"), "rejected": _messages(row, "rejected")}


def demonstrations(row: Row) -> Iterator[Row]:
    """Takes the chosen transcript: a model wrote its answer, and a person preferred it."""
    yield {"messages": _messages(row, "chosen")}


prompts = demonstrations  # the schema of prompts drops the last answer


def _messages(row: Row, column: str) -> list[dict[str, str]]:
    before, *parts = TURN.split(required_text(row, column))
    if before.strip():
        raise RowError(f'column {column} does not begin with "\\n\\nHuman:"; add it')
    turns = zip(parts[::2], parts[1::2], strict=True)
    return [{"role": ROLES[speaker], "content": text.strip()} for speaker, text in turns]


HH_RLHF = Format(
    title="hh-rlhf transcripts",
    matches=is_transcript_pair,
    kinds={"comparisons": comparisons, "demonstrations": demonstrations, "prompts": prompts},
)
