"""Columns that were guessed or dropped: each is read as meant, or the row is refused with its place and a remedy."""

import csv
import io
import json
from pathlib import Path

import datasets
import pandas as pd
import pytest
from test_data_formats import assistant, user

from rlhf.data import DataArguments, load_comparisons, load_demonstrations, load_pretraining, load_prompts
from rlhf.data.arguments import PretrainingArguments
from rlhf.data.pretraining import open_sources
from rlhf.errors import InputError

NAN = float("nan")
pytestmark = pytest.mark.usefixtures("all_train")  # files of a few rows


def system(text):
    return {"role": "system", "content": text}


def write(path: Path, rows: list[dict], **options) -> DataArguments:
    if path.suffix == ".parquet":
        datasets.Dataset.from_list(rows).to_parquet(path)
    elif path.suffix == ".csv":  # as pandas writes it: lists as Python prints them
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, rows[0])
            writer.writeheader()
            writer.writerows(rows)
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return DataArguments(dataset_name=str(path), **options)


@pytest.fixture
def load(tmp_path):
    """Loads rows from a file: load(load_prompts, rows, "a.csv", options of DataArguments)."""

    def load_rows(loader, rows, name="a.jsonl", **options):
        return [dict(row) for row in loader(write(tmp_path / name, rows, **options), "train")]

    return load_rows


# ---- C1: prompts are not guessed


@pytest.mark.parametrize(
    "row",
    [
        {
            "question": "What is the capital of France?",
            "chosen": "The capital is Paris.",
            "rejected": "The capital is Lyon.",
        },
        {"instruction": "Name a sea.", "chosen": "The North Sea.", "rejected": "The desert."},
        {"query": "Name a sea.", "chosen_response": "The North Sea.", "rejected_response": "The desert."},
        {"input": "Name a sea.", "response_chosen": "The North Sea.", "response_rejected": "The desert."},
    ],
)
def test_seam_c1_a_question_beside_the_pair_is_the_prompt(load, row):
    question, better, worse = row.values()
    expected = {"prompt": [user(question)], "completions": [better, worse], "ranks": [0, 1]}
    assert load(load_comparisons, [row]) == [expected]
    assert load(load_prompts, [row]) == [{"prompt": [user(question)]}]


@pytest.mark.parametrize(
    "row",
    [
        {"chosen": "The capital of France is Paris.", "rejected": "The capital of France is Lyon."},
        {"chosen": "The same.", "rejected": "The same."},
        {"topic": "seas", "chosen": "The North Sea.", "rejected": "The desert."},
    ],
)
def test_seam_c1_common_first_words_are_no_prompt(load, row):
    for loader in (load_comparisons, load_prompts):
        with pytest.raises(InputError, match=r"a.jsonl, line 1: no column prompt.*--columns prompt="):
            load(loader, [row])


@pytest.mark.parametrize(
    ("asked", "better", "worse"),
    [
        ("Human: Hi\nAssistant:", " Hello.", " Go."),
        ("<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n", "Hello.", "Go."),
        ("[INST] Hi [/INST]", " Hello.", " Hell."),
        ("### Instruction:\nHi\n\n### Response:\n", "Hello.", "Go."),
    ],
)
def test_seam_c1_the_border_of_a_turn_ends_the_common_prompt(load, asked, better, worse):
    (row,) = load(load_comparisons, [{"chosen": asked + better, "rejected": asked + worse}])
    assert row == {"prompt": asked, "completions": [better, worse], "ranks": [0, 1]}


def test_seam_c1_transcripts_that_differ_before_the_last_turn(load):
    pair = {"chosen": "Q: a\nAssistant: b\nQ: c\nAssistant: d", "rejected": "Q: a\nAssistant: x\nQ: c\nAssistant: d"}
    with pytest.raises(InputError, match="differ before the last answer"):
        load(load_comparisons, [pair])


# ---- C2: columns that change what a row means


def test_seam_c2_system_and_history_are_read(load):
    row = {
        "instruction": "And now?",
        "input": "",
        "output": "Cold.",
        "system": "Be brief.",
        "history": [["How is the sea?", "Warm."]],
    }
    turns = [system("Be brief."), user("How is the sea?"), assistant("Warm."), user("And now?")]
    for name in ("a.jsonl", "a.csv", "a.parquet"):
        assert load(load_demonstrations, [row], name) == [{"prompt": turns, "completion": [assistant("Cold.")]}]
        assert load(load_prompts, [row], name) == [{"prompt": turns}]


def test_seam_c2_rows_that_differ_in_system_alone_have_different_prompts(load):
    row = {"question": "Name a sea.", "chosen": "The North Sea.", "rejected": "No sea."}
    first, second = load(load_comparisons, [{"system": "Help.", **row}, {"system": "Refuse.", **row}])
    assert first["prompt"] == [system("Help."), user("Name a sea.")]
    assert second["prompt"] == [system("Refuse."), user("Name a sea.")]


def test_seam_c2_rows_with_and_without_a_system_message_are_of_one_kind(load):
    rows = [{"prompt": "Q", "completion": "A", "system": text} for text in ("Be brief.", "", None)]
    prompts = [row["prompt"] for row in load(load_demonstrations, rows)]
    assert prompts == [[system("Be brief."), user("Q")], [user("Q")], [user("Q")]]


