"""Labelers: links and sessions, screening with gold items, and the numbers of the admin page."""

import hashlib
import json
from concurrent.futures import ThreadPoolExecutor

import pytest
from labeling_stores import HOUR, comparison, demonstration, judge, new_store, ranking, rows

from rlhf.errors import InputError
from rlhf.evaluation.agreement import agreement_report
from rlhf.labeling import people, progress, queue, screening
from rlhf.labeling.items import Judgment, Rating

DAY = 24 * HOUR


@pytest.fixture
def store(tmp_path):
    with new_store(tmp_path, names=()) as store:
        yield store


# ---- Links and sessions


def test_a_link_logs_in_once(store):
    token = people.add_labeler(store, "anna", now=0.0)
    secret = people.log_in(store, token, now=1.0)
    found = people.session(store, secret, now=2.0)
    assert (found.labeler.name, found.labeler.role, found.labeler.screening) == ("anna", "labeler", "none")
    assert len(found.csrf) >= 20
    assert people.log_in(store, token, now=3.0) is None


def test_threads_that_use_a_link_at_once_log_in_once(store):
    token = people.add_labeler(store, "anna", now=0.0)
    with ThreadPoolExecutor(8) as threads:
        secrets = list(threads.map(lambda _: people.log_in(store, token, now=1.0), range(8)))
    assert sum(secret is not None for secret in secrets) == 1


@pytest.mark.parametrize("token", ["", "x", "' or 1=1 --", "\0", "é\ud83d", "a" * 1_000_000])
def test_forged_tokens_and_secrets_are_nothing(store, token):
    people.add_labeler(store, "anna", now=0.0)
    assert people.log_in(store, token, now=1.0) is None
    assert people.session(store, token, now=1.0) is None
    people.log_out(store, token)


def test_links_end_after_seven_days_and_sessions_after_thirty(store):
    people.add_labeler(store, "anna", now=0.0)
    token = people.new_link(store, "anna", now=0.0)
    assert people.log_in(store, token, now=7 * DAY) is None
    token = people.new_link(store, "anna", now=0.0)
    secret = people.log_in(store, token, now=7 * DAY - 1)
    assert people.session(store, secret, now=37 * DAY - 2) is not None
    assert people.session(store, secret, now=37 * DAY) is None


def test_a_new_link_replaces_the_one_before_and_sessions_go_on(store):
    first = people.add_labeler(store, "anna", now=0.0)
    secret = people.log_in(store, people.new_link(store, "anna", now=0.0), now=0.0)
    people.new_link(store, "anna", now=0.0)
    assert people.log_in(store, first, now=1.0) is None
    assert people.session(store, secret, now=1.0) is not None


def test_log_out_ends_one_session(store):
    people.add_labeler(store, "anna", now=0.0)
    phone, desktop = (people.log_in(store, people.new_link(store, "anna", now=0.0), now=0.0) for _ in range(2))
    assert people.session(store, phone, now=1.0).csrf != people.session(store, desktop, now=1.0).csrf
    people.log_out(store, phone)
    assert people.session(store, phone, now=1.0) is None
    assert people.session(store, desktop, now=1.0) is not None


def test_revocation_ends_sessions_and_links_until_a_new_link(store):
    people.add_labeler(store, "anna", now=0.0)
    secret = people.log_in(store, people.new_link(store, "anna", now=0.0), now=0.0)
    token = people.new_link(store, "anna", now=0.0)
    people.revoke(store, "anna")
    assert people.session(store, secret, now=1.0) is None
    assert people.log_in(store, token, now=1.0) is None
    assert [one.revoked for one in people.labelers(store)] == [True]
    assert people.log_in(store, people.new_link(store, "anna", now=1.0), now=2.0) is not None
    assert people.session(store, secret, now=2.0) is None


def test_the_file_holds_no_secret(store):
    token = people.add_labeler(store, "anna", now=0.0)
    other = people.add_labeler(store, "ben", now=0.0)
    secret = people.log_in(store, token, now=1.0)
    assert rows(store, "select link_hash from labelers where name = 'ben'") == [
        (hashlib.sha256(other.encode()).hexdigest(),)
    ]
    store.close()
    content = store.path.read_bytes()
    assert b"ben" in content
    assert not any(one.encode() in content for one in (token, other, secret))


