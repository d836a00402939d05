"""The labelers' pages over HTTP: log-in, tasks, drafts, judgments, undo, history, administration."""

import csv
import re
import socket
import sqlite3
from pathlib import Path

import pytest

pytest.importorskip("starlette")
from label_pages import Browser, ranked
from starlette.testclient import TestClient

from rlhf.errors import InputError
from rlhf.labeling import people, queue, screening
from rlhf.labeling.app import create_app
from rlhf.labeling.arguments import LabelArguments
from rlhf.labeling.guard import FailedLogIns
from rlhf.labeling.items import Item
from rlhf.labeling.pages import read_flags
from rlhf.labeling.serving import listen
from rlhf.labeling.store import Store

QUESTION = Item(
    "comparison", "Which word is a color?", ["Red.", "Bread.", "Run."], ["secret-a", "secret-b", "secret-c"]
)
SECOND = Item("comparison", [{"role": "user", "content": "Second?"}], ["One.", "Two."])
TO_WRITE = Item("demonstration", "Write a haiku.", [])


@pytest.fixture
def store(tmp_path: Path):
    with Store(tmp_path / "labels.db") as store:
        yield store


def add(store: Store, *items: Item, **options) -> None:
    queue.add_batch(store, "batch", items or [QUESTION, SECOND, TO_WRITE], **options)


def test_a_link_logs_in_once_and_looking_at_it_does_not_use_it_up(store: Store):
    token = people.add_labeler(store, "anna")
    client = TestClient(create_app(store, read_flags()), follow_redirects=False)
    for _ in range(2):
        assert token in client.get(f"/login?token={token}").text
    response = client.post("/login", data={"token": token})
    assert response.status_code == 303
    cookie = response.headers["set-cookie"].lower()
    assert "httponly" in cookie and "samesite=lax" in cookie and "secure" not in cookie
    again = client.post("/login", data={"token": token})
    assert again.status_code == 403 and "used before" in again.text and "set-cookie" not in again.headers


def test_behind_tls_the_cookie_is_secure_and_bound_to_the_host(store: Store):
    client = TestClient(create_app(store, [], https=True), base_url="https://labels.example", follow_redirects=False)
    response = client.post("/login", data={"token": people.add_labeler(store, "anna")})
    assert response.headers["set-cookie"].startswith("__Host-label=") and "Secure" in response.headers["set-cookie"]
    assert client.get("/").status_code == 200  # logged in; there is nothing to do
    assert "max-age" in response.headers["strict-transport-security"]


def test_logging_out_ends_the_session_on_the_server_too(store: Store):
    anna = Browser(store)
    cookies = dict(anna.client.cookies)
    assert anna.form("/logout").headers["location"] == "/login"
    anna.client.cookies.update(cookies)
    assert anna.get("/history").headers["location"] == "/login"


def test_a_task_shows_prompt_and_completions_but_no_source_id_or_gold(store: Store):
    add(store, QUESTION)
    page = Browser(store).get("/").text
    for text in (QUESTION.prompt, *QUESTION.completions, "Fails the instruction", "1 worst"):
        assert str(text) in page
    assert "secret" not in page and "gold" not in page


def test_no_page_names_the_batch_which_may_name_the_systems_or_gold(store: Store):
    queue.add_batch(store, "sft ppo", [QUESTION])
    anna = Browser(store)
    path = anna.task()
    assert "sft ppo" not in anna.get(path).text
    anna.send(path, ranked(0, 1, 2))
    assert not any("sft ppo" in anna.get(page).text for page in (path, "/history", "/"))


def test_reloading_keeps_the_task_its_order_and_its_draft(store: Store):
    add(store)
    anna = Browser(store)
    path = anna.task()
    draft = {"ranks": [0, None, 1], "notes": 'half "done" & <b>', "revision": 0}
    assert anna.send(f"{path}/draft", {"draft": draft, "active": 12.0}, "PUT").json() == {"saved": True}
    pages = [Browser(store, new=False).get(path).text for _ in range(2)]
    orders = [sorted(QUESTION.completions, key=page.index) for page in pages]
    assert orders[0] == orders[1] and anna.task() == path
    assert anna.draft(path) == draft and 'data-seconds="12"' in pages[0]


def test_a_judgment_sent_twice_is_there_once_and_leads_on(store: Store):
    add(store)
    anna = Browser(store)
    path = anna.task()
    first, again = (anna.send(path, ranked(0, 1, 1)).json() for _ in range(2))
    assert first["new"] and not again["new"] and first["next"] == again["next"] != path
    with store.read() as db:
        assert db.execute("select count(*) from judgments").fetchone()[0] == 1


def test_another_judgment_from_an_old_page_is_a_conflict_and_changes_nothing(store: Store):
    add(store)
    anna = Browser(store)
    path = anna.task()
    anna.send(path, ranked(0, 1, 2))
    refused = anna.send(path, ranked(2, 1, 0))
    assert refused.status_code == 409 and "Reload" in refused.json()["error"]
    assert anna.draft(path)["ranks"] == [0, 1, 2]
    stale = anna.send(f"{path}/draft", {"draft": {"revision": 0}}, "PUT")
    assert stale.status_code == 409


