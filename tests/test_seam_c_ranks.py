"""Ranks that were not meant so are seen before training."""

import pytest
from datasets import Dataset

from rlhf.reward.ranks import first_ordered, warn_of_odd_ranks


@pytest.mark.parametrize(
    ("rows", "warned"),
    [
        ({"ranks": [[0, 1], [1, 0]]}, None),
        ({"ranks": [[0, 0]] * 19 + [[0, 1]]}, "19 of 20 pairs of rows.jsonl are ties"),
        ({"ranks": [[0, 1, 2]], "ratings": [[9.0, 5.0, 1.0]]}, None),
        (
            {"ranks": [[2, 1, 0]], "ratings": [[9.0, 5.0, 1.0]]},
            "contradict its ratings in 3 of 3 pairs: rank 0 is the best",
        ),
        ({"ranks": [[0, 1], [0, 1], [1, 0]], "ratings": [[2.0, 1.0], [2.0, 1.0], [2.0, 1.0]]}, None),
        ({"ranks": [[0, 1], [1, 0]], "ratings": [[2.0, 1.0], None]}, None),
    ],
)
def test_seam_c_ranks_that_look_like_ratings_or_ties_alone(caplog, rows, warned):
    warn_of_odd_ranks(Dataset.from_dict(rows), "rows.jsonl")
    assert (warned is None and not caplog.records) or warned in caplog.text


def test_seam_c_the_comparison_that_is_shown_has_a_best_and_a_worst():
    assert first_ordered([[0, 0], [0, 0], [1, 0]]) == 2
    assert first_ordered([[0, 0]]) == 0
