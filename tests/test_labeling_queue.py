"""The queue: who gets which item, for how long, and what becomes of a judgment that comes twice or late."""

import random
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from threading import Barrier

import pytest
from labeling_stores import HOUR, comparison, demonstration, judge, new_store, ranking, rows

from rlhf.errors import InputError
from rlhf.labeling import people, queue
from rlhf.labeling.items import (
    Conflict,
    Item,
    Judgment,
    Rating,
    TaskNotFound,
    check_judgment,
    read_judgment,
)
from rlhf.labeling.store import Store


@pytest.fixture
def store(tmp_path):
    with new_store(tmp_path) as store:
        yield store


def number(task) -> int:
    """Returns i of the task of `comparison(i)`."""
    return int(task.prompt.removeprefix("Question ").removesuffix("?"))


def ranks_by_text(store, task) -> dict[str, int]:
    """Returns completion -> rank, as labelers' pages show the judgment of a task."""
    shown = queue.find_task(store, task.key, 1)
    return dict(zip(shown.completions, shown.draft["ranks"], strict=True))


# ---- Batches


def test_equal_content_is_one_item(store):
    first = comparison(0)
    as_messages = replace(first, prompt=[{"role": "user", "content": " Question 0? "}])
    other_order = replace(first, completions=first.completions[::-1])
    assert queue.add_batch(store, "second", [first, as_messages, other_order, comparison(9), comparison(9)]) == 1
    assert queue.add_batch(store, "first", [comparison(i) for i in range(5)]) == 0  # `make label` again
    assert queue.add_batch(store, "third", [demonstration(0), replace(demonstration(0), completions=["Edit me."])]) == 2


def test_the_highest_priority_comes_first_and_a_batch_can_be_moved(store):
    queue.add_batch(store, "urgent", [comparison(10), comparison(11)], priority=5, now=0.0)
    assert [number(judge(store, 1)) for _ in range(3)] == [10, 11, 0]
    queue.add_batch(store, "later", [comparison(12)], priority=-1)
    queue.add_batch(store, "later", [], priority=9)
    assert number(judge(store, 1)) == 12


def test_the_share_for_several_labelers_is_chosen_by_the_seed(tmp_path):
    def several(folder, **options):
        with new_store(tmp_path / folder, items=50, share_for_several=0.3, **options) as store:
            return [i for (i,) in rows(store, "select id from items where wanted = 3")]

    assert len(several("a")) == 15
    assert several("b") == several("c") != several("d", seed=1)


def test_an_item_for_several_goes_to_that_many_labelers_and_to_nobody_twice(tmp_path):
    names = [f"labeler {i}" for i in range(5)]
    with new_store(tmp_path, items=20, names=names, labelers_per_item=3) as store:
        order = random.Random(0)
        seen = Counter()
        while (task := queue.next_task(store, labeler := order.randint(1, 5), now=0.0)) is not None:
            queue.submit(store, task.key, labeler, ranking(), now=0.0)
            seen[number(task), labeler] += 1
        left = {i: 3 - sum(n for (item, _), n in seen.items() if item == i) for i in range(20)}
        assert set(seen.values()) == {1}
        for labeler in range(1, 6):  # what is left are items that she has judged
            while (task := queue.next_task(store, labeler, now=0.0)) is not None:
                queue.submit(store, task.key, labeler, ranking(), now=0.0)
                left[number(task)] -= 1
        assert set(left.values()) == {0}


