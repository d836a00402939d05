"""From what labelers said to ranks: ratings, the best and the worst, votes on pairs.

Ranks are integers from 0, the best; equal ranks are a tie, of which the loss learns nothing.
"""

from collections import Counter
from collections.abc import Sequence
from itertools import combinations

Vote = tuple[int, int, bool]  # (completion, other completion, whether they tie); without a tie the first is the better


def rating_ranks(ratings: Sequence[float]) -> list[int]:
    """[3.0, 5.0, 3.0] -> [1, 0, 1]: higher is better, equal is a tie."""
    places = {rating: place for place, rating in enumerate(sorted(set(ratings), reverse=True))}
    return [places[rating] for rating in ratings]


def best_worst_ranks(best: int, worst: int, k: int) -> list[int]:
    """Best 0, worst last, all others tied between them: nothing was said about their order.

    Equal indices, where one completion is called both, say nothing at all: all tie.
    """
    if best == worst:
        return [0] * k
    return rating_ranks([2 if i == best else 0 if i == worst else 1 for i in range(k)])


def majorities(votes: Sequence[Vote]) -> dict[tuple[int, int], int]:
    """Pair (i, j) with i < j that was voted on -> votes for i less votes for j; a vote for a tie counts 0."""
    balance: Counter[tuple[int, int]] = Counter()
    for better, worse, tied in votes:
        balance[min(better, worse), max(better, worse)] += 0 if tied else 1 if better < worse else -1
    return dict(balance)


def vote_ranks(votes: Sequence[Vote], k: int) -> list[int] | None:
    """Ranks that say of every pair what the majority of its votes says, and nothing else; None if there are none.

    There are none if majorities run in a circle (a above b above c above a), or if a pair was not voted on: ranks would
    then claim an order that nobody gave. If there are ranks, counting how many a completion beats finds them.
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
