"""The label store: nothing that was acknowledged is lost, nothing is there twice, and training reads its rows."""

import json
import os
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from labeling_stores import comparison, demonstration, judge, new_store, ranking, rows

from rlhf.data.schemas import comparison as as_comparison
from rlhf.data.schemas import demonstration as as_demonstration
from rlhf.errors import InputError
from rlhf.evaluation.people import people_judges
from rlhf.labeling import people, queue, screening
from rlhf.labeling.items import Judgment, Rating
from rlhf.labeling.store import Store

# ---- The file


def test_a_store_is_there_again_after_it_was_closed(tmp_path):
    with new_store(tmp_path / "a folder that is not there") as store:
        task = judge(store, 1)
    with Store(store.path) as again:
        assert rows(again, "select key from judgments") == [(task.key,)]
    assert store.path.stat().st_mode & 0o077 == 0  # it holds names: nobody else may read it
    assert [path.name for path in store.path.parent.iterdir()] == ["labels.db"]  # complete without a log beside it
    again.close()  # a second time


def test_text_is_no_store_and_stays_as_it_is(tmp_path):
    path = tmp_path / "notes.txt"
    path.write_text("Nothing to do with labels, but quite long. " * 50)
    with pytest.raises(InputError, match=r"notes\.txt cannot be opened as a label store: file is not a database"):
        Store(path)
    assert path.read_text().startswith("Nothing to do")


def test_another_database_is_no_store_and_stays_as_it_is(tmp_path):
    path = tmp_path / "other.db"
    with sqlite3.connect(path) as other:
        other.execute("create table cats (name)")
    other.close()
    before = path.read_bytes()
    with pytest.raises(InputError, match=r"other\.db is an SQLite file, but no label store"):
        Store(path)
    assert path.read_bytes() == before


def test_a_store_of_another_version_is_refused(tmp_path):
    with new_store(tmp_path) as store, store.write():
        pass
    with sqlite3.connect(store.path) as db:
        db.execute("pragma user_version = 7")
    db.close()
    with pytest.raises(InputError, match="version 7; this version of the library reads 1"):
        Store(store.path)


@pytest.mark.parametrize("place", ["", "labels.db/below"])
def test_a_folder_and_a_path_below_a_file_are_refused(tmp_path, place):
    (tmp_path / "labels.db").write_text("x")
    with pytest.raises(InputError, match="cannot be opened as a label store"):
        Store(tmp_path / place)


def test_processes_that_make_the_same_store_at_once_all_open_it(tmp_path):
    code = f"from rlhf.labeling.store import Store; Store({str(tmp_path / 'labels.db')!r}).close()"
    started = [subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE) for _ in range(4)]
    assert [process.communicate()[1] for process in started] == [b""] * 4


# ---- Transactions


def test_an_exception_undoes_a_transaction_and_an_inner_one_undoes_its_own_part(tmp_path):
    with new_store(tmp_path) as store:
        with pytest.raises(ZeroDivisionError), store.write():
            store.set_setting("a", 1)
            raise ZeroDivisionError
        assert store.setting("a", "default") == "default"
        with store.write():
            store.set_setting("b", 1)
            with pytest.raises(ZeroDivisionError), store.write():
                store.set_setting("b", 2)
                raise ZeroDivisionError
            assert store.setting("b") == 1  # a reader inside sees what the transaction wrote
        assert store.setting("b") == 1


def test_readers_do_not_wait_for_a_writer_and_see_the_last_commit(tmp_path):
    with new_store(tmp_path) as store, ThreadPoolExecutor(1) as other, store.write():
        store.set_setting("a", 1)
        assert other.submit(store.setting, "a").result(timeout=10) is None
        with store.snapshot() as db:
            assert db.execute("select count(*) from settings").fetchone()[0] == 0


def test_readers_cannot_write(tmp_path):
    with new_store(tmp_path) as store:
        with pytest.raises(sqlite3.OperationalError, match="readonly"), store.read() as db:
            db.execute("delete from items")
        with pytest.raises(sqlite3.OperationalError, match="readonly"), store.snapshot() as db:
            db.execute("delete from items")