@pytest.mark.parametrize(
    ("item", "fault"),
    [
        (comparison(0, k=1), "has 1 completions. Give 2 to 9"),
        (comparison(0, sources=["sft"]), "1 sources for 3 completions"),
        (comparison(0, gold={"ranks": [0, 1]}), "gold has 2 ranks for 3 completions"),
        (Item("comparison", "Hi", ["a"] * 10), "has 10 completions"),
        (Item("comparison", "Hi", ["a", " "]), "completion 1 is empty"),
        (Item("comparison", "Hi", ["a", "b\0"]), "NUL"),
        (Item("comparison", "\ud83d", ["a", "b"]), "surrogate"),
        (Item("comparison", "", ["a", "b"]), "prompt is empty"),
        (Item("comparison", [], ["a", "b"]), "prompt is neither"),
        (Item("comparison", [{"role": "tool", "content": "x"}], ["a", "b"]), "prompt is neither"),
        (Item("comparison", [{"role": "user", "content": "x", "weight": 0}], ["a", "b"]), "prompt is neither"),
        (Item("comparison", [{"role": "assistant", "content": "x"}], ["a", "b"]), "not the user's"),
        (Item("essay", "Hi"), "kind is 'essay'"),
    ],
)
def test_an_item_that_cannot_be_shown_is_named_and_nothing_is_added(store, item, fault):
    with pytest.raises(InputError, match=f"Batch new, item 2: .*{fault}"):
        queue.add_batch(store, "new", [comparison(7), item])
    assert rows(store, "select count(*) from items") == [(5,)]


# ---- Next task and leases


def test_labelers_get_different_items_in_their_own_random_order(tmp_path):
    with new_store(tmp_path, items=120) as store:
        orders = {tuple(text[7] for text in judge(store, 1).completions) for _ in range(119)}
        assert len(orders) == 6  # all of the 3! orders; one of them is missed with a chance of 6 (5 / 6)^119 = 2e-9
        assert number(queue.next_task(store, 2, now=0.0)) == 119
        assert queue.next_task(store, 1, now=0.0) is None


def test_a_reload_shows_the_task_that_she_has_begun(store):
    task = queue.next_task(store, 1, now=0.0)
    assert queue.next_task(store, 1, now=60.0) == task
    assert rows(store, "select count(*) from tasks") == [(1,)]


def test_an_expired_lease_gives_the_item_to_another_labeler(tmp_path):
    with new_store(tmp_path, items=1) as store:
        task = queue.next_task(store, 1, now=0.0)
        assert queue.next_task(store, 2, now=0.49 * HOUR) is None
        other = queue.next_task(store, 2, now=0.51 * HOUR)
        assert other.prompt == task.prompt and other.key != task.key
        assert queue.next_task(store, 1, now=0.52 * HOUR) is None  # it is the other's now


def test_an_expired_lease_is_hers_again_with_its_draft_if_nobody_took_it(store):
    task = queue.next_task(store, 1, now=0.0)
    queue.save_draft(store, task.key, 1, {"notes": "half done"}, now=60.0)
    again = queue.next_task(store, 1, now=9 * HOUR)
    assert (again.key, again.draft, again.expires) == (task.key, {"notes": "half done"}, 9.5 * HOUR)


def test_a_walk_comes_back_to_an_item_whose_holder_never_finished(store):
    queue.next_task(store, 1, now=0.0)  # she closes the page
    assert [number(judge(store, 2, now=1.0)) for _ in range(4)] == [1, 2, 3, 4]
    assert queue.next_task(store, 2, now=2.0) is None
    assert number(judge(store, 2, now=HOUR)) == 0


def test_a_draft_keeps_the_lease(tmp_path):
    with new_store(tmp_path, items=1) as store:
        task = queue.next_task(store, 1, now=0.0)
        assert queue.save_draft(store, task.key, 1, {}, now=0.4 * HOUR)
        assert queue.next_task(store, 2, now=0.8 * HOUR) is None
        assert queue.next_task(store, 2, now=0.91 * HOUR) is not None


def test_a_late_judgment_counts_though_another_labeler_has_the_item(tmp_path):
    with new_store(tmp_path, items=1) as store:
        task = queue.next_task(store, 1, now=0.0)
        other = queue.next_task(store, 2, now=HOUR)
        assert queue.submit(store, task.key, 1, ranking(), now=HOUR)
        assert queue.submit(store, other.key, 2, ranking(), now=HOUR)
        assert rows(store, "select wanted, judged from items") == [(1, 2)]


