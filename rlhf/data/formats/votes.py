"""Votes of several labelers on pairs of K completions:

    {"prompt", "completions": [K texts], "votes": [{"labeler_id": "ann", "better": 0, "worse": 2},
                                                   {"labeler_id": "bob", "tied": [0, 1]}, ...]}

The majority of its votes decides a pair. If ranks exist that agree with all majorities, the row becomes a comparison
of K completions with these ranks. If not, because majorities run in a circle or pairs lack votes, every pair with a
majority becomes a comparison with K = 2.
"""

from collections.abc import Iterator
from typing import Any

from rlhf.data.formats.base import Format, Row, has
from rlhf.data.ranking import Vote, majorities, vote_ranks
from rlhf.data.schemas import OPTIONAL_COLUMNS, RowError


def comparisons(row: Row) -> Iterator[Row]:
    completions, votes = _completions(row), [_vote(row, vote) for vote in _votes(row)]
    ranks = vote_ranks(votes, len(completions))
    if ranks is not None:
        yield _compared(row, completions, ranks)
        return
    for (i, j), balance in majorities(votes).items():
        if balance != 0:
            yield _compared(row, [completions[i], completions[j]], [int(balance < 0), int(balance > 0)])


def votes(row: Row) -> Iterator[Row]:
    """Converts every vote to a comparison with K = 2 by its labeler, to measure agreement."""
    completions = _completions(row)
    for vote in _votes(row):
        i, j, tied = _vote(row, vote)
        ranks = [0, 0] if tied else [0, 1]
        yield _compared(row, [completions[i], completions[j]], ranks) | {"labeler_id": vote.get("labeler_id")}


def prompts(row: Row) -> Iterator[Row]:
    yield {name: row[name] for name in ("prompt", *OPTIONAL_COLUMNS) if name in row}


def _compared(row: Row, completions: list[Any], ranks: list[int]) -> Row:
    (asked,) = prompts(row)
    return asked | {"completions": completions, "ranks": ranks}


def _completions(row: Row) -> list[Any]:
    if not isinstance(row.get("completions"), list):
        raise RowError("column completions is not a list of texts; make it one")
    return row["completions"]


def _votes(row: Row) -> list[Row]:
    if not isinstance(row.get("votes"), list) or not all(isinstance(vote, dict) for vote in row["votes"]):
        raise RowError("column votes is not a list of objects with better and worse, or with tied; make it one")
    return row["votes"]


def _vote(row: Row, vote: Row) -> Vote:
    tied = vote.get("tied") is not None
    pair: Any = vote["tied"] if tied else [vote.get("better"), vote.get("worse")]
    k = len(row["completions"])
    if not isinstance(pair, list) or len(pair) != 2 or not all(type(i) is int and 0 <= i < k for i in pair):
        raise RowError(f"a vote is on {pair!r:.60}; two indices of the {k} completions, from 0, are needed")
    if pair[0] == pair[1]:
        raise RowError(f"a vote compares completion {pair[0]} with itself; two different ones are needed")
    return pair[0], pair[1], tied


VOTES = Format(
    title="votes on pairs",
    matches=has("completions", "votes"),
    columns=("prompt", "completions", "votes", *OPTIONAL_COLUMNS),
    kinds={"comparisons": comparisons, "votes": votes, "prompts": prompts},
)
