"""Rankings, completions and gold come into the store; labels go out, for stages, Argilla and spreadsheets."""

import csv
import io
import json

import pytest
from small_stages import messages, write_rows

from rlhf.data import DataArguments, load_comparisons, load_demonstrations
from rlhf.errors import InputError
from rlhf.evaluation.people import people_judges
from rlhf.labeling import people, queue
from rlhf.labeling.import_export import csv_text, export_argilla, export_jsonl, import_rankings, ranking_item
from rlhf.labeling.items import Item, Judgment, Rating
from rlhf.labeling.make_items import (
    comparison_items,
    completion_items,
    demonstration_items,
    gold_items,
    read_prompts,
    read_rankings,
)  # fmt: skip
from rlhf.labeling.store import Store


@pytest.fixture
def store(tmp_path):
    with Store(tmp_path / "labels.db") as store:
        yield store


def label(store, name, *judgments):
    """Judges the next items of a labeler: each judgment is a function of the task."""
    if name not in {one.name for one in people.labelers(store)}:
        people.add_labeler(store, name)
    labeler = people.find_labeler(store, name).id
    for judgment in judgments:
        task = queue.next_task(store, labeler)
        queue.submit(store, task.key, labeler, judgment(task))


def by_length(task):
    """Ranks shorter completions first and rates them higher."""
    lengths = [len(text) for text in task.completions]
    ratings = [Rating(7 - length, {"rude": length == 2, "opinion": None}, "note") for length in lengths]
    return Judgment(ranks=lengths, ratings=ratings, notes="all")


def judged_store(store):
    comparison = Item("comparison", messages("Why? é"), ["aaa", "b", "cc"], ["sft", "ppo", "sft"])
    queue.add_batch(store, "first", [comparison], labelers_per_item=2)
    queue.add_batch(store, "second", [Item("demonstration", messages("How?"))])
    label(store, "ann", by_length, lambda task: Judgment(demonstration="So."))
    label(store, "bob", lambda task: Judgment(unrankable=True, notes="all bad", ratings=by_length(task).ratings))


# ---- In


def test_rankings_become_judgments_of_their_labelers_once(store, tmp_path, all_train):
    rows = [
        {"prompt": "Why?", "completions": ["a", "b", "c"], "ranks": [1, 0, 1], "labeler_id": "ann"},
        {"prompt": "Why?", "completions": ["c", "a", "b"], "ranks": [0, 1, 2], "labeler_id": "bob"},
        {"prompt": "Why?", "completions": ["a", "b", "c"], "ranks": [0, 0, 1], "labeler_id": "ann"},
        {"prompt": "How?", "completions": ["d", "e"], "ratings": [2, 6]},
    ]
    source = str(write_rows(tmp_path / "rankings.jsonl", rows))
    assert import_rankings(store, read_rankings(source), "old") == 3
    assert import_rankings(store, read_rankings(source), "old") == 0
    loaded = load_comparisons(DataArguments(str(store.path)), "train").to_list()
    found = {(row["labeler_id"], row["prompt"]): (row["completions"], row["ranks"]) for row in loaded}
    assert found == {
        ("ann", "Why?"): (["a", "b", "c"], [1, 0, 1]),
        ("bob", "Why?"): (["a", "b", "c"], [1, 2, 0]),
        ("imported", "How?"): (["d", "e"], [1, 0]),
    }
    _, ratings = people_judges(store.path)
    assert ratings.score(["How?"], ["e"], [True])[0].score == 6.0
    label(store, "cleo")
    assert queue.next_task(store, people.find_labeler(store, "cleo").id) is None


def test_rankings_come_again_as_items_without_their_ranks(store, tmp_path):
    source = write_rows(tmp_path / "rankings.jsonl", [{"prompt": "Why?", "chosen": "a", "rejected": "b"}])
    assert queue.add_batch(store, "again", [ranking_item(row) for row in read_rankings(str(source))]) == 1
    label(store, "ann", lambda task: Judgment(ranks=[task.completions.index("a"), task.completions.index("b")]))
    assert ranking_item(read_rankings(str(source))[0], gold=True).gold == {"ranks": [0, 1]}


def test_gold_is_rankings_with_flags_and_demonstrations(tmp_path):
    flags = [{"rude": True}, {"rude": False}]
    rows = [
        {"prompt": "Why?", "completions": ["a", "b"], "ranks": [1, 0], "flags": flags},
        {"prompt": "How?", "completion": "So."},
    ]
    items = gold_items(write_rows(tmp_path / "gold.jsonl", rows))
    assert [item.gold for item in items] == [{"ranks": [1, 0], "flags": flags}, {"demonstration": "So."}]
    assert [item.kind for item in items] == ["comparison", "demonstration"]


@pytest.mark.parametrize(
    "row, message",
    [
        ({"prompt": "Why?", "completions": ["a", "b"]}, "no column ranks"),
        (
            {"prompt": "Why?", "completions": ["a", "b"], "ranks": [0, 1], "flags": [{}]},
            "flags is no list of 2 objects",
        ),
        (
            {"prompt": "Why?", "completions": ["a", "b"], "ranks": [0, 1], "flags": [{"rude": "yes"}, {"rude": 0}]},
            "flags has a value that is no true",
        ),
        ({"prompt": "Why?"}, "no column completion"),
        ("no JSON", "not valid JSON"),
    ],
)
def test_a_bad_row_of_gold_is_named(tmp_path, row, message):
    path = tmp_path / "gold.jsonl"
    path.write_text(row if isinstance(row, str) else json.dumps(row))
    with pytest.raises(InputError) as refused:
        gold_items(path)
    assert f"{path}, line 1: " in str(refused.value) and message in str(refused.value)