def test_a_revoked_labeler_gets_nothing_and_her_item_goes_on(tmp_path):
    with new_store(tmp_path, items=1) as store:
        queue.next_task(store, 1, now=0.0)
        people.revoke(store, "anna")
        assert queue.next_task(store, 1, now=1.0) is None
        assert queue.next_task(store, 2, now=1.0) is not None


def test_a_skipped_item_goes_to_another_labeler_and_not_again_to_her(tmp_path):
    with new_store(tmp_path, items=1) as store:
        judge(store, 1, Judgment(skipped="It is in Finnish."))
        assert queue.next_task(store, 1, now=0.0) is None
        assert number(queue.next_task(store, 2, now=0.0)) == 0


def test_an_item_whose_judgment_becomes_a_skip_is_there_for_those_who_passed_it(store):
    first = judge(store, 1)
    judge(store, 2)
    queue.submit(store, first.key, 1, Judgment(skipped="I know the author.", revision=1), now=1.0)
    assert number(queue.next_task(store, 2, now=1.0)) == 0
    queue.submit(store, first.key, 1, ranking(revision=2), now=2.0)
    assert rows(store, "select judged from items where id = 1") == [(1,)]


def steps(store: Store, labeler: int) -> int:
    """Returns the number of instructions that SQLite's virtual machine runs for the next task, in tens."""
    count = 0

    def tick():
        nonlocal count
        count += 1

    store._db.set_progress_handler(tick, 10)
    queue.next_task(store, labeler, now=0.0)
    store._db.set_progress_handler(None, 0)
    return count


def test_a_walk_does_not_grow_with_the_items(tmp_path):
    """The first labeler meets a free item at once, the second one that is held."""
    counts = []
    for items in (20, 500):
        with new_store(tmp_path / str(items), items=items) as store:
            counts.append((steps(store, 1), steps(store, 2)))
    assert counts[1][0] < counts[0][0] + 10
    assert counts[1][1] < counts[0][1] + 10


def test_a_walk_does_not_grow_with_the_items_that_she_has_judged(tmp_path):
    """Items for three labelers of which she has judged 200 are not looked at again."""
    with new_store(tmp_path, items=300, labelers_per_item=3) as store:
        for _ in range(5):
            judge(store, 1)
        few = steps(store, 1)
        for _ in range(200):
            judge(store, 1)
        assert steps(store, 1) < few + 10


# ---- Drafts


def test_drafts_are_hers_alone_and_survive_until_the_judgment(store):
    task = queue.next_task(store, 1, now=0.0)
    draft = {"ranks": [None, 1, None], "notes": "日本語 \u202e"}
    queue.save_draft(store, task.key, 1, draft, 12.5, now=1.0)
    queue.save_draft(store, task.key, 1, draft, 3.0, now=2.0)  # another device began to count later
    found = queue.find_task(store, task.key, 1)
    assert (found.draft, found.active) == (draft, 12.5)
    with pytest.raises(TaskNotFound):
        queue.save_draft(store, task.key, 2, {}, now=1.0)
    queue.submit(store, task.key, 1, ranking(), now=3.0)
    assert queue.find_task(store, task.key, 1).draft["ranks"] == [0, 1, 2]


def test_a_draft_that_arrives_after_its_judgment_changes_nothing(store):
    task = judge(store, 1)
    assert not queue.save_draft(store, task.key, 1, {"notes": "late"}, now=1.0)
    assert queue.reopen(store, 1).draft["notes"] == ""
    assert queue.save_draft(store, task.key, 1, {"notes": "a revision", "revision": 1}, now=2.0)
    assert queue.reopen(store, 1).draft["notes"] == "a revision"


