"""OpenAssistant trees: conversion to rows, messages that are left out, one split per tree."""

import copy
import json
import random
from pathlib import Path

import pytest

from rlhf.data import DataArguments, load_comparisons, load_demonstrations, load_pretraining, load_prompts
from rlhf.data.formats import oasst
from rlhf.data.schemas import RowError
from rlhf.errors import InputError

REAL = Path(__file__).parent.parent.parent / "shared" / "data" / "oasst_trees" / "en_100_tree.jsonl"
real = pytest.mark.skipif(not REAL.exists(), reason="needs the OpenAssistant sample")


def message(text, role, replies=(), **fields):
    common = {"message_id": f"id of {text}", "lang": "en", "deleted": False, "review_result": True}
    return common | {"text": text, "role": role, "replies": list(replies)} | fields


def tree():
    """A question with three ranked answers; the best has a follow-up with one unranked answer."""
    follow_up = message("And then?", "prompter", [message("Nothing.", "assistant")])
    answers = [
        message("Second.", "assistant", rank=1),
        message("Best.", "assistant", [follow_up], rank=0),
        message("Third.", "assistant", rank=2),
    ]
    root = message("What?", "prompter", answers, user_id="u")
    return {"message_tree_id": "t", "tree_state": "ready_for_export", "prompt": root}


QUESTION = {"role": "user", "content": "What?"}
BEST = {"role": "assistant", "content": "Best."}
LATER = {"role": "user", "content": "And then?"}


def test_demonstrations_are_first_ranked_replies_after_their_conversation():
    assert list(oasst.demonstrations(tree())) == [{"prompt": [QUESTION], "completion": [BEST]}]


def test_comparisons_are_ranked_siblings():
    expected = {"prompt": [QUESTION], "completions": ["Second.", "Best.", "Third."], "ranks": [1, 0, 2]}
    assert list(oasst.comparisons(tree())) == [expected]


def test_prompts_are_conversations_that_end_in_the_prompters_turn():
    assert list(oasst.prompts(tree())) == [
        {"prompt": [QUESTION], "user_id": "u"},
        {"prompt": [QUESTION, BEST, LATER], "user_id": "u"},
    ]


@pytest.mark.parametrize("fields", [{"deleted": True, "text": ""}, {"review_result": False}, {"review_result": None}])
def test_deleted_rejected_and_unreviewed_messages_go_with_their_replies(fields):
    without_best = tree()
    without_best["prompt"]["replies"][1] |= fields
    assert list(oasst.demonstrations(without_best)) == []
    assert [(row["completions"], row["ranks"]) for row in oasst.comparisons(without_best)] == [
        (["Second.", "Third."], [1, 2])
    ]
    assert [row["prompt"] for row in oasst.prompts(without_best)] == [[QUESTION]]

    without_root = tree()
    without_root["prompt"] |= fields
    assert not any(list(convert(without_root)) for convert in (oasst.demonstrations, oasst.comparisons, oasst.prompts))


def test_unranked_replies_are_not_compared():
    partly = tree()
    del partly["prompt"]["replies"][0]["rank"]
    partly["prompt"]["replies"][2]["rank"] = None
    assert list(oasst.comparisons(partly)) == []
    assert len(list(oasst.demonstrations(partly))) == 1


def test_only_finished_trees():
    assert list(oasst.prompts(tree() | {"tree_state": "halted_by_moderator"})) == []


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"role": "assistant"}, r"message id of What\? has the role 'assistant'; prompter is needed"),
        ({"text": " "}, r"text of message id of What\? is empty"),
        ({"text": None}, "text of message .* is null"),
        ({"rank": -1}, "has the rank -1; an integer from 0"),
        ({"rank": "0"}, "has the rank '0'"),
        ({"replies": None}, "not an object with replies"),
        ({"replies": ["x"]}, "not an object with replies"),
    ],
)
def test_broken_trees(change, reason):
    broken = tree()
    broken["prompt"] |= change
    with pytest.raises(RowError, match=reason):
        list(oasst.prompts(broken))


def test_a_deep_tree_is_read():
    node = message("leaf", "assistant", rank=0)
    for i in range(5000):
        node = message(f"{i}", "prompter" if i % 2 == 0 else "assistant", [node])
    if node["role"] == "assistant":
        node = message("root", "prompter", [node])
    (row,) = oasst.demonstrations({"message_tree_id": "t", "prompt": node})
    assert len(row["prompt"]) == 5001 and row["completion"][0]["content"] == "leaf"


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return DataArguments(dataset_name=str(path))


def trees(count):
    for i in range(count):
        one = copy.deepcopy(tree())
        one["prompt"]["text"] = f"Question {i}"
        yield one


def test_trees_are_recognized_and_stay_in_one_split(tmp_path):
    args = write(tmp_path / "trees.jsonl", trees(40))
    first = {s: {row["prompt"][0]["content"] for row in load_prompts(args, s)} for s in ("train", "validation", "test")}
    assert sum(map(len, first.values())) == 40 and all(first.values())
    for load in (load_demonstrations, load_comparisons):
        for split, questions in first.items():
            assert {row["prompt"][0]["content"] for row in load(args, split)} == questions


