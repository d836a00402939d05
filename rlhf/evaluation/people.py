"""People as judges: their comparisons and ratings in files or in the store of `rlhf label`.

They are matched to the systems' answers by prompt and text.

A comparison has `prompt`, `completions`, `ranks` (0 is the best) and perhaps `labeler_id`, or another form that the
training data may have (`rlhf.data.schemas`). A rating has `prompt` and either `completion` and `rating`, or
`completions` and `ratings` (higher is better); one `completion` may also have `flags`, an object of true, false or
null. A comparison that has ratings, too, counts as both.
"""

import logging
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from rlhf.data.cells import read_cells
from rlhf.data.checks import Row, RowError, integer
from rlhf.data.encode import Prompt, completion_text, prompt_key
from rlhf.data.files import SourceRow, is_readable, named_row, read_rows
from rlhf.data.label_stores import is_label_store, read_label_rows
from rlhf.data.schemas import comparison, demonstration
from rlhf.data.spellings import spelled_out
from rlhf.errors import InputError
from rlhf.evaluation.agreement import Verdicts, verdicts
from rlhf.evaluation.verdicts import Judge, PairwiseJudge, ScoringJudge, Verdict

logger = logging.getLogger(__name__)

LIKERT = (1.0, 7.0)  # the paper's scale, section 3.6
Answer = tuple[str, str]  # key of the prompt, text


@dataclass(frozen=True)
class Rating:
    """What one labeler says of one answer."""

    labeler: str
    score: float
    flags: dict[str, bool | None]


def people_judges(path: str | Path, name: str = "people") -> list[Judge]:
    """Returns a judge of pairs for the comparisons in a file or folder, and one of answers for its ratings.

    The second is called `<name>_ratings` if there are both.

    Raises:
        InputError: no such file, no comparison or rating in it, or a row that is neither, named by file and line.
    """
    pairs, ratings = read_labels(path)
    judges: list[Judge] = []
    if pairs:
        judges.append(PeoplesPairs(name, str(path), pairs))
    if ratings:
        judges.append(PeoplesRatings(f"{name}_ratings" if pairs else name, str(path), ratings))
    if not judges:
        raise InputError(f"{path} has no comparison of two different completions, and no rating. Give another file.")
    return judges


class PeoplesPairs(PairwiseJudge):
    """Comparisons of pairs; the verdicts of several labelers on a pair average.

    Args:
        pairs: of `read_labels`.
    """

    def __init__(self, name: str, path: str, pairs: Verdicts):
        labelers = len({labeler for votes in pairs.values() for labeler in votes})
        super().__init__(name, f"People: {labelers:,} labelers on {len(pairs):,} pairs of completions in {path}.")
        self.pairs = pairs

    def prefer(
        self, prompts: Sequence[Prompt], responses_a: Sequence[str], responses_b: Sequence[str]
    ) -> list[float | None]:
        """Returns the mean verdict on each pair, None for a pair that nobody has compared; equal texts are a tie."""
        found = [self._prefer(*pair) for pair in zip(prompts, responses_a, responses_b, strict=True)]
        _report(self.name, "pairs", found)
        return found

    def _prefer(self, prompt: Prompt, a: str, b: str) -> float | None:
        (key, a), (_, b) = answer_key(prompt, a), answer_key(prompt, b)
        if a == b:
            return 0.5
        votes = self.pairs.get((key, *sorted((a, b))))  # pyright: ignore[reportArgumentType]
        if votes is None:
            return None
        better = (1 + fmean(votes.values())) / 2  # of the one that is first in the alphabet
        return better if a < b else 1 - better


class PeoplesRatings(ScoringJudge):
    """Ratings of answers; those of several labelers average, and of their flags the majority counts."""

    def __init__(self, name: str, path: str, ratings: dict[Answer, list[Rating]]):
        each = [rating for rated in ratings.values() for rating in rated]
        self.ratings = ratings
        self.is_likert = all(LIKERT[0] <= rating.score <= LIKERT[1] for rating in each)
        labelers = len({rating.labeler for rating in each})
        super().__init__(name, f"People: {len(each):,} ratings by {labelers:,} labelers in {path}.")

    def score(self, prompts: Sequence[Prompt], responses: Sequence[str], ended: Sequence[bool]) -> list[Verdict | None]:
        """Returns the mean rating of each answer, None for one that nobody has rated. Nothing of it is written."""
        found = [self._verdict(answer_key(*answer)) for answer in zip(prompts, responses, strict=True)]
        _report(self.name, "answers", found)
        return found

    def _verdict(self, answer: Answer) -> Verdict | None:
        ratings = self.ratings.get(answer)
        if ratings is None:
            return None
        score = fmean(rating.score for rating in ratings)
        names = sorted({name for rating in ratings for name in rating.flags})
        flags = {name: _majority([rating.flags.get(name) for rating in ratings]) for name in names}
        return Verdict(score, score if self.is_likert else None, flags)