def test_completions_of_one_prompt_make_items_of_at_most_k_without_repetitions(tmp_path):
    rows = [
        {"prompt": "Why?", "system": "sft", "response": "a"},
        {"prompt": "How?", "completions": ["x", "y"], "systems": ["sft", "ppo"]},
        {"prompt": "Why?", "system": "sft_greedy", "response": "a "},
        {"prompt": "Why?", "system": "ppo", "response": "b"},
        {"prompt": "Why?", "system": "base", "response": ""},
        {"prompt": "Why?", "system": "base", "response": "c"},
        {"prompt": "What?", "response": "alone"},
    ]
    path = write_rows(tmp_path / "completions.jsonl", rows)
    items = completion_items(path)
    assert [(item.prompt, list(item.completions), list(item.sources)) for item in items] == [
        ("Why?", ["a", "b", "c"], ["sft", "ppo", "base"]),
        ("How?", ["x", "y"], ["sft", "ppo"]),
    ]
    many = comparison_items([("Why?", [(str(i), None) for i in range(11)])])
    assert [len(item.completions) for item in many] == [6, 5] and many[0].sources is None
    assert [len(item.completions) for item in comparison_items([("Why?", [(str(i), None) for i in range(5)])], 4)] == [
        3,
        2,
    ]


def test_prompts_become_demonstrations_to_write(tmp_path):
    rows = [{"prompt": "Why?"}, {"prompt": "How?"}, {"prompt": "Why?"}, {"prompt": "What?"}]
    source = str(write_rows(tmp_path / "prompts.jsonl", rows))
    assert read_prompts(source) == ["Why?", "How?", "What?"]
    assert [(item.kind, item.prompt) for item in demonstration_items(source, 2)] == [
        ("demonstration", "Why?"),
        ("demonstration", "How?"),
    ]
    assert len(demonstration_items("sandbox", 3)) == 3


# ---- Out


def test_json_lines_are_data_sets_of_the_stages_and_of_the_judge(store, tmp_path, all_train):
    judged_store(store)
    assert export_jsonl(store, tmp_path / "out") == {"comparisons": 1, "demonstrations": 1, "ratings": 6}
    [row] = load_comparisons(DataArguments(str(tmp_path / "out" / "comparisons.jsonl")), "train").to_list()
    assert (row["completions"], row["ranks"], row["labeler_id"]) == (["aaa", "b", "cc"], [2, 0, 1], "ann")
    [row] = load_demonstrations(DataArguments(str(tmp_path / "out" / "demonstrations.jsonl")), "train").to_list()
    assert row["completion"][0]["content"] == "So."
    [ratings] = people_judges(tmp_path / "out" / "ratings.jsonl")
    assert ratings.score([messages("Why? é")], ["cc"], [True])[0].flags == {"opinion": None, "rude": True}
    assert [path.name for path in (tmp_path / "out").iterdir() if path.name.startswith(".")] == []


def test_argilla_gets_a_record_for_each_item_with_the_answers_of_all_labelers(store, tmp_path):
    judged_store(store)
    assert export_argilla(store, tmp_path / "records.json") == {"records": 2}
    ranked, written = json.loads((tmp_path / "records.json").read_text())
    assert ranked["fields"] == {
        "prompt": "Why? é", "completion_1": "aaa", "completion_2": "b", "completion_3": "cc"
    }  # fmt: skip
    assert ranked["metadata"]["labelers"] == ["ann", "bob"]
    [ranking] = ranked["responses"]["ranking"]
    assert ranking["value"] == ["completion_2", "completion_3", "completion_1"] and ranking["status"] == "submitted"
    assert [answer["value"] for answer in ranked["responses"]["rating_1"]] == [4, 4]
    assert [answer["value"] for answer in ranked["responses"]["flags_3"]] == [["rude"], ["rude"]]
    assert ranked["responses"]["ranks"][0] == ranking | {"value": "[2, 0, 1]"}
    users = {answer["user_id"] for answers in ranked["responses"].values() for answer in answers}
    assert len(users) == 2
    assert [answer["value"] for answer in written["responses"]["demonstration"]] == ["So."]


def test_skips_and_failed_screenings_are_in_no_export(store, tmp_path):
    queue.add_batch(store, "first", [Item("demonstration", "Why?"), Item("demonstration", "How?")])
    label(store, "ann", lambda task: Judgment(skipped="unclear"), lambda task: Judgment(demonstration="So."))
    with store.write() as db:
        db.execute("update labelers set screening = 'failed'")
    assert export_jsonl(store, tmp_path / "out") == {"comparisons": 0, "demonstrations": 0, "ratings": 0}
    assert export_argilla(store, tmp_path / "records.json") == {"records": 0}


def test_an_export_to_a_place_that_cannot_be_written_is_refused(store, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="cannot be written"):
        export_jsonl(store, tmp_path / "file" / "out")


@pytest.mark.parametrize(
    "text",
    [
        '=HYPERLINK("http://x.test","a")',
        "+1+cmd|' /C calc'!A0",
        "-2+3",
        "@SUM(1)",
        "\t=1",
        "\r=1",
        "\n=1",
        " =1",
        "＝1",
    ],
)
def test_no_cell_of_a_csv_is_a_formula(text):
    [_, [cell]] = csv.reader(io.StringIO(csv_text(["name"], [[text]]), newline=""))
    assert cell == f"'{text}"


def test_a_csv_keeps_numbers_and_text_and_quotes_every_cell():
    text = csv_text(["name", "-share"], [['a;=1,b"c', -0.5], [None, True]])
    assert text == '"name","\'-share"\r\n"a;=1,b""c","-0.5"\r\n"","True"\r\n'