def test_a_row_that_is_no_tree_in_a_file_of_trees(tmp_path):
    args = write(tmp_path / "trees.jsonl", [*trees(5), {"prompt": "a"}])
    with pytest.raises(InputError, match=r"line 6: column prompt is text in some rows"):
        load_prompts(args, "train")
    args.dataset_format = "oasst"
    with pytest.raises(InputError, match=r"line 6: not an OpenAssistant tree"):
        load_prompts(args, "train")
    args.dataset_format = "oasst_messages"
    with pytest.raises(InputError, match=r"line 1: .*; its columns are those of oasst, but dataset_format is oasst_"):
        load_prompts(args, "train")
    args.dataset_format = "oasst"
    with pytest.raises(InputError, match="holds OpenAssistant trees, which have no pretraining"):
        load_pretraining(args, "train")


def flat(tree, parent_id=None):
    """Yields a tree as rows of the table of messages, depth first, with the columns of the Hub's Parquet files."""
    message = dict(tree["prompt"])
    replies = message.pop("replies")
    common = {"message_tree_id": tree["message_tree_id"], "tree_state": tree["tree_state"]}
    yield message | common | {"parent_id": parent_id, "synthetic": False, "emojis": None, "labels": {"name": ["spam"]}}
    for reply in replies:
        yield from flat(common | {"prompt": reply}, message["message_id"])


def numbered_trees(count):
    """Yields trees with different ids."""
    for i, one in enumerate(trees(count)):
        yield json.loads(json.dumps(one).replace('"id of ', f'"{i} ').replace('"t"', f'"tree {i}"'))


@pytest.mark.parametrize("load", [load_demonstrations, load_comparisons, load_prompts])
def test_the_table_of_messages_holds_the_same_as_the_trees(tmp_path, load):
    as_trees = write(tmp_path / "trees.jsonl", numbered_trees(30))
    rows = [row for one in numbered_trees(30) for row in flat(one)]
    table = write(tmp_path / "flat.jsonl", rows)
    shuffled = write(tmp_path / "shuffled.jsonl", rows[:1] + random.Random(0).sample(rows[1:], len(rows) - 1))
    expected = sorted(map(json.dumps, load(as_trees, "train")))
    for args in (table, shuffled):
        as_sets = [row | {"completions": 0, "ranks": 0} if "ranks" in row else row for row in load(args, "train")]
        wanted = [row | {"completions": 0, "ranks": 0} if "ranks" in row else row for row in load(as_trees, "train")]
        assert sorted(map(json.dumps, as_sets)) == sorted(map(json.dumps, wanted))
    assert sorted(map(json.dumps, load(table, "train"))) == expected  # siblings in their order too


def test_the_language_is_that_of_the_root(tmp_path):
    german = tree()
    german["message_tree_id"], german["prompt"]["lang"], german["prompt"]["text"] = "de", "de", "Was?"
    german = json.loads(json.dumps(german).replace('"id of ', '"de '))
    for name, rows in (("trees", [tree(), german]), ("flat", [*flat(tree()), *flat(german)])):
        args = write(tmp_path / f"{name}.jsonl", rows)
        args.dataset_config = "de"
        assert [row["prompt"][0]["content"] for row in load_prompts(args, "train")] == ["Was?", "Was?"]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"role": "user"}, "line 1: column role is 'user'; prompter or assistant is needed"),
        ({"text": None}, "line 1: text of message id of What\\? is null"),
        ({"message_id": None}, "line 1: column message_id is not text"),
        ({"parent_id": 3}, "line 1: column parent_id is not text"),
        ({"message_id": "id of Best."}, "two messages of the tree have the same message_id"),
        ({"parent_id": "id of Best."}, "has 0 messages without parent_id; one, its root, is needed"),
    ],
)
def test_broken_tables(tmp_path, change, reason):
    first, *others = flat(tree())
    with pytest.raises(InputError, match=reason):
        load_prompts(write(tmp_path / "flat.jsonl", [first | change, *others]), "train")


@real
def test_real_trees():
    args = DataArguments(dataset_name=str(REAL))
    splits = ("train", "validation", "test")
    comparisons = [row for split in splits for row in load_comparisons(args, split)]
    assert len(comparisons) == 212
    assert max(len(row["completions"]) for row in comparisons) == 9
    assert sum(len(row["completions"]) == 2 for row in comparisons) == 57
    assert all(sorted(row["ranks"]) == list(range(len(row["completions"]))) for row in comparisons)
    demonstrations = [row for split in splits for row in load_demonstrations(args, split)]
    best = {c for row in comparisons for c, rank in zip(row["completions"], row["ranks"], strict=True) if rank == 0}
    assert {row["completion"][0]["content"] for row in demonstrations} == best
    assert sum(len(load_prompts(args, split)) for split in splits) == 480
