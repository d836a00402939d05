"""Converts labelers' ratings, choices of best and worst, and votes on pairs to ranks.

Ranks are integers from 0, the best; equal ranks are a tie, from which the loss learns nothing.
"""

from collections import Counter
from collections.abc import Sequence
from itertools import combinations

Vote = tuple[int, int, bool]  # (completion, other completion, tied); without a tie the first is better


def rating_ranks(ratings: Sequence[float]) -> list[int]:
    """[3.0, 5.0, 3.0] -> [1, 0, 1]: higher is better, equal is a tie."""
    places = {rating: place for place, rating in enumerate(sorted(set(ratings), reverse=True))}
    return [places[rating] for rating in ratings]


def best_worst_ranks(best: int, worst: int, k: int) -> list[int]:
    """Returns 0 for the best, the last rank for the worst; the others tie between them, since nobody ordered them.

    If one completion is both best and worst, all tie.
    """
    if best == worst:
        return [0] * k
    return rating_ranks([2 if i == best else 0 if i == worst else 1 for i in range(k)])


def agreement(ranks: Sequence[int], ratings: Sequence[float]) -> tuple[int, int]:
    """Returns the numbers of pairs that ranks and ratings order alike, and in opposite ways; a tie is neither."""
    pairs = combinations(range(len(ranks)), 2)
    orders = [(ranks[i] - ranks[j]) * (ratings[i] - ratings[j]) for i, j in pairs]
    return sum(order < 0 for order in orders), sum(order > 0 for order in orders)


def majorities(votes: Sequence[Vote]) -> dict[tuple[int, int], int]:
    """Returns for each pair (i, j) with votes, i < j: votes for i minus votes for j. A vote for a tie counts 0."""
    balance: Counter[tuple[int, int]] = Counter()
    for better, worse, tied in votes:
        balance[min(better, worse), max(better, worse)] += 0 if tied else 1 if better < worse else -1
    return dict(balance)


def vote_ranks(votes: Sequence[Vote], k: int) -> list[int] | None:
    """Returns ranks that agree with the majority of the votes on every pair; None if there are none.

    There are none if majorities run in a circle (a above b above c above a), or if a pair has no votes: ranks would
    claim an order that nobody gave. Otherwise the number of completions that each completion beats determines them.
    """
    balance = majorities(votes)
    beaten = [0] * k
    for (i, j), value in balance.items():
        if value != 0:
            beaten[i if value > 0 else j] += 1
    ranks = rating_ranks(beaten)
    for i, j in combinations(range(k), 2):
        if (i, j) not in balance or _sign(balance[i, j]) != _sign(ranks[j] - ranks[i]):
            return None
    return ranks


def _sign(value: int) -> int:
    return (value > 0) - (value < 0)