def test_a_commit_returns_after_an_fsync_that_began_after_it(tmp_path):
    """Commits that end during an fsync share the next one: 21 commits need three, or a few more."""
    with new_store(tmp_path) as store:
        began, may_end, syncs = threading.Event(), threading.Event(), []

        def slow_sync(file):
            syncs.append(rows(store, "select count(*) from settings")[0][0])
            began.set()
            assert may_end.wait(10)

        store._log.sync = slow_sync
        with ThreadPoolExecutor(21) as threads:
            first = threads.submit(store.set_setting, "0", 0)
            assert began.wait(10)
            others = [threads.submit(store.set_setting, str(i), i) for i in range(1, 21)]
            while rows(store, "select count(*) from settings") != [(21,)]:
                time.sleep(0.01)
            assert not any(one.done() for one in [first, *others])  # all are committed, none is acknowledged
            may_end.set()
        assert syncs == [1, 21]


def test_after_a_failed_fsync_nothing_is_acknowledged_any_more(tmp_path):
    """The system may have dropped what it could not write, so a later fsync that succeeds proves nothing."""
    with new_store(tmp_path) as store:

        def fail(file):
            raise OSError("disk is gone")

        sync, store._log.sync = store._log.sync, fail
        with pytest.raises(OSError, match="disk is gone"):
            store.set_setting("a", 1)
        store._log.sync = sync
        with pytest.raises(OSError, match="disk is gone"):
            store.set_setting("b", 1)


def test_a_transaction_that_changes_nothing_needs_no_fsync(tmp_path):
    with new_store(tmp_path) as store:
        task = queue.next_task(store, 1, now=0.0)
        store._log.sync = None
        assert queue.next_task(store, 1, now=1.0) == task


# ---- Kills

WRITER = """
import sys
from rlhf.labeling import queue
from rlhf.labeling.items import Judgment
from rlhf.labeling.store import Store
store = Store(sys.argv[1])
while True:
    task = queue.next_task(store, int(sys.argv[2]))
    queue.submit(store, task.key, int(sys.argv[2]), Judgment(ranks=[0, 1, 2]))
    print(task.key, flush=True)
"""


def test_kill_9_of_two_writers_loses_and_doubles_nothing(tmp_path):
    with new_store(tmp_path, items=2000, labelers_per_item=2) as store:
        acknowledged = []
        for _ in range(2):
            writers = [
                subprocess.Popen([sys.executable, "-c", WRITER, str(store.path), str(labeler)], stdout=subprocess.PIPE)
                for labeler in (1, 2)
            ]
            for writer in writers:
                for _ in range(20):
                    acknowledged.append(writer.stdout.readline().decode().strip())
                os.kill(writer.pid, signal.SIGKILL)
                acknowledged += writer.communicate()[0].decode().split()
        assert len(acknowledged) >= 80
        kept = [key for (key,) in rows(store, "select key from judgments")]
        assert len(set(kept)) == len(kept)
        assert set(acknowledged) <= set(kept)
        assert len(kept) - len(acknowledged) <= 4  # each killed writer may have had one that it had not yet said
        assert rows(store, "select max(judged <= wanted) from items") == [(1,)]
        assert rows(store, "pragma integrity_check") == [("ok",)]
        assert rows(store, "pragma foreign_key_check") == []


# ---- What training reads


def label_rows(store, kind):
    return [json.loads(text) for (text,) in rows(store, "select content from label_rows where kind = ?", kind)]


@pytest.fixture
def judged(tmp_path):
    """A comparison with ratings, one without, one unrankable, one skipped, and a demonstration."""
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": 'Say "hi"\n👋.'}]
    items = [
        comparison(0, sources=["sft", "ppo", "base"]),
        *(comparison(1), comparison(2), comparison(3)),
        demonstration(4),
        comparison(5, k=2),
    ]
    items[5] = type(items[5])("comparison", messages, items[5].completions)
    with new_store(tmp_path, items=items) as store:
        rated = [Rating(7, {"hate": False, "lie": True, "sex": None}), Rating(1), Rating(5)]
        judgments = (
            ranking(0, 2, 1, ratings=rated, notes="first"),
            ranking(3, 3, 9, ratings=[Rating(2), Rating(None, {"lie": True}), Rating(2)]),
            Judgment(unrankable=True, ratings=[Rating(1)] * 3),
            Judgment(skipped="I do not know Finnish."),
            Judgment(demonstration="It's done."),
            ranking(1, 0),
        )
        for now, judgment in enumerate(judgments):
            judge(store, 1, judgment, now=float(now))
        yield store


