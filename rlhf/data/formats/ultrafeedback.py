"""openbmb/UltraFeedback: {"instruction", "completions": [{"response", "overall_score", ...} x 4]}, rated by GPT-4.

About two thousand completions of the first release have an overall score of 10 that the critique contradicts;
argilla/ultrafeedback-binarized-preferences-cleaned lists them. They are read unchanged. Each completion was written
under a system prompt of its own (`custom_system_prompt`), which the rating did not see; it is not part of the prompt.
"""

from collections.abc import Iterator

from rlhf.data.formats.base import Format, Row, assistant, required_text, user
from rlhf.data.schemas import RowError


def is_rated(row: Row) -> bool:
    """True for rows whose completions hold their own ratings."""
    ours = {"ranks", "ratings", "scores", "votes", "best"}
    return {"instruction", "completions"} <= row.keys() and not ours & row.keys()


def comparisons(row: Row) -> Iterator[Row]:
    """Orders K = 4 completions by `overall_score`; equal scores are a tie."""
    rated = _rated(row)
    completions = [required_text(completion, "response") for completion in rated]
    ratings = [completion.get("overall_score") for completion in rated]
    if len(rated) >= 2:
        yield {**_asked(row), "completions": completions, "ratings": ratings}


def demonstrations(row: Row) -> Iterator[Row]:
    """Takes the completion with the highest score, the first of equals."""
    (compared,) = list(comparisons(row)) or [None]
    if compared is None:
        return
    ratings = compared["ratings"]
    if not all(type(rating) in (int, float) for rating in ratings):
        raise RowError("overall_score is not a number in every completion; make it one")
    yield _asked(row) | {"completion": assistant(compared["completions"][ratings.index(max(ratings))])}


def prompts(row: Row) -> Iterator[Row]:
    yield _asked(row)


def _asked(row: Row) -> Row:
    return {"prompt": user(required_text(row, "instruction")), "source": row.get("source")}


def _rated(row: Row) -> list[Row]:
    rated = row.get("completions")
    if not isinstance(rated, list) or not all(isinstance(completion, dict) for completion in rated):
        raise RowError("column completions is not a list of objects with response and overall_score; make it one")
    return rated


ULTRAFEEDBACK = Format(
    title="UltraFeedback completions",
    matches=is_rated,
    columns=("instruction", "completions", "source", "models", "correct_answers", "incorrect_answers"),
    kinds={"comparisons": comparisons, "demonstrations": demonstrations, "prompts": prompts},
)