@pytest.mark.parametrize("name", ["", " ", "anna ", "a\nb", "a\0b", "\u202eanna", "x" * 101])
def test_names_that_cannot_be_shown_are_refused(store, name):
    with pytest.raises(InputError, match="name"):
        people.add_labeler(store, name, now=0.0)
    assert people.labelers(store) == []


def test_a_name_twice_a_role_and_a_labeler_that_do_not_exist(store):
    people.add_labeler(store, "Jürgen 🦊", role="admin", now=0.0)
    with pytest.raises(InputError, match="There is a labeler Jürgen 🦊"):
        people.add_labeler(store, "Jürgen 🦊", now=0.0)
    with pytest.raises(InputError, match="Choose labeler or admin"):
        people.add_labeler(store, "ben", role="root", now=0.0)
    for use in (people.revoke, people.new_link, people.find_labeler):
        with pytest.raises(InputError, match=r"no labeler 'cara'\. Choose from Jürgen"):
            use(store, "cara")


# ---- Screening


def gold(i: int, ranks=(0, 1, 2), flags=None):
    return comparison(i, gold={"ranks": list(ranks), "flags": flags})


def judge_by_text(store, labeler, ranks, now=0.0, **flags):
    """Judges the next task with the ranks of answers a, b, c wherever they are on the screen."""
    task = queue.next_task(store, labeler, now=now)
    ranks = [ranks["abc".index(text[7])] for text in task.completions]
    rates = [Rating(None, flags) for _ in ranks] if flags else None
    queue.submit(store, task.key, labeler, ranking(*ranks, ratings=rates), now=now)
    return task


@pytest.fixture
def screened(tmp_path):
    """Four gold items among ten, three of which screening asks for; labelers cara (in screening) and dora (not)."""
    items = [comparison(0), *(gold(i) for i in (1, 2, 3, 4)), *(comparison(i) for i in range(5, 10))]
    with new_store(tmp_path, items=items, names=()) as store:
        store.set_setting("screening_items", 3)
        people.add_labeler(store, "cara", screened=True, now=0.0)
        people.add_labeler(store, "dora", now=0.0)
        yield store


def state(store, name="cara"):
    return people.find_labeler(store, name).screening


def test_a_labeler_in_screening_gets_gold_items_and_then_work(screened):
    prompts = [judge_by_text(screened, 1, (0, 1, 2)).prompt for _ in range(3)]
    assert prompts == ["Question 1?", "Question 2?", "Question 3?"]
    assert state(screened) == "passed"
    assert queue.next_task(screened, 1, now=0.0).prompt == "Question 0?"


def test_a_labeler_who_fails_gets_nothing_more(screened):
    for ranks in ((0, 1, 2), (1, 0, 2), (2, 1, 0)):  # 3 + 2 + 0 of 9 pairs
        assert state(screened) == "pending"
        judge_by_text(screened, 1, ranks)
    assert state(screened) == "failed"
    assert screening.grade(screened, 1).rankings == pytest.approx(5 / 9)
    assert queue.next_task(screened, 1, now=0.0) is None


def test_a_tie_in_place_of_an_order_is_not_agreement(screened):
    for ranks, share in (((0, 1, 1), 2 / 3), ((0, 0, 0), 2 / 6), ((0, 1, 2), 5 / 9)):
        judge_by_text(screened, 1, ranks)
        assert screening.grade(screened, 1).rankings == pytest.approx(share)


def test_skipped_and_unrankable_gold_items_agree_with_nothing(screened):
    judge(screened, 1, Judgment(skipped="Too hard."))
    judge(screened, 1, Judgment(unrankable=True))
    judge_by_text(screened, 1, (0, 1, 2))
    assert screening.grade(screened, 1) == screening.Grade(pytest.approx(1 / 3), None, None, 3, 0)
    assert state(screened) == "failed"


