"""openai/summarize_from_feedback: comparisons of two summaries, and ratings of single summaries on several axes.

comparisons: {"info", "summaries": [{"text", ...}, {"text", ...}], "choice": 0 or 1, "worker"}
axis:        {"info", "summary": {"text", "axes": {"overall": 1..7, ...}}, "worker"}

`info` is a Reddit post ({"id", "post", "title", "subreddit"}) or an article ({"id", "article", "title"}). Posts get the
prompt of trl-lib/tldr, so that one model takes both data sets; so a summary begins with a space.
"""

import json
from collections.abc import Iterator
from typing import Any

from rlhf.data.formats.base import Format, Row, has, optional_text, required_text
from rlhf.data.schemas import RowError

POST = "SUBREDDIT: r/{subreddit}\n\nTITLE: {title}\n\nPOST: {post}\n\nTL;DR:"
ARTICLE = "TITLE: {title}\n\nARTICLE: {article}\n\nTL;DR:"


def comparisons(row: Row) -> Iterator[Row]:
    summaries, choice = row.get("summaries"), row.get("choice")
    if not isinstance(summaries, list) or len(summaries) != 2:
        raise RowError("column summaries is not a list of two summaries; make it one")
    if choice not in (0, 1) or isinstance(choice, bool | float):
        raise RowError(f"column choice is {choice!r:.40}; 0 or 1, the better summary, is needed")
    completions = [_completion(summary) for summary in summaries]
    yield {"completions": completions, "ranks": [choice, 1 - choice], **_asked(row)}


def rated_comparisons(rows: list[Row]) -> Iterator[Row]:
    """Compares the summaries of a post that one worker rated, by their overall ratings."""
    rated = [row for row in rows if _overall(row) is not None]
    if len(rated) >= 2:
        completions = [_completion(row["summary"]) for row in rated]
        yield {"completions": completions, "ratings": [_overall(row) for row in rated], **_asked(rated[0])}


def prompts(row: Row) -> Iterator[Row]:
    yield {"prompt": _asked(row)["prompt"]}


def rated_prompts(rows: list[Row]) -> Iterator[Row]:
    yield from prompts(rows[0])


def post_and_worker(row: Row) -> str:
    """Returns the key of a rating: post and worker."""
    _completion(row.get("summary"))  # checked here, so that one bad row does not spoil the others of its key
    _overall(row)
    return json.dumps([_asked(row)["prompt"], str(row.get("worker"))])


def _asked(row: Row) -> Row:
    info = row.get("info")
    if not isinstance(info, dict):
        raise RowError("column info is not an object with the post or the article; make it one")
    title = optional_text(info, "title")
    if info.get("article"):
        prompt = ARTICLE.format(title=title, article=required_text(info, "article"))
    else:
        prompt = POST.format(subreddit=optional_text(info, "subreddit"), title=title, post=required_text(info, "post"))
    return {"prompt": prompt, "labeler_id": row.get("worker")}


def _completion(summary: Any) -> str:
    if not isinstance(summary, dict):
        raise RowError("a summary is not an object with text; make it one")
    return " " + required_text(summary, "text").strip()


def _overall(row: Row) -> float | None:
    axes = row["summary"].get("axes")
    rating = axes.get("overall") if isinstance(axes, dict) else None
    if rating is not None and (type(rating) not in (int, float) or abs(rating) > 100):
        raise RowError(f"the overall rating is {rating!r:.40}; a number is needed")
    return rating


SUMMARIES = Format(
    title="compared summaries",
    matches=has("info", "summaries", "choice"),
    columns=("info", "summaries", "choice", "worker", "extra"),
    kinds={"comparisons": comparisons, "prompts": prompts},
)
SUMMARY_AXES = Format(
    title="rated summaries",
    matches=has("info", "summary"),
    columns=("info", "summary", "worker"),
    kinds={"comparisons": rated_comparisons, "prompts": rated_prompts},
    assemble_by=post_and_worker,
)