DEMONSTRATION = {"prompt": "Q", "completion": "A"}
COMPARISON = {"prompt": "Q", "completions": ["a", "b"], "ranks": [0, 1]}
PAIR = {"prompt": "Q", "chosen": "a", "rejected": "b"}
PUBLISHED = {
    "alpaca": {"instruction": "Q", "input": "", "output": "A"},
    "dolly": {"instruction": "Q", "context": "", "response": "A"},
    "hh_rlhf": {"chosen": "\n\nHuman: Q\n\nAssistant: A", "rejected": "\n\nHuman: Q\n\nAssistant: B"},
}
SAYS_MORE = {
    "context": "It rained.",
    "tools": [{"name": "search"}],
    "images": ["a.png"],
    "image_url": "a.png",
    "documents": ["It rained."],
    "chat_template_kwargs": {"enable_thinking": True},
    "weight": 0.5,
}
JUDGES = {
    "score": 0.2,
    "rating": 1,
    "margin": 2.0,
    "response_rejected": "B",
    "rejected_answer": "B",
    "is_good": False,
    "reward": -1.0,
    "thumbs_up": 0,
    "preferred_response": 1,
}


@pytest.mark.parametrize("extra", SAYS_MORE)
@pytest.mark.parametrize("row", [DEMONSTRATION, COMPARISON, PAIR], ids=["demonstration", "comparison", "pair"])
def test_seam_c2_columns_about_the_prompt_are_refused(load, row, extra):
    loader = load_demonstrations if row is DEMONSTRATION else load_comparisons
    for one in (loader, load_prompts):
        with pytest.raises(InputError, match=f"line 2: column {extra} may change.*--columns ignore={extra}"):
            load(one, [row, row | {extra: SAYS_MORE[extra]}])
        assert len(load(one, [row, row | {extra: SAYS_MORE[extra]}], columns=[f"ignore={extra}"])) == 2


@pytest.mark.parametrize("extra", JUDGES)
@pytest.mark.parametrize("row", [DEMONSTRATION, COMPARISON, PAIR], ids=["demonstration", "comparison", "pair"])
def test_seam_c2_columns_about_the_answer_are_refused(load, row, extra):
    loader = load_demonstrations if row is DEMONSTRATION else load_comparisons
    with pytest.raises(InputError, match=f"line 1: column {extra} may change"):
        load(loader, [row | {extra: JUDGES[extra]}])
    assert load(load_prompts, [row | {extra: JUDGES[extra]}]) == [{"prompt": "Q"}]


@pytest.mark.parametrize("name", PUBLISHED)
@pytest.mark.parametrize("extra", [*SAYS_MORE, *JUDGES])
def test_seam_c2_published_formats_refuse_what_they_do_not_read(load, name, extra):
    if name == "dolly" and extra == "context":
        return  # its own
    row = PUBLISHED[name] | {extra: (SAYS_MORE | JUDGES)[extra]}
    loader = load_comparisons if name == "hh_rlhf" else load_demonstrations
    with pytest.raises(InputError, match=f"line 1: column {extra} may change"):
        load(loader, [row])


def test_seam_c2_harmless_and_empty_columns_are_no_fault(load, caplog):
    harmless = {
        "id": 7,
        "language": "en",
        "created_at": "2024",
        "prompt_id": "x",
        "model": "m",
        "url": "u",
        "num_turns": 2,
    }
    empty = {"system": None, "history": [], "tools": "[]", "images": [], "score": None, "margin": NAN, "context": ""}
    (row,) = load(load_demonstrations, [DEMONSTRATION | harmless | empty])
    assert row == {"prompt": [user("Q")], "completion": [assistant("A")]}
    assert "that are not read" in caplog.text and "created_at" in caplog.text
    caplog.clear()
    load(load_demonstrations, [DEMONSTRATION | harmless | empty])
    assert "that are not read" not in caplog.text  # said once


def test_seam_c2_keys_of_messages_that_change_their_meaning(load):
    for key, value in {"tool_calls": [{"name": "f"}], "reasoning_content": "Hm.", "images": ["a.png"]}.items():
        with pytest.raises(InputError, match=f"has {key}, which may change"):
            load(load_demonstrations, [{"messages": [user("Q"), assistant("A") | {key: value}]}])
    with pytest.raises(InputError, match="has weight 0"):
        load(load_demonstrations, [{"messages": [user("Q"), assistant("A") | {"weight": 0}]}])
    talk = [user("Q") | {"weight": 0}, assistant("A") | {"weight": 1, "name": None}]
    assert load(load_demonstrations, [{"messages": talk}])[0]["completion"] == [assistant("A")]


def test_seam_c2_answers_that_are_not_learned_in_full(load):
    """Axolotl: `training` and `train_detail` leave out an answer, or parts of it."""
    part = [{"begin_offset": 0, "end_offset": 2, "train": False}, {"begin_offset": 3, "end_offset": 9, "train": True}]
    for mark in ({"train_detail": part}, {"training": False}, {"train": False}):
        with pytest.raises(InputError, match=f"the last answer of column messages has {next(iter(mark))} "):
            load(load_demonstrations, [{"messages": [user("Q"), assistant("A") | mark]}])
    talk = [user("Q") | {"training": False}, assistant("A") | {"training": True, "train_detail": []}]
    assert load(load_demonstrations, [{"messages": talk}])[0]["completion"] == [assistant("A")]


def test_seam_c2_messages_beside_the_prompt_of_an_answer(load):
    talk = [user("Q"), assistant("Which?"), user("The North Sea.")]
    demonstration = {"prompt": "Q", "messages": talk, "completion": "Cold."}
    comparison = {"prompt": "Q", "messages": talk, "completions": ["Cold.", "Hot."], "ranks": [0, 1]}
    for loader, row in (
        (load_demonstrations, demonstration),
        (load_comparisons, comparison),
        (load_prompts, demonstration),
        (load_prompts, comparison),
    ):
        with pytest.raises(InputError, match=r"line 1: column messages may change .*--columns ignore=messages"):
            load(loader, [row])
    del demonstration["prompt"]
    assert load(load_prompts, [demonstration]) == [{"prompt": talk}]


