"""Items that wait for labelers, tasks as one labeler sees them, and judgments; and what is wrong with one."""

import hashlib
import json
import math
import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from typing import Any

from rlhf.errors import InputError

KINDS = ("comparison", "demonstration")
ROLES = ("system", "user", "assistant")
MAX_COMPLETIONS = 9  # the paper's K; ranks are typed as one digit
MAX_NOTES = 10_000  # characters
MAX_TEXT = 100_000  # characters of a demonstration
MAX_REASON = 1_000  # characters of the reason of a skip
MAX_SECONDS = 24 * 3600.0
LIKERT = (1, 7)
SURROGATES = re.compile("[\ud800-\udfff]")
Prompt = str | list[dict[str, str]]


class TaskNotFound(InputError):
    """There is no such task, or it is another labeler's."""


class Conflict(InputError):
    """The task was judged in another way since the page was made."""


@dataclass(frozen=True)
class Item:
    """A prompt with K completions to rank, or to answer.

    Attributes:
        kind: "comparison", or "demonstration": the labeler writes the answer, or edits the only completion.
        prompt: text, or messages that end in the user's.
        completions: K = 2..9 texts to compare; 0 or 1 for a demonstration.
        sources: names of the systems that wrote them. No labeler sees them.
        gold: judgment of a trusted labeler, {"ranks", "flags": one object for each completion, "demonstration"}, by
            index of the completion. Labelers in screening are measured by it.
    """

    kind: str
    prompt: Prompt
    completions: Sequence[str] = ()
    sources: Sequence[str] | None = None
    gold: dict[str, Any] | None = None


@dataclass(frozen=True)
class Rating:
    """A labeler's opinion of one completion: 1 (worst) to 7, and flags that are true, false or unanswered."""

    rating: int | None = None
    flags: dict[str, bool | None] = field(default_factory=dict)
    notes: str = ""


@dataclass(frozen=True)
class Judgment:
    """A labeler's judgment; ranks and ratings are in the order of the screen.

    Attributes:
        ranks: of each completion, 0 is the best and equal is a tie; None for one without a rank.
        skipped: reason why she does not judge the item.
        unrankable: she has judged it, and no order of the completions would be true.
        seconds: time in front of the screen.
        revision: of the task (`Task.revision`) that the page showed.
    """

    ranks: Sequence[int | None] | None = None
    ratings: Sequence[Rating] | None = None
    demonstration: str | None = None
    skipped: str | None = None
    unrankable: bool = False
    notes: str = ""
    seconds: float = 0.0
    revision: int = 0


@dataclass(frozen=True)
class Task:
    """An item for one labeler, with the completions in her random order.

    Attributes:
        draft: her draft, or her judgment as `read_judgment` reads it if she has judged it.
        revision: number of times that she has judged it.
        expires: end of her lease, Unix seconds.
        done: number of tasks that she has judged.
        active: seconds that the page has counted until the last draft.
    """

    key: str
    kind: str
    prompt: Prompt
    completions: list[str]
    draft: dict[str, Any] | None
    revision: int
    expires: float
    done: int
    batch: str
    active: float


def check_item(item: Item) -> None:
    """Raises InputError if an item cannot be shown, or its labels could not be read as training data."""
    if item.kind not in KINDS:
        raise InputError(f"kind is {item.kind!r:.40}. Write comparison or demonstration.")
    low, high = (2, MAX_COMPLETIONS) if item.kind == "comparison" else (0, 1)
    if not low <= len(item.completions) <= high:
        raise InputError(f"A {item.kind} has {len(item.completions)} completions. Give {low} to {high}.")
    _check_prompt(item.prompt)
    for i, text in enumerate(item.completions):
        check_text(text, f"completion {i}", None)
    if item.sources is not None and len(item.sources) != len(item.completions):
        raise InputError(f"{len(item.sources)} sources for {len(item.completions)} completions. Give one for each.")
    for name in ("ranks", "flags"):
        values = (item.gold or {}).get(name)
        if values is not None and len(values) != len(item.completions):
            raise InputError(f"gold has {len(values)} {name} for {len(item.completions)} completions. Give one each.")