@pytest.mark.parametrize("draft", [[1], "text", {"notes": "x" * 1_000_001}])
def test_what_is_no_draft_or_too_long_is_refused(store, draft):
    task = queue.next_task(store, 1, now=0.0)
    with pytest.raises(InputError, match="no object, or is longer"):
        queue.save_draft(store, task.key, 1, draft, now=0.0)


# ---- Judgments: once


def test_the_same_judgment_twice_is_taken_in_once(store):
    task = queue.next_task(store, 1, now=0.0)
    assert queue.submit(store, task.key, 1, ranking(0, 1, 1, seconds=4.0), now=1.0)
    assert not queue.submit(store, task.key, 1, ranking(0, 5, 5, seconds=9.0), now=2.0)  # the same order
    assert rows(store, "select seconds, created from judgments") == [(4.0, 1.0)]
    assert rows(store, "select done from labelers where id = 1") == [(1,)]
    with pytest.raises(Conflict, match="judged in another way"):
        queue.submit(store, task.key, 1, ranking(1, 0, 2), now=3.0)
    assert ranks_by_text(store, task) == dict(zip(task.completions, [0, 1, 1], strict=True))


def test_threads_that_submit_the_same_key_at_once_take_it_in_once(store):
    task, barrier = queue.next_task(store, 1, now=0.0), Barrier(8)

    def submit(i):
        barrier.wait()
        return queue.submit(store, task.key, 1, ranking(), now=float(i))

    with ThreadPoolExecutor(8) as threads:
        assert sorted(threads.map(submit, range(8))) == [False] * 7 + [True]
    assert rows(store, "select count(*) from judgments") == [(1,)]


def test_labelers_at_once_judge_every_item_once(tmp_path):
    names = [f"labeler {i}" for i in range(8)]
    with new_store(tmp_path, items=120, names=names) as store:

        def work(labeler):
            count = 0
            while (task := queue.next_task(store, labeler, now=0.0)) is not None:
                count += queue.submit(store, task.key, labeler, ranking(), now=0.0)
            return count

        with ThreadPoolExecutor(8) as threads:
            assert sum(threads.map(work, range(1, 9))) == 120
        assert rows(store, "select count(*), count(distinct item) from judgments") == [(120, 120)]


def test_two_stores_on_one_file_give_an_item_to_one_labeler(tmp_path):
    with new_store(tmp_path, items=60) as store, Store(store.path) as other:
        with ThreadPoolExecutor(2) as threads:

            def work(store, labeler):
                return [number(judge(store, labeler)) for _ in range(30)]

            done = [threads.submit(work, *pair) for pair in ((store, 1), (other, 2))]
        assert sorted(done[0].result() + done[1].result()) == list(range(60))


@pytest.mark.parametrize("key", ["", "x", "../../etc/passwd", "' or 1=1 --", "\0", "é" * 10_000])
def test_keys_that_are_none_are_not_found(store, key):
    with pytest.raises(TaskNotFound):
        queue.find_task(store, key, 1)
    with pytest.raises(TaskNotFound):
        queue.submit(store, key, 1, ranking())


def test_another_labelers_task_is_not_found_with_the_same_words(store):
    task = queue.next_task(store, 1, now=0.0)
    messages = set()
    for key in (task.key, "none"):
        for use in (
            lambda key: queue.find_task(store, key, 2),
            lambda key: queue.submit(store, key, 2, ranking()),
            lambda key: queue.reopen(store, 2, key),
        ):
            with pytest.raises(TaskNotFound) as caught:
                use(key)
            messages.add(str(caught.value))
    assert len(messages) == 1
    assert rows(store, "select count(*) from judgments") == [(0,)]


# ---- Undo and revision


