"""Answers of forums, compared by votes: lvwerra/stack-exchange-paired, stanfordnlp/SHP, openai/webgpt_comparisons.

stack-exchange-paired: {"question", "response_j", "response_k"}, response_j got more votes
SHP:                   {"history", "human_ref_A", "human_ref_B", "labels": 1 if A is preferred, else 0}
WebGPT:                {"question": {"full_text"}, "answer_0", "answer_1", "score_0": -1..1, "score_1"}
"""

from collections.abc import Iterator

from rlhf.data.formats.base import Format, Row, has, required_text, user
from rlhf.data.schemas import RowError


def stack_comparisons(row: Row) -> Iterator[Row]:
    completions = [required_text(row, "response_j"), required_text(row, "response_k")]
    yield {"prompt": user(required_text(row, "question")), "completions": completions, "ranks": [0, 1]}


def stack_prompts(row: Row) -> Iterator[Row]:
    yield {"prompt": user(required_text(row, "question"))}


def shp_comparisons(row: Row) -> Iterator[Row]:
    if row.get("labels") not in (0, 1) or isinstance(row["labels"], bool):
        raise RowError(f"column labels is {row.get('labels')!r:.40}; 1 (A is preferred) or 0 (B is) is needed")
    (asked,) = shp_prompts(row)
    completions = [required_text(row, "human_ref_A"), required_text(row, "human_ref_B")]
    yield asked | {"completions": completions, "ranks": [0, 1] if row["labels"] == 1 else [1, 0]}


def shp_prompts(row: Row) -> Iterator[Row]:
    yield {"prompt": user(required_text(row, "history")), "category": row.get("domain")}


def webgpt_comparisons(row: Row) -> Iterator[Row]:
    (asked,) = webgpt_prompts(row)
    completions = [required_text(row, "answer_0"), required_text(row, "answer_1")]
    yield asked | {"completions": completions, "ratings": [row.get("score_0"), row.get("score_1")]}


def webgpt_prompts(row: Row) -> Iterator[Row]:
    question = row.get("question")
    text = required_text(question, "full_text") if isinstance(question, dict) else required_text(row, "question")
    yield {"prompt": user(text)}


STACK_EXCHANGE = Format(
    title="pairs of Stack Exchange answers",
    matches=has("question", "response_j", "response_k"),
    columns=("question", "response_j", "response_k", "metadata"),
    kinds={"comparisons": stack_comparisons, "prompts": stack_prompts},
)
SHP = Format(
    title="SHP preferences",
    matches=has("history", "human_ref_A", "human_ref_B", "labels"),
    columns=(
        "history",
        "human_ref_A",
        "human_ref_B",
        "labels",
        "score_A",
        "score_B",
        "score_ratio",
        "upvote_ratio",
        "domain",
    ),
    kinds={"comparisons": shp_comparisons, "prompts": shp_prompts},
)
WEBGPT = Format(
    title="WebGPT comparisons",
    matches=has("question", "answer_0", "answer_1", "score_0", "score_1"),
    columns=("question", "answer_0", "answer_1", "score_0", "score_1", "quotes_0", "quotes_1", "tokens_0", "tokens_1"),
    kinds={"comparisons": webgpt_comparisons, "prompts": webgpt_prompts},
)