# ---- C3: messages stored as text

TURNS = [user('Don\'t say "no".'), assistant("It's\nfine.")]


@pytest.mark.parametrize(
    "spell", [json.dumps, str, lambda value: json.dumps(json.dumps(value))], ids=["json", "repr", "twice"]
)
@pytest.mark.parametrize("name", ["a.jsonl", "a.csv", "a.parquet"])
def test_seam_c3_messages_as_text_are_messages(load, name, spell):
    expected = [{"prompt": TURNS[:1], "completion": TURNS[1:]}]
    assert load(load_demonstrations, [{"messages": spell(TURNS)}], name) == expected
    assert load(load_demonstrations, [{"prompt": spell(TURNS[:1]), "completion": spell(TURNS[1:])}], name) == expected
    share = [{"from": "human", "value": TURNS[0]["content"]}, {"from": "gpt", "value": TURNS[1]["content"]}]
    assert load(load_demonstrations, [{"conversations": spell(share)}], name) == expected
    pair = {"chosen": spell(TURNS), "rejected": spell([TURNS[0], assistant("No.")])}
    expected = [{"prompt": TURNS[:1], "completions": ["It's\nfine.", "No."], "ranks": [0, 1]}]
    assert load(load_comparisons, [pair], name) == expected


@pytest.mark.parametrize(
    "text",
    [
        "[{'role': 'user', 'content': 'Q'}\n {'role': 'assistant', 'content': 'A'}]",  # numpy
        "array([{'role': 'user', 'content': 'Q'}], dtype=object)",
        "[{'content': 'Q', 'role': 'user'}, {'content': 'A', 'role': 'assi",
        '[{"role": "user", "role": "assistant", "content": "A"}]',
    ],
)
def test_seam_c3_text_that_begins_like_messages_is_never_text(load, text):
    for row in ({"messages": text}, {"prompt": text, "completion": "A"}, {"prompt": "Q", "completion": text}):
        with pytest.raises(InputError, match=r"line 1: column (messages|prompt|completion) is"):
            load(load_demonstrations, [row])


def test_seam_c3_json_that_is_an_answer_stays_text(load):
    for text in (
        '[{"name": "Ann", "age": 3}]',
        '{"role": "admin"}',
        "[1, 2]",
        "[see below]",
        '{"from": "Rome", "to": "Bari"}',
    ):
        assert load(load_demonstrations, [{"prompt": "Q", "completion": text}])[0]["completion"] == text


@pytest.mark.parametrize("name", ["a.jsonl", "a.csv", "a.parquet"])
def test_seam_c3_lists_as_text(load, name):
    row = {"prompt": "Q", "completions": "['it\\'s', 'b']", "ranks": "[1.0, 0.0]"}
    assert load(load_comparisons, [row], name) == [{"prompt": "Q", "completions": ["it's", "b"], "ranks": [1, 0]}]
    for printed in ("['a' 'b']", "array(['a', 'b'], dtype=object)", "['a',\n 'b' 'c']"):
        with pytest.raises(InputError, match="column completions is not a list in JSON"):
            load(load_comparisons, [row | {"completions": printed}], name)
    row = {"question": "Q", "candidates": '["a", "b"]', "scores": "[0.1, 0.9]"}
    assert load(load_comparisons, [row], name)[0]["ranks"] == [1, 0]


# ---- C4: labels


@pytest.mark.parametrize(
    ("good", "bad"),
    [(True, False), (1, 0), (1.0, 0.0), ("1.0", "0.0"), ("True", "False"), ("yes", "no"), ("good", "bad")],
)
@pytest.mark.parametrize("name", ["a.jsonl", "a.csv", "a.parquet"])
@pytest.mark.parametrize("label", ["label", "kto_tag"])
def test_seam_c4_a_rejected_answer_is_no_demonstration(load, name, label, good, bad):
    rows = [{"prompt": "Q", "completion": "yes", label: good}, {"prompt": "Q", "completion": "no", label: bad}]
    assert load(load_demonstrations, rows, name) == [{"prompt": "Q", "completion": "yes"}]
    assert load(load_comparisons, rows, name) == [{"prompt": "Q", "completions": ["yes", "no"], "ranks": [0, 1]}]


@pytest.mark.parametrize("label", [None, NAN, 2, 0.7, -1, "maybe", [True], ""])
def test_seam_c4_a_label_of_another_meaning_is_refused(load, label):
    rows = [{"prompt": "Q", "completion": "yes", "label": True}, {"prompt": "Q", "completion": "no", "label": label}]
    with pytest.raises(InputError, match=r"line 2: column label is .*; true or false is needed"):
        load(load_demonstrations, rows)
    assert load(load_demonstrations, rows, on_bad_rows="skip") == [{"prompt": "Q", "completion": "yes"}]


def test_seam_c4_labels_beside_other_names_of_answers(load):
    for row in (
        {"instruction": "Q", "input": "", "output": "no", "kto_tag": False},
        {"question": "Q", "answer": "no", "label": 0.0},
        {"instruction": "Q", "response": "no", "label": "false"},
        {"conversations": [{"from": "human", "value": "Q"}, {"from": "gpt", "value": "no"}], "kto_tag": False},
        {"messages": [user("Q"), assistant("no")], "label": 0},
    ):
        other = {name: True if value is row.get("kto_tag", row.get("label")) else value for name, value in row.items()}
        other = json.loads(json.dumps(other).replace('"no"', '"yes"'))
        expected = {"prompt": [user("Q")], "completion": [assistant("yes")]}
        assert load(load_demonstrations, [row, other]) == [expected]
        assert load(load_comparisons, [row, other])[0]["ranks"] == [1, 0]


