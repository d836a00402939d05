"""Anthropic's hh-rlhf: {"chosen", "rejected"}, two transcripts of a conversation that differ in the last answer.

A transcript is one text; every turn begins with a blank line and "Human:" or "Assistant:". Copies have lost the
blank line at the beginning.
"""

import re
from collections.abc import Iterator

from rlhf.data.formats.base import Format, Row, required_text
from rlhf.data.schemas import RowError

TURN = re.compile(r"(?:^\s*|\n\n)(Human|Assistant):")
ROLES = {"Human": "user", "Assistant": "assistant"}


def is_transcript_pair(row: Row) -> bool:
    chosen = row.get("chosen")
    is_transcript = isinstance(chosen, str) and chosen.lstrip().startswith("Human:") and "\n\nAssistant:" in chosen
    return is_transcript and row.get("prompt") is None and "rejected" in row


def comparisons(row: Row) -> Iterator[Row]:
    """Converts the transcripts to messages; the schema finds the common prompt, and refuses pairs without one."""
    yield {name: turns(required_text(row, name), name) for name in ("chosen", "rejected")}


def demonstrations(row: Row) -> Iterator[Row]:
    """Takes the chosen transcript: a model wrote its answer, and a person preferred it."""
    yield {"messages": turns(required_text(row, "chosen"), "chosen")}


prompts = demonstrations  # the schema of prompts drops the last answer


def turns(transcript: str, column: str) -> list[dict[str, str]]:
    """Returns the messages of a transcript."""
    before, *parts = TURN.split(transcript)
    if before.strip():
        raise RowError(f'column {column} does not begin with "\\n\\nHuman:"; add it')
    pairs = zip(parts[::2], parts[1::2], strict=True)
    return [{"role": ROLES[speaker], "content": text.strip()} for speaker, text in pairs]


HH_RLHF = Format(
    title="hh-rlhf transcripts",
    matches=is_transcript_pair,
    columns=("chosen", "rejected"),
    kinds={"comparisons": comparisons, "demonstrations": demonstrations, "prompts": prompts},
)
