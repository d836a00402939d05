"""The schema of each kind of row: spellings that are read, and messages about rows that are not."""

import pytest

from rlhf.data import schemas
from rlhf.data.schemas import RowError

USER = {"role": "user", "content": "Name a colour."}
ANSWER = {"role": "assistant", "content": "Red."}
OTHER = {"role": "assistant", "content": "No."}


def test_demonstrations_of_text_messages_and_conversations():
    assert schemas.demonstration({"prompt": "Q", "completion": "A", "extra": 1}) == {"prompt": "Q", "completion": "A"}
    expected = {"prompt": [USER], "completion": [ANSWER]}
    assert schemas.demonstration({"prompt": [USER], "completion": "Red."}) == expected
    assert schemas.demonstration({"prompt": [USER], "completion": [ANSWER | {"name": None}]}) == expected
    assert schemas.demonstration({"messages": [USER, ANSWER]}) == expected


def test_messages_are_a_demonstration_of_the_last_answer():
    thanks = {"role": "user", "content": "Thanks!"}
    row = schemas.demonstration({"messages": [USER, OTHER, USER, ANSWER, thanks], "category": "chat"})
    assert row == {"prompt": [USER, OTHER, USER], "completion": [ANSWER], "category": "chat"}


def test_comparisons_keep_labels_and_close_gaps_in_ranks():
    row = {"prompt": "Q", "completions": ["a", "b", "c"], "ranks": [3, 1, 3], "labeler_id": 7, "ratings": [1, 5, 1]}
    assert schemas.comparison(row) == {
        "prompt": "Q",
        "completions": ["a", "b", "c"],
        "ranks": [1, 0, 1],
        "labeler_id": "7",
        "ratings": [1.0, 5.0, 1.0],
    }


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": [USER], "chosen": "Red.", "rejected": "No."},
        {"prompt": [USER], "chosen": [ANSWER], "rejected": [OTHER]},
        {"chosen": [USER, ANSWER], "rejected": [USER, OTHER]},
    ],
)
def test_trl_preferences_are_two_ranked_completions(row):
    assert schemas.comparison(row) == {"prompt": [USER], "completions": ["Red.", "No."], "ranks": [0, 1]}


def test_prompts_of_conversations_stand_before_the_answer():
    assert schemas.prompt({"messages": [USER, ANSWER], "user_id": 3}) == {"prompt": [USER], "user_id": "3"}
    assert schemas.prompt({"prompt": "Q", "completion": "A"}) == {"prompt": "Q"}


RANKED = {"prompt": "Q", "completions": ["a", "b"], "ranks": [0, 1]}


@pytest.mark.parametrize(
    ("kind", "row", "reason"),
    [
        ("demonstration", {"prompt": "Q", "note": "A"}, r"no column completion \(there is prompt, note\); add it"),
        ("demonstration", {"prompt": "Q", "completion": " \n"}, "completion is empty"),
        ("demonstration", {"prompt": [USER], "completion": [USER]}, "one message of the assistant is needed"),
        ("demonstration", {"prompt": "Q", "completion": 3}, "completion is a number; text is needed"),
        ("demonstration", {"messages": [USER]}, "both are needed"),
        ("demonstration", {"messages": "Q"}, "column messages is text; a list of messages is needed"),
        ("prompt", {"prompt": ""}, "column prompt is empty"),
        ("prompt", {"prompt": {"text": "Q"}}, "column prompt is an object; text or a list of messages is needed"),
        ("prompt", {"prompt": 5}, "column prompt is a number"),
        ("prompt", {"prompt": []}, "column prompt is an empty list"),
        ("prompt", {"prompt": None}, "no column prompt"),
        ("prompt", {"prompt": ["Q"]}, r"prompt\[0\] is not a message"),
        ("prompt", {"prompt": [USER, ANSWER]}, "ends in a message of the assistant; it must end in the user's"),
        ("prompt", {"prompt": [{"role": "user", "content": " "}]}, "last message of column prompt is empty"),
        ("prompt", {"prompt": [{"role": "tool", "content": "x"}, USER]}, "role 'tool'; one of system, user, assistant"),
        ("prompt", {"prompt": [{"role": "user", "content": [{"type": "image"}]}]}, "content of prompt.* is a list"),
        ("prompt", {"prompt": "half a \ud83d pair"}, "half of a surrogate pair at character 7"),
        ("prompt", {"prompt": "Q", "user_id": [1]}, "column user_id is a list"),
        ("comparison", RANKED | {"completions": ["a"], "ranks": [0]}, "K = 1; at least 2 are needed"),
        ("comparison", RANKED | {"completions": "ab"}, "column completions is text; a list of texts is needed"),
        ("comparison", RANKED | {"completions": ["a", ""]}, r"completions\[1\] is empty"),
        ("comparison", RANKED | {"completions": ["a", None]}, r"completions\[1\] is null"),
        ("comparison", RANKED | {"ranks": [0, 1, 2]}, "ranks is 3 entries for 2 completions; a list of 2 integers"),
        ("comparison", RANKED | {"ranks": "0 1"}, "ranks is text for 2 completions"),
        ("comparison", RANKED | {"ranks": [-1, 0]}, "ranks holds -1; integers from 0"),
        ("comparison", RANKED | {"ranks": [0, 0.5]}, "ranks holds 0.5"),
        ("comparison", RANKED | {"ranks": [0, True]}, "ranks holds True"),
        ("comparison", RANKED | {"ratings": [1, float("nan")]}, "ratings is not 2 numbers"),
        ("comparison", {"prompt": "Q", "completions": ["a", "b"]}, "no column ranks"),
        ("comparison", {"chosen": "a", "rejected": "b"}, "no column prompt"),
        ("comparison", {"chosen": [USER, ANSWER], "rejected": [USER | {"content": "x"}, OTHER]}, "differ before"),
        ("pretraining", {"text": "\n"}, "column text is empty"),
        ("pretraining", {"prompt": "x"}, "no column text"),
    ],
)
def test_bad_rows_are_named_with_what_they_need(kind, row, reason):
    with pytest.raises(RowError, match=reason):
        getattr(schemas, kind)(row)