@pytest.mark.parametrize("content", [{}, {"ranks": [0, None, 1]}, {"ranks": [0, 1]}, {"ranks": None}])
def test_an_order_that_nobody_touched_is_refused(store: Store, content: dict):
    add(store, QUESTION)
    anna = Browser(store)
    refused = anna.send(anna.task(), content | {"revision": 0})
    assert refused.status_code == 422 and "Rank each" in refused.json()["error"]


def test_undo_opens_the_last_task_with_its_judgment_and_submitting_replaces_it(store: Store):
    add(store)
    anna = Browser(store)
    path = anna.task()
    anna.send(path, ranked(0, 1, 2, notes="first thought"))
    assert anna.form("/undo").headers["location"] == path
    page = anna.get(path).text
    assert "replaces your earlier answer" in page and 'data-revision="1"' in page and "first thought" in page
    assert anna.send(path, ranked(0, 0, 1, revision=1)).json()["new"]
    with store.read() as db:
        assert db.execute("select count(*), max(notes) from judgments").fetchone()[:] == (1, "")


def test_history_lists_what_was_judged_and_opens_it_again(store: Store):
    add(store)
    anna = Browser(store)
    path = anna.task()
    anna.send(path, {"skipped": "I do not understand the prompt", "revision": 0})
    page = anna.get("/history").text
    assert "Which word is a color?" in page and "skipped: I do not understand" in page
    assert anna.form("/undo", key=path.removeprefix("/task/")).headers["location"] == path


def test_a_demonstration_has_an_editor_and_its_draft_survives(store: Store):
    add(store, TO_WRITE)
    anna = Browser(store)
    path = anna.task()
    page = anna.get(path).text
    assert 'id="demonstration"' in page and 'id="board"' not in page
    anna.send(f"{path}/draft", {"draft": {"demonstration": "An old pond", "revision": 0}}, "PUT")
    assert anna.draft(path)["demonstration"] == "An old pond"
    assert anna.send(path, {"demonstration": " ", "revision": 0}).status_code == 422
    assert anna.send(path, {"demonstration": "An old pond", "revision": 0}).json() == {"next": "/", "new": True}
    assert "Nothing to do now" in anna.get("/").text


def test_a_labeler_in_screening_is_told_what_comes_next(store: Store):
    anna = Browser(store, screened=True)
    labeler = people.find_labeler(store, "anna")
    assert "screening" in anna.get("/").text
    screening.set_state(store, labeler.id, "failed")
    assert "The screening has ended" in anna.get("/").text


def test_revoked_labelers_are_out_at_once(store: Store):
    add(store)
    anna = Browser(store)
    path = anna.task()
    people.revoke(store, "anna")
    assert anna.send(path, ranked(0, 1, 2)).status_code == 401
    assert anna.get("/history").headers["location"] == "/login"


def test_a_page_from_before_a_new_log_in_gets_the_new_key(store: Store):
    add(store)
    old = Browser(store)
    path, stale = old.task(), old.csrf
    new = Browser(store, new=False)
    old.client.cookies = new.client.cookies
    assert old.send(path, ranked(0, 1, 2), csrf=stale).status_code == 403
    assert old.send(path, ranked(0, 1, 2), csrf=old.get("/session").json()["csrf"]).json()["new"]


def test_instructions_of_the_store_replace_those_of_the_package(store: Store):
    anna = Browser(store)
    assert "What makes a completion good" in anna.get("/instructions").text
    store.set_setting("instructions", "# Ours\n\nBe *kind*. <script>x</script>")
    page = anna.get("/instructions").text
    assert "Be <em>kind</em>. &lt;script&gt;" in page and "What makes" not in page


def test_health_needs_no_session(store: Store):
    assert TestClient(create_app(store, [])).get("/health").text == "ok"


def test_a_store_that_fails_is_a_503_that_asks_to_try_again(store: Store, monkeypatch: pytest.MonkeyPatch):
    add(store)
    anna = Browser(store)
    path = anna.task()

    def locked(*args, **kwargs):
        raise sqlite3.OperationalError("database is locked")

    monkeypatch.setattr(queue, "submit", locked)
    response = anna.send(path, ranked(0, 1, 2))
    assert response.status_code == 503 and response.headers["retry-after"] and "not saved" in response.json()["error"]


def test_log_ins_that_fail_are_limited_by_address_and_in_all_for_a_minute():
    failed = FailedLogIns(per_address=2, in_all=3)
    failed.add("a", now=0)
    failed.add("a", now=1)
    assert failed.must_wait("a", now=2) and not failed.must_wait("b", now=2)
    failed.add("c", now=2)
    assert failed.must_wait("b", now=3)
    assert not failed.must_wait("a", now=61.5)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("- a", "no mapping"),
        ("rude: {}", "no label"),
        ("a b: {label: x}", "letters"),
        ("rude: {label: x, hlep: y}", "hlep"),
        ("rude: {label: x, may_not_apply: 3}", "may_not_apply"),
        ("{", "cannot be read"),
    ],
)
def test_wrong_flags_are_named(tmp_path: Path, text: str, message: str):
    path = tmp_path / "flags.yaml"
    path.write_text(text)
    with pytest.raises(InputError, match=message):
        read_flags(path)