def test_undo_and_submit_again_replaces_the_judgment_and_keeps_the_old_one(store):
    task = judge(store, 1, ranking(0, 1, 2, notes="first"), now=1.0)
    again = queue.reopen(store, 1)
    assert (again.key, again.revision, again.completions) == (task.key, 1, task.completions)
    assert read_judgment(again.draft) == ranking(0, 1, 2, notes="first", revision=1)
    assert rows(store, "select count(*) from judgments") == [(1,)]  # it holds until she submits
    assert queue.submit(store, task.key, 1, ranking(2, 1, 0, revision=1), now=2.0)
    assert ranks_by_text(store, task) == dict(zip(task.completions, [2, 1, 0], strict=True))
    assert rows(store, "select created, revised from judgments") == [(1.0, 2.0)]
    [(old,)] = rows(store, "select content from revisions")
    assert '"notes": "first"' in old
    assert rows(store, "select done, (select judged from items where id = 1) from labelers where id = 1") == [(1, 1)]


def test_a_replay_of_an_old_page_neither_doubles_nor_overwrites_a_revision(store):
    task = judge(store, 1, ranking(0, 1, 2))
    queue.submit(store, task.key, 1, ranking(2, 1, 0, revision=1), now=1.0)
    queue.submit(store, task.key, 1, ranking(1, 1, 0, revision=2), now=2.0)
    for revision, ranks in enumerate([(0, 1, 2), (2, 1, 0), (1, 1, 0)]):
        assert not queue.submit(store, task.key, 1, ranking(*ranks, revision=revision), now=3.0)
        with pytest.raises(Conflict):
            queue.submit(store, task.key, 1, ranking(0, 0, 0, revision=revision), now=3.0)
    for revision in (-1, 9):
        with pytest.raises(Conflict):
            queue.submit(store, task.key, 1, ranking(1, 1, 0, revision=revision), now=3.0)
    assert ranks_by_text(store, task) == dict(zip(task.completions, [1, 1, 0], strict=True))


def test_undo_takes_what_she_submitted_last_and_history_lists_it_first(store):
    assert queue.reopen(store, 1) is None
    tasks = [judge(store, 1, now=float(now)) for now in (1, 2, 3)]
    judge(store, 2, now=9.0)
    assert queue.reopen(store, 1).key == tasks[2].key
    queue.submit(store, tasks[0].key, 1, Judgment(skipped="Twice.", revision=1), now=4.0)
    assert queue.reopen(store, 1).key == tasks[0].key
    assert queue.reopen(store, 1, tasks[1].key).revision == 1
    assert [one.key for one in queue.history(store, 1)] == [tasks[i].key for i in (0, 2, 1)]
    assert [one.skipped for one in queue.history(store, 1, limit=1)] == ["Twice."]


def test_judgments_made_elsewhere_are_recorded_once(store):
    item = queue.find_item(store, comparison(3))
    assert item == 4 and queue.find_item(store, comparison(77)) is None
    assert queue.record(store, item, 2, ranking(2, 0, 1), now=5.0)
    assert not queue.record(store, item, 2, ranking(0, 1, 2), now=6.0)
    assert rows(store, "select ranks, created from judgments") == [("[2, 0, 1]", 5.0)]
    with pytest.raises(InputError, match="2 of 3 completions"):
        queue.record(store, 1, 2, ranking(0, 1))
    assert rows(store, "select count(*) from tasks") == [(1,)]


# ---- What is an answer