def read_labels(path: str | Path) -> tuple[Verdicts, dict[Answer, list[Rating]]]:
    """Reads comparisons and ratings. If a labeler judged a pair or an answer twice, the first time counts.

    Rows without `labeler_id` are each of another labeler.

    Raises:
        InputError: see `people_judges`.
    """
    comparisons: list[dict[str, Any]] = []
    ratings: dict[Answer, list[Rating]] = {}
    for number, row in enumerate(_rows(Path(path).expanduser()), 1):
        with named_row(row):
            content = spelled_out(read_cells(row.content))
            if content.get("completion") is not None and content.get("completions") is None:
                rated = [_rating(content, str(number))]
            else:
                compared = _comparison(content, str(number))
                comparisons.append(compared)
                rated = _ratings(compared)
        for answer, rating in rated:
            known = ratings.setdefault(answer, [])
            if all(rating.labeler != other.labeler for other in known):
                known.append(rating)
    return verdicts(comparisons), ratings


def answer_key(prompt: Prompt, text: str) -> Answer:
    """Returns what is equal for equal answers, whatever space is around their texts."""
    return prompt_key(_plain_prompt(prompt)), text.strip()


def _plain_prompt(prompt: Prompt) -> Prompt:
    """Returns the text of a single message of the user: files have either, and mean the same."""
    if not isinstance(prompt, str) and len(prompt) == 1 and prompt[0]["role"] == "user":
        prompt = prompt[0]["content"]
    return prompt.strip() if isinstance(prompt, str) else prompt


def _rows(path: Path) -> Iterator[SourceRow]:
    if is_label_store(path):
        yield from read_label_rows(path, "comparison", "rating")
        return
    files = sorted(filter(is_readable, path.rglob("*"))) if path.is_dir() else [path]
    if not files or not files[0].is_file():
        fault = "holds no file of comparisons" if path.is_dir() else "does not exist"
        raise InputError(
            f"{path} {fault}. Give a json, jsonl, csv or parquet file of people's comparisons or ratings, or the store "
            "of `rlhf label`."
        )
    for file in files:
        if not is_readable(file):
            raise InputError(f"{file} is no json, jsonl, csv or parquet file. Write the labels in one of these.")
        yield from read_rows(file)


def _comparison(content: Row, number: str) -> Row:
    row = comparison(content)
    texts = [text.strip() for text in row["completions"]]
    return row | {"prompt": _plain_prompt(row["prompt"]), "completions": texts, "labeler_id": _labeler(content, number)}


def _ratings(row: Row) -> list[tuple[Answer, Rating]]:
    """Returns the ratings of a comparison's completions, if it has them."""
    each = zip(row["completions"], row.get("ratings") or (), strict=False)
    return [(answer_key(row["prompt"], text), Rating(row["labeler_id"], score, {})) for text, score in each]


def _rating(content: Row, number: str) -> tuple[Answer, Rating]:
    """Returns the rating of a single completion."""
    row = demonstration({name: content[name] for name in ("prompt", "messages", "completion") if name in content})
    try:
        score = float(content["rating"])  # a number is text in a csv file
    except (KeyError, TypeError, ValueError) as error:
        got = repr(content.get("rating"))
        raise RowError(f"column rating is {got:.40}; a completion needs a number as its rating") from error
    if not math.isfinite(score):
        raise RowError(f"column rating is {score}; a finite number is needed")
    flags = content.get("flags") or {}
    if not isinstance(flags, dict) or not all(value in (True, False, None) for value in flags.values()):
        raise RowError(f"column flags is {flags!r:.60}; an object of true, false or null is needed")
    flags = {name: None if value is None else bool(value) for name, value in flags.items()}
    answer = answer_key(row["prompt"], completion_text(row["completion"]))
    return answer, Rating(_labeler(content, number), score, flags)


def _labeler(content: Row, number: str) -> str:
    labeler = content.get("labeler_id")
    return f"row {number}" if labeler is None else str(integer(labeler))


def _majority(values: list[bool | None]) -> bool | None:
    """Returns the value of more than half of those that say something; None for a tie."""
    votes = sum(1 if value else -1 for value in values if value is not None)
    return votes > 0 if votes else None


def _report(name: str, noun: str, found: Sequence[object]) -> None:
    judged = sum(one is not None for one in found)
    level = logging.INFO if judged else logging.WARNING
    logger.log(level, "judge %s knows %d of %d %s, by prompt and text", name, judged, len(found), noun)