def test_flags_of_a_file_are_asked_and_others_refused(store: Store, tmp_path: Path):
    path = tmp_path / "flags.yaml"
    path.write_text("spicy: {label: Too spicy, help: It burns., may_not_apply: true}")
    add(store, SECOND)
    anna = Browser(store, flags=read_flags(path))
    path = anna.task()
    assert "Too spicy" in anna.get(path).text
    rating = {"rating": 4, "flags": {"opinion": True}, "notes": ""}
    refused = anna.send(path, ranked(0, 1, ratings=[rating, rating]))
    assert refused.status_code == 422 and "opinion" in refused.json()["error"]


def test_an_admin_invites_with_a_link_that_is_shown_once(store: Store):
    admin = Browser(store, "root", role="admin")
    page = admin.form("/admin/labelers", name="<i>Ben</i>", role="labeler", screened="on").text
    [link] = re.findall(r'id="link" value="([^"]+)"', page)
    assert link.startswith("http://testserver/login?token=") and "&lt;i&gt;Ben" in page and "<i>" not in page
    assert link not in admin.get("/admin").text
    ben = TestClient(create_app(store, []))
    assert ben.post("/login", data={"token": link.partition("=")[2]}).status_code == 200
    assert people.find_labeler(store, "<i>Ben</i>").screening == "pending"
    assert "There is a labeler" in admin.form("/admin/labelers", name="<i>Ben</i>").text


def test_an_admin_revokes_and_lets_in_again(store: Store):
    admin, ben = Browser(store, "root", role="admin"), Browser(store, "ben")
    number = people.find_labeler(store, "ben").id
    assert admin.form(f"/admin/labelers/{number}/revoke").status_code == 303
    assert ben.get("/history").status_code == 303 and "revoked" in admin.get("/admin").text
    assert 'id="link"' in admin.form(f"/admin/labelers/{number}/link").text
    assert admin.form("/admin/labelers/999/revoke").status_code == 404
    own = people.find_labeler(store, "root").id
    assert "cannot revoke yourself" in admin.form(f"/admin/labelers/{own}/revoke").text


def test_an_admin_grades_the_demonstrations_of_screening(store: Store):
    add(store, Item("demonstration", "Write a haiku.", gold={"demonstration": "An old silent pond"}))
    admin, anna = Browser(store, "root", role="admin"), Browser(store, screened=True)
    path = anna.task()
    anna.send(path, {"demonstration": "A pond.", "revision": 0})
    page = admin.get("/admin").text
    assert "A pond." in page and "An old silent pond" in page
    action = path.replace("/task/", "/admin/demonstrations/")
    assert admin.form(action, grade="8").status_code == 422 == admin.form(action).status_code
    assert admin.form(action, grade="7").status_code == 303
    assert people.find_labeler(store, "anna").screening == "passed" and "A pond." not in admin.get("/admin").text


def test_the_admin_page_shows_progress_agreement_gold_and_flags(store: Store):
    add(store, SECOND, labelers_per_item=2)
    admin, anna, ben = Browser(store, "root", role="admin"), Browser(store), Browser(store, "ben")
    rating = {"rating": 6, "flags": {"opinion": True, "hallucination": False}, "notes": ""}
    for browser in (anna, ben):
        path = browser.task()
        page = browser.get(path).text
        ranks = (0, 1) if page.index("One.") < page.index("Two.") else (1, 0)
        assert browser.send(path, ranked(*ranks, ratings=[rating, rating], seconds=95)).json()["new"]
    page = admin.get("/admin").text
    text = " ".join(re.sub("<[^>]*>", " ", page).split())
    for part in (
        "Items complete 1 of 1",
        "Judgments 2",
        "Time per item 1:35",
        "Pairwise agreement 100 %",
        "Opinion 4 4",
    ):
        assert part in text, part


def test_the_csv_of_labelers_runs_nothing_in_a_spreadsheet(store: Store):
    admin = Browser(store, "root", role="admin")
    people.add_labeler(store, '=HYPERLINK("https://evil.example","x")')
    response = admin.get("/admin/progress.csv")
    rows = list(csv.DictReader(response.text.splitlines()))
    assert response.headers["content-type"].startswith("text/csv")
    assert [row["name"] for row in rows] == ["root", '\'=HYPERLINK("https://evil.example","x")']
    assert {"median_seconds", "last_hour", "gold_rankings"} <= rows[0].keys()


def test_answers_leave_at_once_and_not_after_40_ms():
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    listening = listen(LabelArguments(run="runs/x", port=port))
    with listening, socket.create_connection(("127.0.0.1", port)), listening.accept()[0] as connection:
        assert connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
