"""Ratings, best-worst and votes to ranks: by hand; ranks claim neither more nor less than the votes."""

import json
from itertools import combinations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlhf.data import DataArguments, load_comparisons, load_prompts, schemas
from rlhf.data.bad_rows import BadRows
from rlhf.data.loading import checked_rows, find_rows
from rlhf.data.ranking import best_worst_ranks, majorities, rating_ranks, vote_ranks
from rlhf.errors import InputError


def test_ratings_and_best_worst_by_hand():
    assert rating_ranks([3.0, 5.0, 3.0, 1.5]) == [1, 0, 1, 2]
    assert best_worst_ranks(2, 0, 4) == [2, 1, 0, 1]
    assert best_worst_ranks(1, 0, 2) == [1, 0]
    assert best_worst_ranks(1, 1, 3) == [0, 0, 0]


def test_ratings_and_best_worst_in_place_of_ranks():
    row = {"prompt": "Q", "completions": ["a", "b", "c"]}
    rated = schemas.comparison(row | {"ratings": [1, 7, 1]})
    assert rated == {**row, "ranks": [1, 0, 1], "ratings": [1.0, 7.0, 1.0]}
    assert schemas.comparison(row | {"best": 2, "worst": 0})["ranks"] == [2, 1, 0]
    assert schemas.comparison(row | {"ratings": [1, 7, 1], "ranks": [0, 1, 2]})["ranks"] == [0, 1, 2]
    for wrong in ({"best": 3, "worst": 0}, {"best": 0, "worst": True}, {"best": 0}):
        with pytest.raises(schemas.RowError, match=r"column (best|worst)"):
            schemas.comparison(row | wrong)


def test_majorities_that_order_everything_are_ranks():
    votes = [(0, 1, False), (0, 1, False), (1, 0, False), (1, 2, True), (0, 2, False)]
    assert majorities(votes) == {(0, 1): 1, (1, 2): 0, (0, 2): 1}
    assert vote_ranks(votes, 3) == [0, 1, 1]


def test_circles_and_gaps_have_no_ranks():
    assert vote_ranks([(0, 1, False), (1, 2, False), (2, 0, False)], 3) is None
    assert vote_ranks([(0, 1, False), (1, 2, False)], 3) is None  # no vote on 0 and 2
    assert vote_ranks([(0, 1, False), (0, 2, True), (1, 2, True)], 3) is None  # ties that contradict a preference


VOTES = st.integers(2, 5).flatmap(
    lambda k: st.tuples(
        st.just(k),
        st.lists(
            st.tuples(st.integers(0, k - 1), st.integers(0, k - 1), st.booleans()).filter(lambda v: v[0] != v[1]),
            max_size=25,
        ),
    )
)


@given(VOTES)
def test_ranks_say_what_the_majorities_say(drawn):
    k, votes = drawn
    ranks, balance = vote_ranks(votes, k), majorities(votes)
    if ranks is None:
        return
    for i, j in combinations(range(k), 2):
        value = balance[i, j]
        assert (ranks[i] < ranks[j]) == (value > 0) and (ranks[i] > ranks[j]) == (value < 0)


@given(st.lists(st.integers(0, 3), min_size=2, max_size=5))
def test_ranks_come_back_from_their_own_votes(ranks):
    votes = [
        (i, j, ranks[i] == ranks[j]) if ranks[i] <= ranks[j] else (j, i, False)
        for i, j in combinations(range(len(ranks)), 2)
    ]
    places = {rank: place for place, rank in enumerate(sorted(set(ranks)))}
    assert vote_ranks(votes, len(ranks)) == [places[rank] for rank in ranks]


def vote(labeler, better, worse):
    return {"labeler_id": labeler, "better": better, "worse": worse}


RANKED = {
    "prompt": "Q",
    "completions": ["a", "b", "c"],
    "votes": [vote("x", 0, 1), vote("y", 0, 1), vote("z", 1, 0), vote("x", 0, 2), {"labeler_id": "x", "tied": [1, 2]}],
    "category": "chat",
}
CIRCLE = {"prompt": "R", "completions": ["a", "b", "c"], "votes": [vote("x", 0, 1), vote("x", 1, 2), vote("x", 2, 0)]}


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return DataArguments(dataset_name=str(path))


def test_votes_become_ranks_or_pairs(tmp_path, all_train):
    args = write(tmp_path / "votes.jsonl", [RANKED, CIRCLE])
    ranked, *pairs = load_comparisons(args, "train")
    assert ranked == {"prompt": "Q", "completions": ["a", "b", "c"], "ranks": [0, 1, 1], "category": "chat"}
    assert [(row["prompt"], row["completions"], row["ranks"]) for row in pairs] == [
        ("R", ["a", "b"], [0, 1]),
        ("R", ["b", "c"], [0, 1]),
        ("R", ["a", "c"], [1, 0]),
    ]
    assert load_prompts(args, "train")["prompt"][:] == ["Q", "R"]


def test_single_votes_keep_their_labelers(tmp_path):
    args = write(tmp_path / "votes.jsonl", [RANKED])
    rows = checked_rows("votes", find_rows("votes", args)["train"](), args, BadRows("error", None))
    got = [(row["labeler_id"], row["completions"], row["ranks"]) for row in rows]
    assert got[2:] == [("z", ["b", "a"], [0, 1]), ("x", ["a", "c"], [0, 1]), ("x", ["b", "c"], [0, 0])]


@pytest.mark.parametrize(
    ("votes", "reason"),
    [
        ("x", "column votes is not a list in JSON"),
        (["x"], "column votes is not a list of objects"),
        ([vote("x", 0, 3)], r"a vote is on \[0, 3\]; two indices of the 3 completions"),
        ([vote("x", 0, None)], r"a vote is on \[0, None\]"),
        ([vote("x", 1, 1)], "a vote compares completion 1 with itself"),
        ([{"tied": [0]}], r"a vote is on \[0\]"),
    ],
)
def test_votes_that_are_refused(tmp_path, votes, reason):
    with pytest.raises(InputError, match=f"line 1: {reason}"):
        load_comparisons(write(tmp_path / "votes.jsonl", [RANKED | {"votes": votes}]), "train")