# ---- C5: a prompt with a continuation


def test_seam_c5_a_continuation_belongs_to_the_prompt(load):
    more = [assistant("Which?"), user("The North Sea."), assistant("Cold.")]
    asked = [user("How is the sea?"), *more[:2]]
    rows = [
        {"prompt": [user("How is the sea?")], "completion": more},
        {"prompt": [user("How is the sea?")], "completion": [*asked, more[2]]},
        {"prompt": "How is the sea?", "completion": more},
    ]
    for row in rows:
        assert load(load_demonstrations, [row]) == [{"prompt": asked, "completion": [assistant("Cold.")]}]
        assert load(load_prompts, [row]) == [{"prompt": asked}]
        pair = {
            "prompt": row["prompt"],
            "chosen": row["completion"],
            "rejected": [*row["completion"][:-1], assistant("Hot.")],
        }
        expected = {"prompt": asked, "completions": ["Cold.", "Hot."], "ranks": [0, 1]}
        assert load(load_comparisons, [pair]) == [expected]
        assert load(load_prompts, [pair]) == [{"prompt": asked}]
    with_system = {"prompt": [system("Be brief.")], "completion": [user("Q"), assistant("A")]}
    assert load(load_demonstrations, [with_system])[0]["prompt"] == [system("Be brief."), user("Q")]


@pytest.mark.parametrize(
    ("chosen", "reason"),
    [
        ([assistant("Oh?"), user("Yes."), assistant("A")], "differ before the last answer"),
        ([user("Something else?"), assistant("A")], "neither holds the prompt nor continues it"),
        ([user("Q")], "of others; text or one message of the assistant"),
    ],
)
def test_seam_c5_continuations_without_a_common_prompt(load, chosen, reason):
    with pytest.raises(InputError, match=reason):
        load(load_comparisons, [{"prompt": [user("Q")], "chosen": chosen, "rejected": [assistant("B")]}])


def test_seam_c5_a_prompt_that_is_not_in_the_messages(load):
    with pytest.raises(InputError, match="column prompt is not in column messages"):
        load(load_demonstrations, [{"prompt": "Other", "messages": [user("Q"), assistant("A")]}])


# ---- Roles and contents


def test_seam_c_roles_that_are_clear_are_mapped_and_others_refused(load):
    names = {"human": "user", "prompter": "user", "gpt": "assistant", "bot": "assistant", "model": "assistant"}
    for name, role in names.items():
        other = "user" if role == "assistant" else "assistant"
        talk = sorted(
            [{"role": name, "content": "x"}, {"role": other, "content": "x"}],
            key=lambda m: m["role"] in ("assistant", "gpt", "bot", "model"),
        )
        assert load(load_demonstrations, [{"messages": talk}]) == [
            {"prompt": [user("x")], "completion": [assistant("x")]}
        ]
    talk = [{"role": "developer", "content": "s"}, user("x"), assistant("x")]
    assert load(load_demonstrations, [{"messages": talk}])[0]["prompt"] == [system("s"), user("x")]
    for name in ("tool", "function", "observation", "ipython", ""):
        with pytest.raises(InputError, match=f"has the role '{name}'"):
            load(load_demonstrations, [{"messages": [user("x"), {"role": name, "content": "x"}, assistant("x")]}])


def test_seam_c_contents_in_parts(load):
    parts = [{"type": "text", "text": "Name "}, {"type": "text", "text": "a sea."}]
    talk = {"messages": [{"role": "user", "content": parts}, assistant("North Sea.")]}
    assert load(load_demonstrations, [talk])[0]["prompt"] == [user("Name a sea.")]
    for part in ({"type": "image", "image": "a.png"}, {"type": "text", "text": "x", "image": "a.png"}, "x"):
        with pytest.raises(InputError, match=r"only (parts of the type )?text can be read"):
            load(load_demonstrations, [{"messages": [{"role": "user", "content": [*parts, part]}, assistant("A")]}])


# ---- Numbers of pandas


@pytest.mark.parametrize("name", ["a.jsonl", "a.parquet", "a.csv"])
def test_seam_c_ranks_and_ids_that_pandas_made_floats(load, name):
    row = {"prompt": "Q", "completions": ["a", "b"], "ranks": [1.0, 0.0], "labeler_id": 7.0}
    expected = {
        "prompt": "Q",
        "completions": ["a", "b"],
        "ranks": [1, 0],
        "labeler_id": "7" if name != "a.csv" else "7.0",
    }
    assert load(load_comparisons, [row], name) == [expected]
    best = {"prompt": "Q", "completions": ["a", "b"], "best": 1.0, "worst": 0.0}
    assert load(load_comparisons, [best], name)[0]["ranks"] == [1, 0]


@pytest.mark.parametrize("ranks", [[0, NAN], [0.5, 1], [True, False], ["0", "1"], [0, None]])
def test_seam_c_ranks_that_are_no_integers(load, ranks):
    with pytest.raises(InputError, match="column ranks holds"):
        load(load_comparisons, [{"prompt": "Q", "completions": ["a", "b"], "ranks": ranks}])


def test_seam_c_missing_values_of_pandas_are_missing(load):
    for missing in (NAN, "nan", None):
        with pytest.raises(InputError, match="no column completion"):
            load(load_demonstrations, [{"prompt": "Q", "completion": missing}])
        row = {"instruction": "Q", "input": missing, "output": "A", "system": missing}
        assert load(load_demonstrations, [row])[0]["prompt"] == [user("Q")]