def test_label_rows_are_comparisons_by_index_of_the_completion(judged):
    first, second, third = label_rows(judged, "comparison")
    by_text = dict(zip(first["completions"], first["ranks"], strict=True))
    [(shown,)] = rows(judged, "select shown from tasks where item = 1")
    shown = [comparison(0).completions[i] for i in json.loads(shown)]
    assert [by_text[text] for text in shown] == [0, 2, 1]
    assert dict(zip(first["completions"], first["ratings"], strict=True)) == dict(zip(shown, [7, 1, 5], strict=True))
    assert (first["prompt"], first["labeler_id"]) == ("Question 0?", "anna")
    assert first["completion_sources"] == ["sft", "ppo", "base"]
    assert sorted(second["ranks"]) == [0, 0, 1]
    assert "ratings" not in second and "completion_sources" not in second and "labeler_group" not in second
    assert third["prompt"][1] == {"role": "user", "content": 'Say "hi"\n👋.'}


def test_label_rows_are_demonstrations_and_ratings(judged):
    assert label_rows(judged, "demonstration") == [
        {"prompt": "Task 4.", "completion": "It's done.", "labeler_id": "anna"}
    ]
    ratings = label_rows(judged, "rating")
    assert sorted(row["rating"] for row in ratings) == [1, 1, 1, 1, 2, 2, 5, 7]
    [best] = [row for row in ratings if row["rating"] == 7]
    assert best["flags"] == {"hate": False, "lie": True, "sex": None}
    assert best["completion"] in comparison(0).completions


def test_every_row_fits_the_schemas_of_the_training_data(judged):
    for row in label_rows(judged, "comparison"):
        read = as_comparison(row)
        assert (read["ranks"], read["labeler_id"]) == (row["ranks"], "anna")
    for row in label_rows(judged, "demonstration"):
        assert as_demonstration(row)["completion"] == row["completion"]


def test_the_evaluation_reads_comparisons_and_ratings(judged):
    pairs, ratings = people_judges(judged.path)
    first = label_rows(judged, "comparison")[0]
    best, worst = first["completions"][first["ranks"].index(0)], first["completions"][first["ranks"].index(2)]
    assert pairs.prefer(["Question 0?"], [best], [worst]) == [1.0]
    [verdict] = ratings.score(["Question 0?"], [best], [True])
    assert (verdict.score, verdict.flags["lie"]) == (7.0, True)


def test_rows_of_labelers_in_screening_and_of_those_who_failed_are_left_out(judged):
    for state, count in (("pending", 0), ("failed", 0), ("passed", 3), ("none", 3)):
        screening.set_state(judged, 1, state)
        assert len(label_rows(judged, "comparison")) == count


def test_rows_of_held_out_labelers_say_so(tmp_path):
    with new_store(tmp_path, names=()) as store:
        people.add_labeler(store, "hanna", held_out=True, now=0.0)
        judge(store, 1)
        assert label_rows(store, "comparison")[0]["labeler_group"] == "heldout"


def test_rows_come_in_the_order_of_time(tmp_path):
    with new_store(tmp_path, items=30) as store:
        for now in range(30):
            judge(store, 1, now=float(now))
        assert [row["prompt"] for row in label_rows(store, "comparison")] == [f"Question {i}?" for i in range(30)]


def test_sql_in_texts_is_text(tmp_path):
    evil = "'; drop table items; --"
    with new_store(tmp_path, names=(evil,)) as store:
        judge(store, 1, ranking(0, 1, 2, notes=evil))
        assert queue.add_batch(store, evil, [comparison(9)], now=0.0) == 1
        assert label_rows(store, "comparison")[0]["labeler_id"] == evil
        assert people.find_labeler(store, evil).id == 1


def test_the_server_needs_no_training_library():
    """torch alone would take three times the memory that the whole server may have."""
    code = (
        "import sys; from rlhf.labeling import people, progress, queue, screening, store; "
        "print([name for name in ('torch', 'transformers', 'numpy', 'datasets') if name in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


def test_the_schema_is_package_data():
    assert (Path(sys.modules[Store.__module__].__file__).parent / "schema.sql").is_file()
