"""berkeley-nest/Nectar: {"prompt": transcript, "answers": [{"answer", "model", "rank": 1..7} x 7]}, ranked by GPT-4.

The prompt is a transcript as in hh-rlhf, which ends in "\\n\\nAssistant: ". Rank 1 is the best.
"""

from collections.abc import Iterator
from typing import Any

from rlhf.data.formats.base import Format, Row, required_text
from rlhf.data.formats.hh import turns
from rlhf.data.schemas import RowError


def is_ranked_answers(row: Row) -> bool:
    answers = row.get("answers")
    return (
        isinstance(answers, list)
        and "prompt" in row
        and all(isinstance(one, dict) and "rank" in one for one in answers)
    )


def comparisons(row: Row) -> Iterator[Row]:
    answers = row.get("answers")
    if not isinstance(answers, list) or not all(isinstance(answer, dict) for answer in answers):
        raise RowError("column answers is not a list of objects with answer and rank; make it one")
    (asked,) = prompts(row)
    completions = [required_text(answer, "answer").strip() for answer in answers]
    yield asked | {"completions": completions, "ranks": [answer.get("rank") for answer in answers]}


def prompts(row: Row) -> Iterator[Row]:
    yield {"prompt": _messages(required_text(row, "prompt"))}


def _messages(prompt: str) -> list[dict[str, Any]]:
    if not prompt.lstrip().startswith("Human:"):
        return [{"role": "user", "content": prompt}]
    messages = turns(prompt, "prompt")
    open_turn = messages[-1]["role"] == "assistant" and not messages[-1]["content"]
    return messages[:-1] if open_turn else messages


NECTAR = Format(
    title="Nectar rankings",
    matches=is_ranked_answers,
    columns=("prompt", "answers", "turns", "num_responses", "good_natured"),
    kinds={"comparisons": comparisons, "prompts": prompts},
)