def test_seam_c_scores_that_contradict_the_pair(load):
    pair = {"prompt": "Q", "chosen": "a", "rejected": "b", "chosen_score": 2.0, "rejected_score": 3.0}
    with pytest.raises(InputError, match="the rejected answer is rated higher"):
        load(load_comparisons, [pair])
    assert load(load_comparisons, [pair | {"chosen_score": 3.0}])[0]["ranks"] == [0, 0]
    pair = {"prompt": "Q", "chosen": "a", "rejected": "b", "score-chosen": 2, "score-rejected": 2}
    assert load(load_comparisons, [pair], "a.csv")[0]["ranks"] == [0, 0]


def test_seam_c_ratings_that_say_the_opposite_of_ranks(load):
    row = {"prompt": "Q", "completions": ["a", "b", "c"], "ranks": [2, 1, 1], "ratings": [9, 5, 1]}
    with pytest.raises(InputError, match=r"line 1: column ranks says the opposite of column ratings: rank 0 is the be"):
        load(load_comparisons, [row])
    assert load(load_comparisons, [row], columns=["ignore=ratings"])[0]["ranks"] == [1, 0, 0]
    for ranks in ([0, 1, 2], [0, 2, 1], [0, 0, 0]):  # ties, and single pairs on which two labels differ
        assert load(load_comparisons, [row | {"ranks": ranks}])[0]["ranks"] == ranks


def test_seam_c_equal_answers_are_a_tie(load):
    pair = {"prompt": "Q", "chosen": "a", "rejected": "a"}
    labeled = [{"prompt": "R", "completion": "a", "label": label} for label in (True, False)]
    ranked = {"prompt": "Q", "completions": ["a", "a"], "ranks": [1, 0]}
    for rows in ([pair], labeled, [ranked]):
        assert load(load_comparisons, rows)[0]["ranks"] == [0, 0]
    talk = {"chosen": [user("Q"), assistant("a")], "rejected": [user("Q"), assistant("a")]}
    assert load(load_comparisons, [talk])[0]["ranks"] == [0, 0]


# ---- Names that users have


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "Q", "response": "A"},
        {"question": "Q", "answer": "A"},
        {"query": "Q", "response": "A"},
        {"problem": "Q", "solution": "A"},
        {"question": "Q", "answer": "A", "system_prompt": ""},
        {"input": "Q", "output": "A"},
        {"conversations": [{"from": "human", "value": "Q"}, {"from": "gpt", "value": "A"}], "system": ""},
        {"conversation": [{"input": "Q", "output": "A"}]},
    ],
)
def test_seam_c_names_of_question_and_answer(load, row):
    (got,) = load(load_demonstrations, [row])
    text = {"prompt": "Q", "completion": "A"}
    assert got == (text if "prompt" in row else {"prompt": [user("Q")], "completion": [assistant("A")]})


def test_seam_c_lists_of_responses_with_scores(load):
    for names in (("query", "responses"), ("question", "answers"), ("instruction", "outputs")):
        row = {names[0]: "Q", names[1]: ["a", "b"], "scores": [0.1, 0.9]}
        (got,) = load(load_comparisons, [row])
        assert (got["prompt"], got["completions"], got["ranks"]) == ([user("Q")], ["a", "b"], [1, 0])


def test_seam_c_two_answers_are_one_too_many(load):
    for row in ({"question": "Q", "answer": "A", "response": "B"}, {"prompt": "Q", "question": "R", "completion": "A"}):
        with pytest.raises(InputError, match="may change what the row means"):
            load(load_demonstrations, [row])
    same = {"prompt": "Q", "chosen": "A", "rejected": "B", "response": "A"}  # Dahoas/rm-static
    assert load(load_comparisons, [same])[0]["completions"] == ["A", "B"]


def test_seam_c_sharegpt_preferences(load):
    """LLaMA-Factory: the conversation ends in the user's turn, chosen and rejected are one message each."""
    row = {
        "conversations": [{"from": "human", "value": "Q"}],
        "chosen": {"from": "gpt", "value": "A"},
        "rejected": {"from": "gpt", "value": "B"},
    }
    assert load(load_comparisons, [row]) == [{"prompt": [user("Q")], "completions": ["A", "B"], "ranks": [0, 1]}]


# ---- --columns


@pytest.mark.parametrize("name", ["a.jsonl", "a.csv", "a.parquet"])
def test_seam_c_columns_renames(load, name):
    row = {"frage": "Q", "antwort": "A", "note": 3, "score": 1.5}
    options = {"columns": ["prompt=frage", "completion=antwort", "ignore=score"]}
    assert load(load_demonstrations, [row], name, **options) == [{"prompt": "Q", "completion": "A"}]
    assert load(load_pretraining, [{"content": "Text."}], name, columns=["text=content"]) == [{"text": "Text."}]


@pytest.mark.parametrize(
    ("columns", "reason"),
    [
        (["prompt"], "Write new=old"),
        (["promt=question"], "promt is not a column that is read. Choose from"),
        (["prompt=a", "prompt=b"], "gives the name prompt to two columns"),
        (["prompt=a", "completion=a"], "names a twice"),
        (["prompt=frage", "completion=answer"], "names answer, which no row of .* has. Name some of"),
    ],
)
def test_seam_c_columns_that_cannot_be_renamed(load, columns, reason):
    with pytest.raises(InputError, match=reason):
        load(load_prompts, [{"frage": "Q", "antwort": "A"}], columns=columns)


def test_seam_c_columns_does_not_overwrite(load):
    with pytest.raises(InputError, match=r"line 1: column frage is to be named prompt, but there is a column prompt"):
        load(load_prompts, [{"frage": "Q", "prompt": "R"}], columns=["prompt=frage"])
    rows = load(load_prompts, [{"frage": "Q", "prompt": "R"}], columns=["prompt=frage", "ignore=prompt"])
    assert rows == [{"prompt": "Q"}]
    with pytest.raises(InputError, match="the sandbox has none"):
        DataArguments(dataset_name="sandbox", columns=["prompt=question"])


