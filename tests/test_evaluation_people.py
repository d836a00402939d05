"""People as judges: their comparisons and ratings, matched to answers by prompt and text."""

import json

import pytest

from rlhf.errors import InputError
from rlhf.evaluation.judges import Verdict, find_judges
from rlhf.evaluation.people import people_judges
from tests.small_stages import messages, write_rows


def comparison(ranks, labeler=None, prompt="Why?", completions=("good", "fair", "poor"), **columns):
    row = {"prompt": prompt, "completions": list(completions), "ranks": ranks, **columns}
    return row if labeler is None else row | {"labeler_id": labeler}


def preferences(judge, *pairs, prompt="Why?"):
    return judge.prefer([prompt] * len(pairs), [a for a, _ in pairs], [b for _, b in pairs])


def test_labelers_of_a_pair_average_and_others_are_not_judged(tmp_path):
    rows = [comparison([0, 1, 1], "ann"), comparison([1, 0, 2], "bob"), comparison([0, 1, 2], "bob")]
    [judge] = people_judges(write_rows(tmp_path / "labels.jsonl", rows))
    pairs = [("good", "fair"), ("fair", "good"), ("fair", "poor"), ("good", "poor"), ("good", "other"), ("x", "x")]
    assert preferences(judge, *pairs) == [0.5, 0.5, 0.75, 1.0, None, 0.5]  # bob's second opinion counts nothing
    assert preferences(judge, ("good", "fair"), prompt="Why not?") == [None]
    assert judge.about.startswith("People: 2 labelers on 3 pairs")


def test_rows_without_a_labeler_are_each_of_another_one(tmp_path):
    rows = [comparison([0, 1, 2]), comparison([0, 1, 2]), comparison([1, 0, 2])]
    [judge] = people_judges(write_rows(tmp_path / "labels.jsonl", rows))
    assert preferences(judge, ("good", "fair")) == [pytest.approx(2 / 3)]


def test_a_text_and_its_single_message_are_one_prompt_and_outer_space_does_not_count(tmp_path):
    rows = [comparison([0, 1], prompt=messages("Why?"), completions=(" good\n", "fair"))]
    [judge] = people_judges(write_rows(tmp_path / "labels.jsonl", rows))
    assert preferences(judge, ("good", "fair ")) == [1.0]
    assert preferences(judge, ("fair", "good"), prompt=messages("Why?")) == [0.0]


def test_pairs_of_trl_are_comparisons(tmp_path):
    rows = [{"prompt": "Why?", "chosen": "good", "rejected": "poor"}]
    [judge] = people_judges(write_rows(tmp_path / "labels.jsonl", rows))
    assert preferences(judge, ("poor", "good")) == [0.0]


def test_ratings_are_scores_likert_and_flags(tmp_path):
    rows = [
        {"prompt": "Why?", "completion": "good", "rating": 7, "labeler_id": "ann", "flags": {"rude": True, "ok": None}},
        {"prompt": "Why?", "completion": "good", "rating": 4, "labeler_id": "bob", "flags": {"rude": False}},
        {"prompt": "Why?", "completion": "good", "rating": 1, "labeler_id": "bob"},
        {"prompt": "Why?", "completion": "poor", "rating": 1.5},
    ]  # fmt: skip
    [judge] = people_judges(write_rows(tmp_path / "ratings.jsonl", rows))
    verdicts = judge.score(["Why?"] * 3, ["good", "poor", "none"], [True] * 3)
    assert verdicts == [Verdict(5.5, 5.5, {"rude": None, "ok": None}), Verdict(1.5, 1.5), None]


def test_other_scales_are_no_likert(tmp_path):
    path = tmp_path / "ratings.csv"
    path.write_text("prompt,completion,rating\nWhy?,good,80\nWhy?,poor,20.5\n")
    [judge] = people_judges(path)
    assert judge.score(["Why?"], ["good"], [True]) == [Verdict(80.0)]


def test_a_comparison_with_ratings_gives_both_judges(tmp_path):
    rows = [comparison([0, 1, 2], "ann", ratings=[6, 4, 2])]
    path = write_rows(tmp_path / "labels" / "one.jsonl", rows)
    pairs, ratings = find_judges([f"people={path.parent},name=lab"], dataset_name="any")
    assert (pairs.name, ratings.name) == ("lab", "lab_ratings")
    assert ratings.score(["Why?"], ["fair"], [True]) == [Verdict(4.0, 4.0)]
    assert preferences(pairs, ("fair", "poor")) == [1.0]


@pytest.mark.parametrize(
    "row, message",
    [
        ({"prompt": "Why?", "completions": ["a"], "ranks": [0]}, "K = 1"),
        ({"prompt": "Why?", "completions": ["a", "b"], "ranks": [0]}, "column ranks is 1 entries"),
        ({"prompt": "Why?", "completion": "a"}, "column rating is None"),
        ({"prompt": "Why?", "completion": "a", "rating": "high"}, "column rating is 'high'"),
        ({"prompt": "Why?", "completion": "a", "rating": 3, "flags": ["rude"]}, "column flags is ['rude']"),
        ({"prompt": "", "completion": "a", "rating": 3}, "column prompt is empty"),
        ("not JSON", "not valid JSON"),
    ],
)
def test_a_bad_row_is_named_by_file_and_line(tmp_path, row, message):
    path = tmp_path / "labels.jsonl"
    good = json.dumps(comparison([0, 1, 2]))
    path.write_text(f"{good}\n{row if isinstance(row, str) else json.dumps(row)}\n")
    with pytest.raises(InputError) as refused:
        people_judges(path)
    assert f"{path}, line 2: " in str(refused.value) and message in str(refused.value)


def test_a_file_that_is_absent_or_says_nothing_is_refused(tmp_path):
    with pytest.raises(InputError, match="does not exist"):
        people_judges(tmp_path / "labels.jsonl")
    with pytest.raises(InputError, match="holds no file"):
        people_judges(tmp_path)
    path = write_rows(tmp_path / "same.jsonl", [comparison([0, 0], completions=("a", "a"))])
    with pytest.raises(InputError, match="no comparison of two different completions"):
        people_judges(path)
