"""NVIDIA's HelpSteer2 and HelpSteer3: ratings of single responses, and strengths of preference between two.

HelpSteer2, ratings:    {"prompt", "response", "helpfulness": 0..4, "correctness", ...}, one row for each response
HelpSteer2, preference: {"prompt", "response_1", "response_2", "preference_strength": -3..3}
HelpSteer3, preference: {"context": messages, "response1", "response2", "overall_preference": -3..3}

A negative strength prefers the first response, 0 is a tie. HelpSteer2 has a conversation of several turns as one text,
where a line "<extra_id_1>Assistant" or "<extra_id_1>User" begins each turn after the first.
"""

import re
from collections.abc import Iterator
from typing import Any

from rlhf.data.formats.base import Format, Row, has, required_text
from rlhf.data.schemas import RowError

TURN = re.compile(r"\n?<extra_id_1>(User|Assistant)\n")
STRENGTHS = tuple(range(-3, 4))


def rated_comparisons(rows: list[Row]) -> Iterator[Row]:
    """Compares all responses to a prompt by their helpfulness."""
    if len(rows) >= 2:
        completions, ratings = [row["response"] for row in rows], [row["helpfulness"] for row in rows]
        yield {"prompt": _messages(rows[0]), "completions": completions, "ratings": ratings}


def rated_prompts(rows: list[Row]) -> Iterator[Row]:
    yield {"prompt": _messages(rows[0])}


def rated_prompt(row: Row) -> str:
    """Returns the prompt as the key of a rated response."""
    required_text(row, "response")
    if type(row.get("helpfulness")) not in (int, float):
        raise RowError(f"column helpfulness is {row.get('helpfulness')!r:.40}; a number is needed")
    return required_text(row, "prompt")


def compared(row: Row) -> Iterator[Row]:
    completions = [required_text(row, "response_1"), required_text(row, "response_2")]
    ranks = _ranks(row, "preference_strength")
    yield {"prompt": _messages(row), "completions": completions, "ranks": ranks}


def compared_prompts(row: Row) -> Iterator[Row]:
    yield {"prompt": _messages(row)}


def compared_after_context(row: Row) -> Iterator[Row]:
    completions = [required_text(row, "response1"), required_text(row, "response2")]
    ranks = _ranks(row, "overall_preference")
    yield {"prompt": _context(row), "completions": completions, "ranks": ranks, "category": row.get("domain")}


def contexts(row: Row) -> Iterator[Row]:
    yield {"prompt": _context(row), "category": row.get("domain")}


def _messages(row: Row) -> list[dict[str, str]]:
    first, *parts = TURN.split(required_text(row, "prompt"))
    turns = zip(parts[::2], parts[1::2], strict=True)
    return [
        {"role": "user", "content": first},
        *({"role": speaker.lower(), "content": text} for speaker, text in turns),
    ]


def _context(row: Row) -> Any:
    if not isinstance(row.get("context"), list):
        raise RowError("column context is not a list of messages; make it one")
    return row["context"]


def _ranks(row: Row, column: str) -> list[int]:
    strength = row.get(column)
    if type(strength) not in (int, float) or strength not in STRENGTHS:
        raise RowError(
            f"column {column} is {strength!r:.40}; an integer from -3 (the first is far better) to 3 is needed"
        )
    return [int(strength > 0), int(strength < 0)]


HELPSTEER2 = Format(
    title="HelpSteer2 ratings",
    matches=has("prompt", "response", "helpfulness"),
    columns=("prompt", "response", "helpfulness", "correctness", "coherence", "complexity", "verbosity"),
    kinds={"comparisons": rated_comparisons, "prompts": rated_prompts},
    assemble_by=rated_prompt,
)
HELPSTEER2_PREFERENCE = Format(
    title="HelpSteer2 preferences",
    matches=has("prompt", "response_1", "response_2", "preference_strength"),
    columns=(
        *("prompt", "response_1", "response_2", "preference_strength", "preference_statement"),
        *("preference_elaboration", "three_most_similar_preferences", "all_preferences_unprocessed"),
    ),
    kinds={"comparisons": compared, "prompts": compared_prompts},
)
HELPSTEER3 = Format(
    title="HelpSteer3 preferences",
    matches=has("context", "response1", "response2", "overall_preference"),
    columns=("context", "response1", "response2", "overall_preference", "individual_preference", "domain"),
    kinds={"comparisons": compared_after_context, "prompts": contexts},
)