def test_seam_c_columns_of_pretraining_text(tmp_path):
    write(tmp_path / "a.jsonl", [{"content": "Text."}])
    args = PretrainingArguments(pretrain_dataset_name=[str(tmp_path / "a.jsonl")], pretrain_columns=["text=content"])
    (source,) = open_sources(args, DataArguments(dataset_name="sandbox"))
    assert source["text"][:] == ["Text."]


# ---- Files


@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
@pytest.mark.parametrize("name", ["a.csv", "a.tsv"])
def test_seam_c_delimiters_bom_newlines_and_the_index_of_pandas(tmp_path, name, delimiter):
    text = io.StringIO()
    writer = csv.writer(text, delimiter=delimiter, lineterminator="\r\n")
    writer.writerows([["", "prompt", "completion"], [0, "Q, a;\tb|", "A\nsecond, line"], [1, "R", "B"]])
    (tmp_path / name).write_bytes(b"\xef\xbb\xbf" + text.getvalue().encode())
    rows = load_demonstrations(DataArguments(dataset_name=str(tmp_path / name)), "train")
    assert [dict(row) for row in rows] == [
        {"prompt": "Q, a;\tb|", "completion": "A\nsecond, line"},
        {"prompt": "R", "completion": "B"},
    ]


@pytest.mark.parametrize(
    ("name", "data", "reason"),
    [
        ("a.csv", b"prompt,prompt\na,b\n", "two columns with the name 'prompt'"),
        ("a.csv", b"prompt, prompt\na,b\n", "two columns with the name 'prompt'"),
        ("a.csv", b",prompt\nnote,b\n", "a column without a name holds 'note'"),
        ("a.csv", b"prompt,completion,system\na,b\n", "line 2: 2 cells under 3 columns"),
        ("a.csv", "prompt\ncaf\u00e9\n".encode("latin-1"), "line 2: not UTF-8 text .*; save the file as UTF-8"),
        ("a.jsonl", b'{"prompt": "a", "prompt": "b"}\n', "line 1: not usable JSON .the key 'prompt' occurs twice"),
        ("a.json", b'{"train": [{"prompt": "a"}], "test": [{"prompt": "b"}]}', "holds several splits .train, test."),
        ("a.json", b'{"prompt": {"0": "a", "1": "b"}}', "holds columns and not rows"),
        ("a.json", b'{"prompt": ["a", "b"]}', "row 1: prompt.0. is not a message"),
    ],
)
def test_seam_c_files_that_are_refused(tmp_path, name, data, reason):
    (tmp_path / name).write_bytes(data)
    with pytest.raises(InputError, match=reason):
        load_prompts(DataArguments(dataset_name=str(tmp_path / name)), "train")


@pytest.mark.parametrize("key", ["data", "train", "rows"])
@pytest.mark.parametrize("indent", [None, 1])
def test_seam_c_rows_within_one_json_object(tmp_path, key, indent):
    rows = [{"prompt": "a"}, {"prompt": "b"}]
    (tmp_path / "a.json").write_text(json.dumps({key: rows}, indent=indent))
    (tmp_path / "b.jsonl").write_text(json.dumps(rows, indent=indent))
    for name in ("a.json", "b.jsonl"):
        assert load_prompts(DataArguments(dataset_name=str(tmp_path / name)), "train")["prompt"][:] == ["a", "b"]


# ---- Siblings that use found


def test_seam_c_truth_values_of_published_formats_in_any_file(load):
    tree = {"message_tree_id": "t", "lang": "en"}
    rows = [
        tree | {"message_id": "a", "parent_id": None, "text": "Q", "role": "prompter", "deleted": False, "rank": None},
        tree | {"message_id": "b", "parent_id": "a", "text": "A", "role": "assistant", "deleted": False, "rank": 0.0},
        tree | {"message_id": "c", "parent_id": "a", "text": "B", "role": "assistant", "deleted": False, "rank": 1.0},
        tree | {"message_id": "d", "parent_id": "a", "text": "C", "role": "assistant", "deleted": True, "rank": 2.0},
    ]
    for name in ("a.jsonl", "a.csv", "a.parquet"):
        assert load(load_comparisons, rows, name) == [
            {"prompt": [user("Q")], "completions": ["A", "B"], "ranks": [0, 1]}
        ]
    with pytest.raises(InputError, match="line 4: deleted is 'perhaps'; true or false is needed"):
        load(load_comparisons, [*rows[:3], rows[3] | {"deleted": "perhaps"}])
    with pytest.raises(InputError, match="column turn is 'one'"):
        talk = {"conversation_a": TURNS, "conversation_b": TURNS, "winner": "tie", "turn": "one"}
        load(load_comparisons, [talk])


def test_seam_c_text_that_holds_messages_within_an_object(load):
    for text in (json.dumps({"messages": TURNS}), str({"id": 1, "messages": TURNS})):
        with pytest.raises(InputError, match="holds an object with messages"):
            load(load_demonstrations, [{"prompt": text, "completion": "A"}])


def test_seam_c_labeled_answers_of_several_labelers_have_no_labeler(load):
    rows = [
        {"prompt": "Q", "completion": "yes", "label": True, "labeler_id": "ann", "category": "chat"},
        {"prompt": "Q", "completion": "no", "label": False, "labeler_id": "bob", "category": "chat"},
    ]
    expected = {"prompt": "Q", "completions": ["yes", "no"], "ranks": [0, 1], "category": "chat"}
    assert load(load_comparisons, rows) == [expected]


