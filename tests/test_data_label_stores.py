"""Stores of `rlhf label` as data sets: by kind, held out like files, read while the server writes, and refused."""

import json
import shutil
import signal
import sqlite3
import subprocess
import sys

import pytest
from label_rows import add_rows, ranking, rated, write_store, written

from rlhf.data import DataArguments, load_comparisons, load_demonstrations, load_pretraining, load_prompts
from rlhf.data.label_stores import is_label_store, read_label_rows
from rlhf.data.splits import split_of
from rlhf.errors import InputError
from rlhf.evaluation.people import people_judges


def contents(path, *kinds):
    return [row.content for row in read_label_rows(path, *kinds)]


def test_each_stage_reads_its_kind_of_rows(tmp_path, all_train):
    store = write_store(
        tmp_path / "labels.db",
        comparison=[ranking(1, ranks=(1, 0, 1), ratings=[1, 7, 2], flags=[{"rude": True}, {}, {}]), ranking(2, "bob")],
        demonstration=[written(3)],
        rating=[rated(1, 6, rude=False), rated(4, 2)],
    )
    args = DataArguments(str(store))
    assert load_comparisons(args, "train").to_list() == [ranking(1, ranks=(1, 0, 1)), ranking(2, "bob")]
    assert load_demonstrations(args, "train").to_list() == [written(3)]
    assert sorted(load_prompts(args, "train")["prompt"]) == [f"Question {i}?" for i in (1, 2, 3, 4)]
    with pytest.raises(InputError, match="label store, which has no pretraining text"):
        load_pretraining(args, "train")


def test_the_conversation_decides_what_is_held_out(tmp_path):
    rows = [ranking(i) for i in range(100)]
    store = write_store(tmp_path / "labels.db", comparison=rows)
    for split in ("train", "validation", "test"):
        loaded = load_comparisons(DataArguments(str(store)), split).to_list()
        assert loaded == [row for row in rows if split_of(row) == split]


def test_held_out_labelers_make_no_training_data(tmp_path):
    rows = [ranking(i) if i % 2 else ranking(i, "fay", labeler_group="heldout") for i in range(100)]
    args = DataArguments(str(write_store(tmp_path / "labels.db", comparison=rows)))
    groups = {split: set(load_comparisons(args, split)["labeler_group"]) for split in ("train", "validation")}
    assert groups == {"train": {"training"}, "validation": {"training", "heldout"}}


def test_a_store_of_texts_and_messages_is_read_as_messages(tmp_path, all_train):
    message = [{"role": "user", "content": "Why?"}]
    store = write_store(tmp_path / "labels.db", demonstration=[written(1), written(2) | {"prompt": message}])
    prompts = load_prompts(DataArguments(str(store)), "train")["prompt"][:]
    assert prompts == [[{"role": "user", "content": "Question 1?"}], message]
    assert load_demonstrations(DataArguments(str(store)), "train")["completion"][0][0]["role"] == "assistant"


def test_people_judge_by_the_rankings_and_ratings_of_a_store(tmp_path):
    store = write_store(
        tmp_path / "labels.db",
        comparison=[ranking(1), ranking(1, "bob", ranks=(1, 0))],
        rating=[rated(1, 6, rude=True), rated(1, 4, "bob", rude=True)],
    )
    pairs, ratings = people_judges(store)
    assert pairs.prefer(["Question 1?"], ["Answer 1 it is."], ["no"]) == [0.5]
    [verdict] = ratings.score(["Question 1?"], ["Answer 1 it is."], [True])
    assert (verdict.score, verdict.likert, verdict.flags) == (5.0, 5.0, {"rude": True})


def test_agreement_reads_a_store(tmp_path, load_recipe, monkeypatch, capsys):
    pytest.importorskip("krippendorff")
    rows = [ranking(1), ranking(1, "bob"), ranking(2), ranking(2, "bob", ranks=(1, 0))]
    store = write_store(tmp_path / "labels.db", comparison=rows)
    monkeypatch.setattr(sys, "argv", ["agreement.py", "--dataset_name", str(store)])
    load_recipe("agreement").main()
    report = json.loads(capsys.readouterr().out)
    assert (report["labelers"], report["pairwise_agreement"]["mean"]) == (2, 0.5)


def test_check_takes_a_store_as_it_is(tmp_path, load_recipe):
    check = load_recipe("check")
    for name in ("labels.db", str(write_store(tmp_path / "labels.db", demonstration=[written(1)]))):
        assert check.data({"dataset_name": name}, "dataset", "demonstrations", tmp_path) == {}