def check_judgment(kind: str, k: int, judgment: Judgment, flags: Collection[str] | None = None) -> None:
    """Raises InputError if a judgment is incomplete, out of range or contradicts itself.

    Args:
        kind: of the item.
        k: number of its completions.
        flags: known names. None allows all.
    """
    check_text(judgment.notes, "notes", MAX_NOTES, may_be_blank=True)
    if not (isinstance(judgment.seconds, int | float) and 0 <= judgment.seconds < math.inf):
        raise InputError(f"seconds is {judgment.seconds!r:.40}. Send a number from 0.")
    if judgment.skipped is not None:
        check_text(judgment.skipped, "The reason for skipping", MAX_REASON)
        return
    if judgment.ratings is not None:
        if len(judgment.ratings) != k:
            raise InputError(f"{len(judgment.ratings)} ratings for {k} completions. Rate each.")
        for rating in judgment.ratings:
            _check_rating(rating, flags)
    if judgment.demonstration is not None:
        check_text(judgment.demonstration, "The ideal answer", MAX_TEXT)
    if kind == "demonstration":
        if judgment.demonstration is None:
            raise InputError("The ideal answer is empty. Write it, or skip the item with a reason.")
        if judgment.ranks is not None or judgment.unrankable:
            raise InputError("There is nothing to rank. Send the ideal answer alone.")
    elif not judgment.unrankable:
        _check_ranks(judgment, k)


def dense_ranks(ranks: Sequence[int]) -> list[int]:
    """[1, 4, 4] -> [0, 1, 1]."""
    places = {rank: place for place, rank in enumerate(sorted(set(ranks)))}
    return [places[rank] for rank in ranks]


def read_judgment(content: Any) -> Judgment:
    """Returns the judgment of a page's JSON, which has the names of `Judgment`'s attributes.

    Raises:
        InputError: a value of another type, or an unknown name.
    """
    content = _object(content, "The judgment", Judgment.__dataclass_fields__)
    _check_types(content, {"demonstration": str, "skipped": str, "notes": str, "unrankable": bool, "revision": int})
    if abs(content.get("revision") or 0) > 2**31:  # the store's integers have an end
        raise InputError("revision is no number of judgments. Reload the page.")
    ranks, ratings = content.get("ranks"), content.get("ratings")
    if ranks is not None and not (isinstance(ranks, list) and all(_is(one, int) for one in ranks if one is not None)):
        raise InputError("ranks is no list of integers. Send one for each completion.")
    if ratings is not None:
        if not isinstance(ratings, list):
            raise InputError("ratings is no list. Send one for each completion.")
        content = content | {"ratings": [_read_rating(one) for one in ratings]}
    return Judgment(**{name: value for name, value in content.items() if value is not None})


def content_digest(item: Item) -> str:
    """Returns what is equal for items of equal content: same prompt, same completions in any order."""
    prompt = item.prompt
    if not isinstance(prompt, str) and len(prompt) == 1 and prompt[0]["role"] == "user":
        prompt = prompt[0]["content"]  # means the same
    if isinstance(prompt, str):
        prompt = prompt.strip()
    content = [item.kind, prompt, sorted(text.strip() for text in item.completions)]
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def stored_order(item: Item, completions: Sequence[str]) -> list[int]:
    """Returns the index in `item` of each of its completions as the store has them, perhaps in another order."""
    texts = [text.strip() for text in item.completions]
    return [texts.index(text.strip()) for text in completions]