def test_seam_c_a_transcript_beside_its_prompt(load):
    asked = "\n\nHuman: Hi\n\nAssistant:"
    with pytest.raises(InputError, match="chosen is a transcript with the prompt in it"):
        load(load_comparisons, [{"prompt": asked, "chosen": asked + " Hello", "rejected": asked + " No."}])


def test_seam_c_a_pair_that_begins_with_an_answer_and_has_no_prompt(load):
    talk = [assistant("Hello."), user("Q"), assistant("A")]
    with pytest.raises(InputError, match="begins with an answer, and there is no column prompt"):
        load(load_comparisons, [{"prompt": None, "chosen": talk, "rejected": [*talk[:-1], assistant("B")]}])


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *[("option_a", "red"), ("few_shot", "2, 4"), ("ctx", "The sea."), ("title", "Seas"), ("paragraph", "The sea.")],
        *[("definition", "Translate."), ("prefill", "Sure,"), ("role", "doctor"), ("distractor1", "red")],
        *[
            ("task", "Translate to French"),
            ("notes", "The sea is blue and deep."),
            ("found", ["The sea is blue, deep."]),
        ],
    ],
)
def test_seam_c2_parts_of_the_prompt_under_more_names(load, name, value):
    for kind in (load_demonstrations, load_prompts):
        with pytest.raises(InputError, match=f"column {name} may change what the row means.*ignore={name}"):
            load(kind, [{"question": "Q", "answer": "A", name: value}])
    (read,) = load(load_prompts, [{"question": "Q", "answer": "A", name: value}], columns=[f"ignore={name}"])
    assert read == {"prompt": [user("Q")]}


def test_seam_c2_options_under_single_letters(load):
    for name in ("a.csv", "a.jsonl"):
        with pytest.raises(InputError, match="column A may change"):
            load(load_demonstrations, [{"question": "Which?", "A": "red", "B": "blue", "answer": "B"}], name)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("grade", 1),
        ("approved", False),
        ("status", "discarded"),
        ("corrected", "B"),
        ("reflection", "Wrong."),
        ("stars", 2),
    ],
)
def test_seam_c2_verdicts_on_the_answer_under_more_names(load, name, value):
    row = {"prompt": "Q", "response": "A", name: value}
    with pytest.raises(InputError, match=f"column {name} may change what the row means"):
        load(load_demonstrations, [row])
    assert load(load_prompts, [row]) == [{"prompt": "Q"}]


def test_seam_c2_names_and_numbers_say_nothing(load):
    row = {
        "task": "Coding",
        "country": "United States of America",
        "n": 3,
        "seconds": 1.5,
        "metadata": {"machine": "a b", "n": 3},
    }
    assert load(load_demonstrations, [row | {"prompt": "Q", "response": "A"}]) == [{"prompt": "Q", "completion": "A"}]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *[("flagged", True), ("toxicity", 0.98), ("hallucination", 1), ("ok", False), ("verified", False)],
        *[("sentiment", "negative"), ("human_eval", "bad"), ("evaluation", "poor"), ("annotation", "reject")],
        *[("notes", "wrong answer"), ("confidence", 0.1), ("anything", False), ("is_fine", "0"), ("remark", ["Poor"])],
        *[("gold", "B"), ("ground_truth", "B"), ("expected", "It rained."), ("ideal", "B"), ("gpt", "It rained.")],
        *[("bot", "It rained."), ("model", "It rained all day."), ("model", "i do not know")],
        *[("annotations", [{"label": "bad"}]), ("info", {"inner": {"score": 1}}), ("info", '{"label": "bad"}')],
    ],
)
def test_seam_c6_verdicts_and_other_answers_under_any_name(load, name, value):
    row = {"prompt": "Q", "response": "A", name: value}
    with pytest.raises(InputError, match=f"column {name} may change what the row means.*--columns ignore={name}"):
        load(load_demonstrations, [row])
    assert load(load_prompts, [row]) == [{"prompt": "Q"}]
    assert load(load_demonstrations, [row], columns=[f"ignore={name}"]) == [{"prompt": "Q", "completion": "A"}]


@pytest.mark.parametrize("kind", [load_demonstrations, load_prompts])
@pytest.mark.parametrize(
    ("name", "value"),
    [
        *[("premise", "Rain."), ("table", "a|b"), ("audience", "children"), ("keywords", ["sea"])],
        *[
            ("language", "Answer in French"),
            ("chat", [user("Hi")]),
            ("attachments", ["a.pdf"]),
            ("found", "It rained all day."),
        ],
        *[("review", {"choices": ["red", "blue"]}), ("meta", {"system_prompt": "Be brief."})],
        *[
            ("parameters", {"context": "It rained."}),
            ("talk", [user("Hi")]),
            ("meta", '{"system_prompt": "Be brief."}'),
        ],
        *[
            ("deleted", True),
            ("is_spam", True),
            ("usable", "no"),
            ("exclude", 1),
            ("discard", "yes"),
            ("include", False),
        ],
    ],
)
def test_seam_c6_parts_of_the_prompt_and_rows_to_leave_out_under_any_name(load, kind, name, value):
    with pytest.raises(InputError, match=f"column {name} may change what the row means.*--columns ignore={name}"):
        load(kind, [{"prompt": "Q", "response": "A", name: value}])


def test_seam_c6_the_key_within_an_object_is_named(load):
    row = {"prompt": "Q", "response": "A", "meta": {"id": 3, "more": [{"n": 1}, {"system_prompt": "Be brief."}]}}
    with pytest.raises(InputError, match=r"line 1: column meta may .* \(by its key meta.more.system_prompt\)"):
        load(load_demonstrations, [row])