def test_a_store_is_known_by_its_name_or_its_first_bytes(tmp_path):
    named = write_store(tmp_path / "labels.db")
    other = shutil.copy(named, tmp_path / "labels.jsonl")
    assert is_label_store(named) and is_label_store(other) and is_label_store("runs/none/labels.sqlite")
    assert not is_label_store("owner/name") and not is_label_store("sandbox") and not is_label_store(tmp_path)
    assert not is_label_store("~nobody/labels") and not is_label_store("a" * 5000)


def test_a_reader_sees_one_state_while_the_server_writes(tmp_path):
    path = write_store(tmp_path / "labels.db", demonstration=[written(1), written(2)])
    server = sqlite3.connect(path, isolation_level=None)
    rows = read_label_rows(path, "demonstration")
    first = next(rows)
    server.execute("BEGIN IMMEDIATE")
    add_rows(server, demonstration=[written(3)])
    assert [first.content, *(row.content for row in rows)] == [written(1), written(2)]
    assert contents(path, "demonstration") == [written(1), written(2)]  # not what is not committed
    server.execute("COMMIT")
    assert contents(path, "demonstration") == [written(1), written(2), written(3)]
    server.close()


KILLED = """
import os, signal, sqlite3, sys
store = sqlite3.connect(sys.argv[1])
store.execute("INSERT INTO judged SELECT kind, content FROM judged")
store.commit()
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_what_a_killed_server_has_committed_is_read_from_its_log(tmp_path):
    path = write_store(tmp_path / "labels.db", demonstration=[written(1)])
    assert subprocess.run([sys.executable, "-c", KILLED, str(path)]).returncode == -signal.SIGKILL
    assert (tmp_path / "labels.db-wal").stat().st_size > 0
    assert contents(path, "demonstration") == [written(1)] * 2


def test_reading_writes_nothing_into_the_store(tmp_path):
    path = write_store(tmp_path / "labels.db", demonstration=[written(1)])
    before = path.read_bytes()
    contents(path, "demonstration")
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    "rows, message",
    [
        ({}, "has no demonstrations: nobody has judged anything yet. Write demonstrations on the page of `rlhf label`"),
        ({"comparison": [ranking(1), ranking(2)], "rating": [rated(1, 3)]}, "only 2 comparisons and 1 rating"),
    ],
)
def test_a_store_without_a_row_of_the_kind_says_what_it_has(tmp_path, rows, message):
    store = write_store(tmp_path / "labels.db", **rows)
    with pytest.raises(InputError) as refused:
        load_demonstrations(DataArguments(str(store)), "train")
    assert f"{store} has no demonstrations: " in str(refused.value) and message in str(refused.value)


def test_a_store_that_judges_nothing_is_no_judge(tmp_path):
    store = write_store(tmp_path / "labels.db", demonstration=[written(1)])
    with pytest.raises(InputError, match="has no comparisons and no ratings: only 1 demonstration"):
        people_judges(store)


def test_files_that_are_no_label_store_are_refused(tmp_path):
    def refusal(name):
        with pytest.raises(InputError) as refused:
            load_comparisons(DataArguments(str(tmp_path / name)), "train")
        return str(refused.value)

    sqlite3.connect(tmp_path / "other.db").execute("CREATE TABLE t(a)").connection.close()
    (tmp_path / "text.db").write_text("prompt,completion\n" * 100)
    (tmp_path / "empty.db").touch()
    damaged = write_store(tmp_path / "damaged.db", comparison=[ranking(i) for i in range(300)])
    content = bytearray(damaged.read_bytes())
    content[8192:] = b"\xff" * (len(content) - 8192)
    damaged.write_bytes(content)
    assert "none.db does not exist" in refusal("none.db")
    assert "other.db is a database without the view label_rows, so no label store" in refusal("other.db")
    assert "empty.db is a database without the view label_rows" in refusal("empty.db")
    assert "text.db is not a readable SQLite database (file is not a database)" in refusal("text.db")
    assert "damaged.db cannot be read" in refusal("damaged.db") or "malformed" in refusal("damaged.db")


def test_a_bad_row_is_named_by_its_kind_and_number(tmp_path, all_train):
    rows = [ranking(1), ranking(2) | {"ranks": [0]}]
    store = write_store(tmp_path / "labels.db", comparison=rows)
    with pytest.raises(InputError, match=r"labels.db, comparison 2: column ranks is 1 entries"):
        load_comparisons(DataArguments(str(store)), "train")
    with sqlite3.connect(store) as db:
        db.execute('UPDATE judged SET content = \'{"prompt": 1, "prompt": 2}\' WHERE rowid = 2')
    with pytest.raises(InputError, match=r"labels.db, comparison 2: not valid JSON"):
        people_judges(store)