def test_judgments_in_screening_take_no_item_from_others(screened):
    held = queue.next_task(screened, 1, now=0.0)
    assert held.prompt == "Question 1?"
    assert [judge(screened, 2).prompt for _ in range(2)] == ["Question 0?", "Question 1?"]
    judge_by_text(screened, 1, (0, 1, 2))
    assert rows(screened, "select judged from items where id = 2") == [(1,)]


def test_both_flags_and_rankings_have_to_agree(tmp_path):
    flags = [{"lie": True, "rude": False}, {"lie": False, "rude": None}, {"lie": False}]
    with new_store(tmp_path, items=[gold(1, flags=flags)], names=()) as store:
        for name in ("cara", "dora"):
            people.add_labeler(store, name, screened=True, now=0.0)
        judge_by_text(store, 1, (0, 1, 2), lie=False, rude=False)  # 3 of 4 flags; one is unknown in gold
        assert screening.grade(store, 1).flags == 0.75
        judge_by_text(store, 2, (0, 1, 2), rude=False)  # three flags unanswered
        assert screening.grade(store, 2).flags == 0.25
        assert (state(store), state(store, "dora")) == ("passed", "failed")


def test_fewer_gold_items_than_asked_for_are_enough_and_none_means_waiting(tmp_path):
    with new_store(tmp_path, items=[gold(1), comparison(2)], names=()) as store:
        people.add_labeler(store, "cara", screened=True, now=0.0)
        judge_by_text(store, 1, (0, 1, 2))
        assert state(store) == "passed"
    with new_store(tmp_path / "without", names=()) as store:
        people.add_labeler(store, "cara", screened=True, now=0.0)
        assert queue.next_task(store, 1, now=0.0) is None
        assert state(store) == "pending"


@pytest.mark.parametrize(("grades", "verdict"), [((7, 5), "passed"), ((6, 5), "failed")])
def test_demonstrations_wait_for_an_admins_grade(tmp_path, grades, verdict):
    items = [demonstration(i, gold={"demonstration": "Like this."}) for i in range(2)]
    with new_store(tmp_path, items=items, names=()) as store:
        people.add_labeler(store, "cara", screened=True, now=0.0)
        for text in ("One.", "Two."):
            judge(store, 1, Judgment(demonstration=text))
        assert queue.next_task(store, 1, now=0.0) is None
        assert screening.grade(store, 1).demonstrations is None
        waiting = screening.ungraded_demonstrations(store)
        assert sorted(one["demonstration"] for one in waiting) == ["One.", "Two."]
        assert {(one["labeler"], one["gold"]) for one in waiting} == {("cara", "Like this.")}
        for one, grade in zip(waiting, grades, strict=True):
            assert state(store) == "pending"
            screening.grade_demonstration(store, one["key"], grade)
        assert (state(store), screening.ungraded_demonstrations(store)) == (verdict, [])


def test_grades_and_states_that_do_not_exist_are_refused(screened):
    key = judge(screened, 2).key
    for value in (0, 8, True, "7", 6.5):
        with pytest.raises(InputError, match="Choose 1 to 7"):
            screening.grade_demonstration(screened, key, value)
    with pytest.raises(InputError, match="no demonstration of this key"):
        screening.grade_demonstration(screened, key, 7)
    with pytest.raises(InputError, match="Choose none, pending"):
        screening.set_state(screened, 1, "good")


def test_a_known_item_becomes_gold_in_its_own_order_of_completions(store):
    known = comparison(0)
    backwards = type(known)("comparison", known.prompt, known.completions[::-1], gold={"ranks": [0, 1, 2]})
    assert queue.add_batch(store, "gold", [backwards], now=0.0) == 0
    [(stored,)] = rows(store, "select gold from items where id = 1")
    assert json.loads(stored)["ranks"] == [2, 1, 0]


# ---- Numbers of the admin page


def test_an_empty_store_has_numbers(tmp_path):
    with new_store(tmp_path, items=0, names=()) as store:
        numbers = progress.overview(store, now=0.0)
    assert json.loads(json.dumps(numbers)) == numbers
    assert (numbers["items"], numbers["submitted"], numbers["median_seconds"]) == (0, 0, None)
    assert numbers["agreement"] == {"pairwise": None, "alpha": None, "items": 0}