@pytest.mark.parametrize("name", ["a.jsonl", "a.csv"])
def test_seam_c6_records_of_tools_say_nothing(load, name):
    row = {
        "lang": "en", "language": "Modern Standard Arabic", "model": "Meta Llama 3 8B Instruct", "country": "no",
        "usage": {"prompt_tokens": 5, "completion_tokens": 7}, "params": {"temperature": 0.7, "top_p": 1},
        "length": 12, "date": "2024-01-02", "has_code": True, "is_test_length": 3, "synthetic": False, "tags": ["a b"],
    }  # fmt: skip
    row = row if name == "a.jsonl" else {n: json.dumps(v) if isinstance(v, dict | list) else v for n, v in row.items()}
    assert load(load_demonstrations, [row | {"prompt": "Q", "response": "A"}], name)[0]["completion"] == "A"


def test_seam_c7_a_quote_that_takes_in_lines_of_a_table_with_tabs_is_a_bad_row(tmp_path):
    lines = ["prompt\tcompletion", "Q0\tA0", '"Hi, she said\tA1', "Q2\tA2", 'Q3"\tA3', "Q4\tA4"]
    (tmp_path / "a.tsv").write_text("\n".join(lines) + "\n")
    args = DataArguments(dataset_name=str(tmp_path / "a.tsv"))
    with pytest.raises(InputError, match=r"a.tsv, line 3: a cell holds a tab and a newline: .*; write each as two"):
        load_demonstrations(args, "train")
    args.on_bad_rows = "skip"
    assert load_demonstrations(args, "train")["prompt"][:] == ["Q0", "Q4"]


def test_seam_c7_empty_rows_and_columns_of_spreadsheets_are_ignored(tmp_path):
    for delimiter in ",;\t":
        lines = ["prompt,completion,,", "Q,A,,", ",,,", " ,,,", "R,B,,", ",,,"]
        (tmp_path / "a.csv").write_text("\n".join(lines).replace(",", delimiter) + "\n")
        rows = load_demonstrations(DataArguments(dataset_name=str(tmp_path / "a.csv")), "train")
        assert rows["prompt"][:] == ["Q", "R"]
    (tmp_path / "a.csv").write_text("prompt,completion,,\nQ,A,,\nR,B,,7\n")
    with pytest.raises(InputError, match="line 3: a column without a name holds '7'; name it in the first line"):
        load_demonstrations(DataArguments(dataset_name=str(tmp_path / "a.csv")), "train")


@pytest.mark.parametrize("name", ["a.json", "a.jsonl"])
@pytest.mark.parametrize(
    ("orient", "reason"),
    [("split", 'orient="split"'), ("index", 'orient="index"'), ("columns", "columns and not rows")],
)
def test_seam_c7_tables_of_pandas_that_are_no_rows_are_explained(tmp_path, name, orient, reason):
    table = pd.DataFrame({"prompt": ["Q", "R"], "completion": ["A", "B"]})
    table.to_json(tmp_path / name, orient=orient)
    with pytest.raises(InputError, match=rf'{reason}.*to_json\(path, orient="records", lines=True\)'):
        load_demonstrations(DataArguments(dataset_name=str(tmp_path / name)), "train")
    table.set_index(pd.Index(["x", "y"])).to_json(tmp_path / name, orient="index")
    with pytest.raises(InputError, match='orient="index"'):
        load_demonstrations(DataArguments(dataset_name=str(tmp_path / name)), "train")


def test_seam_c7_generations_with_ratings_are_a_comparison(load):
    """distilabel: ratings of several answers of models, with its records about them."""
    about = {"generation_models": ["m", "n"], "model_name": "j", "distilabel_metadata": {"raw_output": "Two is best."}}
    row = {"instruction": "Q", "generations": ["a", "b"], "ratings": [2, 5], **about}
    expected = {"prompt": [user("Q")], "completions": ["a", "b"], "ranks": [1, 0], "ratings": [2.0, 5.0]}
    for name in ("a.jsonl", "a.parquet"):
        assert load(load_comparisons, [row], name) == [expected]
    old = {"input": "Q", "generations": ["a", "b"], "rating": [2, 5]}
    assert load(load_comparisons, [old]) == [expected]
    with pytest.raises(InputError, match=r"column rationales may change .*--columns ignore=rationales"):
        load(load_comparisons, [row | {"rationales": ["Weak.", "Fine."]}])
    with pytest.raises(InputError, match="column ratings is not 2 numbers"):
        load(load_comparisons, [row | {"ratings": [2, None]}])


def test_seam_c7_files_of_a_folder_that_are_not_read_are_named(tmp_path, caplog):
    (tmp_path / "__MACOSX").mkdir()
    for name in ("a.jsonl", "a copy.jsonl", "b.jsonl", ".c.jsonl", "__MACOSX/d.jsonl"):
        write(tmp_path / name, [{"prompt": name.replace(" copy", ""), "completion": "A"}])
    for name in ("more.xlsx", "old.arrow", "README.md", "LICENSE", ".gitattributes"):
        (tmp_path / name).write_text("x")
    rows = load_prompts(DataArguments(dataset_name=str(tmp_path)), "train")
    assert set(rows["prompt"]) == {"a.jsonl", "b.jsonl"}
    said = [record.message for record in caplog.records if "not read" in record.message or "copy of" in record.message]
    assert len(said) == 2 and "that are not read: more.xlsx, old.arrow; data ends in .jsonl" in said[0]
    assert "a.jsonl is a copy of" in said[1] and "rows are read twice" in said[1]
    (tmp_path / "none").mkdir()
    (tmp_path / "none" / "more.xlsx").write_text("x")
    with pytest.raises(InputError, match=r"holds no data \(there is more.xlsx\)"):
        load_prompts(DataArguments(dataset_name=str(tmp_path / "none")), "train")