def check_text(value: Any, name: str, limit: int | None, may_be_blank: bool = False) -> None:
    """Raises InputError for what is no text, too long, blank, or cannot be written as UTF-8."""
    if not isinstance(value, str):
        raise InputError(f"{name} is no text. Send text.")
    if limit is not None and len(value) > limit:
        raise InputError(f"{name} has {len(value):,} characters; at most {limit:,} are kept. Shorten it.")
    if not may_be_blank and not value.strip():
        raise InputError(f"{name} is empty. Write some text.")
    if "\0" in value or SURROGATES.search(value):
        raise InputError(f"{name} holds a NUL character or half of a surrogate pair. Remove it.")


def _check_prompt(prompt: Any) -> None:
    if isinstance(prompt, str):
        return check_text(prompt, "prompt", None)
    messages = isinstance(prompt, list) and prompt and all(isinstance(one, dict) for one in prompt)
    if not messages or any(set(one) != {"role", "content"} or one["role"] not in ROLES for one in prompt):
        raise InputError(
            "prompt is neither text nor messages with role (system, user, assistant) and content. Write one of these."
        )
    for i, message in enumerate(prompt):
        check_text(message.get("content"), f"message {i} of the prompt", None, may_be_blank=i < len(prompt) - 1)
    if prompt[-1]["role"] != "user":
        raise InputError("The prompt's last message is not the user's. End it with a message of the user.")


def _check_rating(rating: Rating, flags: Collection[str] | None) -> None:
    low, high = LIKERT
    if rating.rating is not None and not (_is(rating.rating, int) and low <= rating.rating <= high):
        raise InputError(f"A rating is {rating.rating!r:.40}. Choose {low} to {high}.")
    unknown = sorted(set(rating.flags) - set(flags)) if flags is not None else []
    if unknown:
        raise InputError(f"Flag {unknown[0]!r:.60} is unknown. Reload the page.")
    check_text(rating.notes, "notes", MAX_NOTES, may_be_blank=True)


def _check_ranks(judgment: Judgment, k: int) -> None:
    """An order that nobody touched has None as ranks."""
    ranks = judgment.ranks or []
    given = [rank for rank in ranks if rank is not None]
    if len(ranks) != k or len(given) != k:
        raise InputError(f"{len(given)} of {k} completions have a rank. Rank each, or mark that they cannot be ranked.")
    if not all(_is(rank, int) and abs(rank) < 1000 for rank in given):
        raise InputError("A rank is no small integer. Send 0 for the best, 1 for the next.")
    rates = [rating.rating for rating in judgment.ratings or ()]
    orders = [
        (given[i] - given[j]) * (a - b)
        for i, j in combinations(range(len(rates)), 2)
        if (a := rates[i]) is not None and (b := rates[j]) is not None
    ]
    if any(order > 0 for order in orders) and not any(order < 0 for order in orders):
        raise InputError("The ranking is the opposite of the ratings: first is best, and 7 is best. Correct one.")


def _read_rating(content: Any) -> Rating:
    content = _object(content, "A rating", Rating.__dataclass_fields__)
    _check_types(content, {"rating": int, "notes": str})
    flags = content.get("flags")
    if flags is None:
        flags = {}
    if not isinstance(flags, dict) or not all(value is None or _is(value, bool) for value in flags.values()):
        raise InputError("flags is no object of true, false and null. Send one.")
    return Rating(content.get("rating"), flags, content.get("notes") or "")


def _object(content: Any, name: str, known: Collection[str]) -> dict[str, Any]:
    if not isinstance(content, dict):
        raise InputError(f"{name} is no object. Send one.")
    unknown = sorted(set(content) - set(known))
    if unknown:
        raise InputError(f"{name} has the unknown field {unknown[0]!r:.60}. Leave it out.")
    return content


def _check_types(content: dict[str, Any], types: dict[str, type]) -> None:
    for name, wanted in types.items():
        value = content.get(name)
        if value is not None and not _is(value, wanted):
            raise InputError(f"{name} is {value!r:.40}; it has the wrong type. Send {wanted.__name__}.")


def _is(value: Any, kind: type) -> bool:
    """True is no integer here."""
    return isinstance(value, kind) and (kind is bool or not isinstance(value, bool))