@pytest.mark.parametrize(
    ("judgment", "fault"),
    [
        (Judgment(), "0 of 3 completions have a rank"),
        (Judgment(ranks=[None, None, None]), "0 of 3"),  # an order that nobody touched
        (Judgment(ranks=[0, None, 1]), "2 of 3"),
        (Judgment(ranks=[0, 1]), "2 of 3"),
        (Judgment(ranks=[0, 1, 2, 3]), "4 of 3"),
        (Judgment(ranks=[0, 1, True]), "no small integer"),
        (Judgment(ranks=[0, 1, 10**9]), "no small integer"),
        (ranking(ratings=[Rating(1), Rating(2)]), "2 ratings for 3"),
        (ranking(ratings=[Rating(8), Rating(1), Rating(1)]), "A rating is 8. Choose 1 to 7"),
        (ranking(ratings=[Rating(0), Rating(1), Rating(1)]), "A rating is 0"),
        (ranking(ratings=[Rating(1), Rating(5), Rating(6)]), "opposite of the ratings"),
        (ranking(ratings=[Rating(None, {"rude": True})] * 3), "Flag 'rude' is unknown"),
        (ranking(ratings=[Rating(notes="x" * 10_001)] * 3), "10,001 characters; at most 10,000"),
        (ranking(notes="x" * 1_000_000), "1,000,000 characters"),
        (ranking(notes="a\0b"), "NUL"),
        (ranking(seconds=float("nan")), "seconds is nan"),
        (ranking(seconds=-1), "seconds is -1"),
        (Judgment(skipped=" "), "The reason for skipping is empty"),
        (ranking(demonstration=" "), "The ideal answer is empty"),
    ],
)
def test_what_is_no_judgment_of_a_comparison_is_refused(store, judgment, fault):
    task = queue.next_task(store, 1, now=0.0)
    with pytest.raises(InputError, match=fault):
        queue.submit(store, task.key, 1, judgment, now=0.0, flags=["lie"])
    assert rows(store, "select count(*) from judgments") == [(0,)]


@pytest.mark.parametrize(
    ("judgment", "fault"),
    [
        (Judgment(), "The ideal answer is empty. Write it, or skip"),
        (Judgment(demonstration=""), "is empty"),
        (Judgment(demonstration="x" * 100_001), "at most 100,000"),
        (Judgment(demonstration="\ud83d"), "surrogate"),
        (Judgment(demonstration="Yes.", ranks=[]), "nothing to rank"),
    ],
)
def test_what_is_no_demonstration_is_refused(judgment, fault):
    with pytest.raises(InputError, match=fault):
        check_judgment("demonstration", 0, judgment)


@pytest.mark.parametrize(
    "judgment",
    [
        ranking(0, 0, 0),  # ties alone
        ranking(ratings=[Rating(7), Rating(None), Rating(7)]),
        ranking(ratings=[Rating(6), Rating(7), Rating(1)]),  # not the opposite everywhere
        Judgment(unrankable=True),
        Judgment(skipped="I do not know the subject."),
    ],
)
def test_what_is_a_judgment_of_a_comparison(judgment):
    check_judgment("comparison", 3, judgment, [])


def test_a_judgment_that_cannot_be_ranked_has_no_ranks(store):
    judge(store, 1, Judgment(unrankable=True, ranks=[0, 1, 2]))
    assert rows(store, "select ranks, unrankable from judgments") == [(None, 1)]


def test_json_of_a_page_and_back():
    judgment = ranking(0, 2, 1, ratings=[Rating(7, {"lie": None}, "!"), Rating(), Rating(1)], seconds=2.5, revision=3)
    assert read_judgment(asdict(judgment)) == judgment
    assert read_judgment({"ranks": None, "skipped": "why"}) == Judgment(skipped="why")


@pytest.mark.parametrize(
    "content",
    [
        *([], None, "x", {"rank": [1]}, {"ranks": "012"}, {"ranks": [0.5]}, {"ranks": [True]}, {"notes": 1}),
        *({"revision": "1"}, {"unrankable": 1}, {"skipped": {}}, {"ratings": {}}, {"ratings": [1]}, {"seconds": "1"}),
        *({"ratings": [{"rating": 7.5}]}, {"ratings": [{"flags": []}]}, {"ratings": [{"flags": {"a": 1}}]}),
        *({"ratings": [{"stars": 5}]}, {"seconds": float("inf")}),
    ],
)
def test_json_of_other_types_is_refused(content):
    with pytest.raises(InputError):
        check_judgment("comparison", 2, replace(read_judgment(content), unrankable=True))
