"""Chatbot Arena: two models answer the same user, who says which answer is better.

lmsys/chatbot_arena_conversations, mt_bench_human_judgments:
    {"conversation_a": messages, "conversation_b": messages, "winner": "model_a", "model_b", "tie" or "tie (bothbad)"}
lmsys/lmsys-arena-human-preference-55k:
    {"prompt", "response_a", "response_b": lists of texts as JSON, "winner_model_a", "winner_model_b", "winner_tie"}

"turn" is the number of turns that were judged. Conversations of several turns differ in the models' earlier answers,
too: a comparison needs one prompt, so these rows are refused, and --on_bad_rows skip leaves them out.
"""

import json
from collections.abc import Iterator
from typing import Any

from rlhf.data.checks import integer, truth_value
from rlhf.data.formats.base import Format, Row, has
from rlhf.data.messages import check_messages
from rlhf.data.schemas import RowError

WINNERS = {"model_a": [0, 1], "model_b": [1, 0], "tie": [0, 0], "tie (bothbad)": [0, 0]}
FLAGS = ("winner_model_a", "winner_model_b", "winner_tie")


def comparisons(row: Row) -> Iterator[Row]:
    winner = row.get("winner")
    if not isinstance(winner, str) or winner not in WINNERS:
        raise RowError(f"column winner is {winner!r:.40}; one of {', '.join(WINNERS)} is needed")
    yield _pair(_judged(row, "conversation_a"), _judged(row, "conversation_b"), WINNERS[winner])


def prompts(row: Row) -> Iterator[Row]:
    first, second = _judged(row, "conversation_a"), _judged(row, "conversation_b")
    yield {"prompt": _pair(first, second, [0, 0])["chosen"][:-1]}


def flagged_comparisons(row: Row) -> Iterator[Row]:
    flags = [truth_value(row.get(name), f"column {name}") for name in FLAGS]
    if sum(flags) != 1:
        raise RowError(
            f"columns {', '.join(FLAGS)} are {flags!r:.60}; 1 for one of them and 0 for the others is needed"
        )
    winner = ("model_a", "model_b", "tie")[flags.index(True)]
    yield _pair(_zipped(row, "response_a"), _zipped(row, "response_b"), WINNERS[winner])


def flagged_prompts(row: Row) -> Iterator[Row]:
    yield {"prompt": _pair(_zipped(row, "response_a"), _zipped(row, "response_b"), [0, 0])["chosen"][:-1]}


def _pair(a: list[Any], b: list[Any], ranks: list[int]) -> Row:
    """Returns chosen and rejected; equal scores are a tie."""
    chosen, rejected = (a, b) if ranks[0] <= ranks[1] else (b, a)
    return {"chosen": chosen, "rejected": rejected} | (
        {"score_chosen": 0, "score_rejected": 0} if ranks == [0, 0] else {}
    )


def _judged(row: Row, column: str) -> list[dict[str, str]]:
    messages = check_messages(row.get(column), column)
    turn = integer(row.get("turn"))
    if turn is not None and (type(turn) is not int or turn < 1):
        raise RowError(f"column turn is {turn!r:.40}; the number of turns that were judged is needed")
    return messages if turn is None else messages[: 2 * turn]


def _zipped(row: Row, column: str) -> list[dict[str, Any]]:
    questions, answers = _texts(row, "prompt"), _texts(row, column)
    if len(questions) != len(answers):
        raise RowError(f"column {column} has {len(answers)} answers to {len(questions)} prompts; one each is needed")
    pairs = zip(questions, answers, strict=True)
    return [
        message
        for question, answer in pairs
        for message in ({"role": "user", "content": question}, {"role": "assistant", "content": answer})
    ]


def _texts(row: Row, column: str) -> list[Any]:
    value = row.get(column)
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError) as error:
            raise RowError(f'column {column} is not a list in JSON; write it like ["one", "two"]') from error
    if not isinstance(value, list) or not value:
        raise RowError(f"column {column} is not a list of texts; make it one")
    return value


ARENA = Format(
    title="Chatbot Arena conversations",
    matches=has("conversation_a", "conversation_b", "winner"),
    columns=("conversation_a", "conversation_b", "winner", "turn", "judge", "toxic_chat_tag", "openai_moderation"),
    kinds={"comparisons": comparisons, "prompts": prompts},
)
ARENA_55K = Format(
    title="Chatbot Arena preferences",
    matches=has("prompt", "response_a", "response_b", *FLAGS),
    columns=("prompt", "response_a", "response_b", *FLAGS),
    kinds={"comparisons": flagged_comparisons, "prompts": flagged_prompts},
)