def test_numbers_of_the_work(tmp_path):
    names = ("anna", "ben", "cara")
    with new_store(tmp_path, items=3, names=names, labelers_per_item=2) as store:
        queue.add_batch(store, "second", [demonstration(0)], priority=-1, now=0.0)
        rates = [Rating(7, {"lie": True, "rude": None}), Rating(2, {"lie": False}), Rating(1, {"lie": False})]
        judge(store, 1, ranking(seconds=10.0, ratings=rates), now=0.0)
        judge(store, 1, ranking(seconds=30.0), now=5000.0)
        judge(store, 1, Judgment(skipped="Why not.", seconds=999.0), now=5001.0)
        judge(store, 1, Judgment(demonstration="Done."), now=5002.0)
        judge(store, 2, ranking(seconds=50.0, ratings=rates), now=5003.0)
        judge(store, 2, Judgment(unrankable=True), now=5004.0)
        queue.next_task(store, 3, now=5005.0)
        numbers = progress.overview(store, now=5010.0)
    keys = ("items", "complete", "wanted", "judged", "submitted", "last_hour", "skipped", "unrankable", "revised")
    assert [numbers[key] for key in keys] == [4, 3, 7, 5, 6, 5, 1, 1, 0]
    assert (numbers["demonstrations"], numbers["held"], numbers["median_seconds"]) == (1, 1, 10.0)
    assert [(batch["name"], batch["complete"], batch["items"]) for batch in numbers["batches"]] == [
        *(("first", 2, 3), ("second", 1, 1))
    ]
    assert numbers["flags"] == {"lie": {"true": 2, "answered": 6}}
    assert numbers["ratings"] == {1: 2, 2: 2, 7: 2}
    anna, ben, cara = numbers["labelers"]
    assert (anna["submitted"], anna["skipped"], anna["last_hour"], anna["last"]) == (4, 1, 3, 5002.0)
    assert (ben["median_seconds"], cara["median_seconds"], cara["last"]) == (25.0, None, None)


def test_agreement_is_that_of_the_evaluation(tmp_path):
    """Krippendorff's alpha and pairwise agreement of rlhf.evaluation.agreement, on the rows that training reads."""
    names = ("anna", "ben", "cara")
    with new_store(tmp_path, items=6, names=names, labelers_per_item=3) as store:
        for labeler, orders in enumerate([(0, 1, 2), (0, 1, 1), (1, 0, 2)], 1):
            for i in range(6):
                judge_by_text(store, labeler, orders if i % 2 else (0, 1, 2))
        found = progress.overview(store, now=0.0)["agreement"]
        labels = [json.loads(text) for (text,) in rows(store, "select content from label_rows")]
    expected = agreement_report(labels)
    assert found["items"] == 6
    assert found["alpha"] == pytest.approx(expected["krippendorff_alpha"])
    assert found["pairwise"] == pytest.approx(expected["pairwise_agreement"])
    assert 0.5 < found["pairwise"]["mean"] < 1


def test_gold_agreement_is_measured_for_those_without_screening_too(screened):
    for _ in range(3):
        judge_by_text(screened, 2, (0, 1, 2))
    dora = progress.overview(screened, now=0.0)["labelers"][1]
    assert dora["gold"] == {"rankings": 1.0, "flags": None, "demonstrations": None, "n": 2, "ungraded": 0}


def test_every_item_is_listed_in_the_order_of_the_queue(store):
    people.add_labeler(store, "anna", now=0.0)
    queue.add_batch(store, "urgent", [demonstration(7)], priority=1, now=0.0)
    judge(store, 1, Judgment(skipped="No."))
    judge(store, 1)
    listed = progress.item_rows(store)
    assert [(row["batch"], row["kind"], row["judged"], row["skipped"]) for row in listed[:3]] == [
        *(("urgent", "demonstration", 0, 1), ("first", "comparison", 1, 0), ("first", "comparison", 0, 0))
    ]
    assert len(listed) == 6 and listed[1]["prompt"] == "Question 0?"
