"""Hostile input to the labelers' pages: nothing runs, nothing leaks, and the refusal says what to do."""

import re
import threading
from html.parser import HTMLParser
from pathlib import Path

import pytest

pytest.importorskip("starlette")
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from label_pages import Browser, ranked
from starlette.testclient import TestClient

from rlhf.labeling import people, queue
from rlhf.labeling.app import create_app
from rlhf.labeling.guard import MAX_BODY
from rlhf.labeling.items import Item
from rlhf.labeling.safe_text import LONGEST, shown, shown_line, shown_plain
from rlhf.labeling.store import Store

TAGS = "p br em strong s code pre span ul ol li blockquote hr h4 h5 h6 table thead tbody tr th td"
ALLOWED_TAGS = frozenset(TAGS.split(" "))
ALLOWED_ATTRIBUTES = {"class", "title", "tabindex", "start"}
HOSTILE = [
    "<script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    "<svg/onload=alert(1)>",
    "![pixel](https://evil.example/p.png)",
    '![x](x" onerror="alert(1))',
    "[click](javascript:alert(1))",
    "[click](JaVaScRiPt&colon;alert(1))",
    "[click](data:text/html,<script>alert(1)</script>)",
    '[click](https://evil.example "title\' onclick=alert(1)")',
    '<https://evil.example/?q="onclick=alert(1)>',
    "[a]: javascript:alert(1)\n\n[a]",
    '```js" onload=alert(1)\nalert(1)\n```',
    "`<script>`",
    "| a |\n|:-:|\n| <b onclick=alert(1)> |",
    "</div></main><form action=https://evil.example><input name=csrf>",
    "<style>*{display:none}</style>",
    "<!-- <script> --> {{ csrf }} {% raw %}",
    "\u202egnp.exe",
    "pass\u200bword",
    "&#x202e;&lt;script&gt;",
]


class Tags(HTMLParser):
    def __init__(self, html: str):
        super().__init__(convert_charrefs=True)
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data


def check_is_harmless(html: str) -> None:
    for tag, attributes in Tags(html).tags:
        assert tag in ALLOWED_TAGS, tag
        assert set(attributes) <= ALLOWED_ATTRIBUTES, attributes
        assert not re.search("script|evil|on[a-z]+=", " ".join(str(one) for one in attributes.values()))


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_texts_become_text(text: str):
    for html in (shown(text), shown_plain(text), shown_line(text)):
        check_is_harmless(str(html))


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.lists(st.sampled_from([*HOSTILE, *"<>&\"'`*_[]()!|#-\n \\~", "\0", "\ud800", "http://a.b", "> ", "1. "])).map(
        "".join
    )
)
def test_no_mixture_of_hostile_texts_makes_another_tag(text: str):
    check_is_harmless(str(shown(text)))


def test_addresses_of_images_and_links_are_shown_and_nothing_is_left_out():
    html = str(
        shown("![cat](https://a.example/c.png) [docs](https://b.example 'a title')\n\n[c]: https://d.example\n\n<i>")
    )
    text = Tags(html).text
    for part in (
        "[image: cat]",
        "https://a.example/c.png",
        "docs",
        "https://b.example",
        "a title",
        "[c]: https://d.example",
        "<i>",
    ):
        assert part in text


def test_cells_beyond_the_columns_of_a_table_are_shown():
    for mark in ("", "> ", "- "):
        table = f"{mark}| a | b |\n{mark.replace('-', ' ')}|---|---|\n{mark.replace('-', ' ')}| 1 | 2 | hidden |"
        assert "hidden" in shown(table) and "<table>" not in shown(table)
        assert "<table>" in shown(table.replace("| hidden |", "|"))


@pytest.mark.parametrize(
    ("text", "mark"),
    [
        ("a\u202eb", "U+202E"),
        ("a\u200bb", "U+200B"),
        ("\ufeffa", "U+FEFF"),
        ("a\u2066b", "U+2066"),
        ("\U000e0041", "U+E0041"),
        ("a\x00b", "U+0000"),
        ("a\x1b[31mb", "U+001B"),
        ("a\ud800b", "U+D800"),
        ("\u3164", "U+3164"),
        ("a\u200db", "U+200D"),
    ],
)
def test_invisible_and_right_to_left_characters_are_shown_as_marks(text: str, mark: str):
    for html in (shown(text), shown_plain(text), shown_line(text), shown(f"`{text}`"), shown(f"```\n{text}\n```")):
        assert f">{mark}</span>" in html and text not in html


def test_scripts_and_emoji_that_need_joiners_keep_them():
    for text in ("👩‍💻", "می‌خواهم", "क्‍ष", "שלום"):
        assert text in shown(text)


@pytest.mark.parametrize("piece", ["[", "> ", "**a*", "`a``", "[a](", "[a]: b\n", "~~a", "<a", "\u200b"])
def test_a_text_made_to_be_slow_is_shown_soon(piece: str):
    for length in (LONGEST // 10, 10 * LONGEST):
        assert len(shown(piece * (length // len(piece)))) >= length / 2


def test_what_is_nested_too_deep_for_the_parser_is_shown_all_the_same():
    text = "\n".join(" " * 2 * i + f"- item {i}" for i in range(200))
    assert "item 199" in shown(text) and "deep" in shown("> " * 200 + "deep")


@pytest.fixture
def store(tmp_path: Path):
    with Store(tmp_path / "labels.db") as store:
        yield store


def add_hostile(store: Store) -> None:
    text = "\n\n".join(text for text in HOSTILE)
    queue.add_batch(
        store, "<b>batch</b>\u202e", [Item("comparison", f"P {text}", [f"A {text}", f"B {text}", f'"C" {text}'])]
    )


def test_a_page_of_hostile_texts_has_no_tag_attribute_or_address_of_theirs(store: Store):
    add_hostile(store)
    page = Browser(store).get("/")
    for tag, attributes in Tags(page.text).tags:
        assert tag not in ("img", "svg", "style", "iframe", "object", "base")
        assert not [name for name in attributes if name.startswith("on") or name == "style"], attributes
        assert tag != "script" or attributes == {"src": "/static/label.js", "defer": None}
        for name in ("href", "src", "action"):
            value = attributes.get(name)
            assert value is None or value.startswith(("/", "#")), value
    assert "\u202e" not in re.sub('data-(text|draft)="[^"]*"', "", page.text)


@pytest.mark.parametrize(
    "path", ["/", "/login", "/nowhere", "/task/x", "/static/label.js", "/static/../app.py", "/health"]
)
def test_every_answer_has_the_policy_that_forbids_scripts_of_others(store: Store, path: str):
    headers = TestClient(create_app(store, [])).get(path).headers
    policy = headers["content-security-policy"]
    assert "default-src 'none'" in policy and "unsafe" not in policy and "frame-ancestors 'none'" in policy
    assert headers["x-content-type-options"] == "nosniff" and headers["referrer-policy"] == "no-referrer"
    assert headers["cache-control"] == ("no-cache" if path == "/static/label.js" else "no-store") or "static" in path


def test_a_bug_answers_with_the_policy_and_without_a_traceback(store: Store, monkeypatch: pytest.MonkeyPatch):
    anna = Browser(store)
    monkeypatch.setattr(queue, "history", lambda *args: 1 / 0)
    response = anna.get("/history")
    assert response.status_code == 500 and "Zero" not in response.text and "content-security-policy" in response.headers


IDS = [
    "../../etc/passwd",
    "..%2f..%2fetc%2fpasswd",
    "%00",
    "1",
    "0 or 1=1",
    "' or '1'='1",
    "x' union select 1--",
    "a" * 5000,
    "%ff",
]


@pytest.mark.parametrize("key", IDS)
def test_keys_that_are_paths_or_sql_are_not_found(store: Store, key: str):
    queue.add_batch(store, "batch", [Item("comparison", "Q", ["a", "b"])])
    anna = Browser(store)
    anna.task()
    assert anna.get(f"/task/{key}").status_code == 404
    assert anna.send(f"/task/{key}", ranked(0, 1)).status_code == 404
    assert anna.send(f"/task/{key}/draft", {"draft": {"revision": 0}}, "PUT").status_code == 404
    assert anna.form("/undo", key=key).status_code == 404
    with store.read() as db:
        assert db.execute("select count(*) from judgments").fetchone()[0] == 0


@pytest.mark.parametrize(
    "path", ["/static/../app.py", "/static/%2e%2e/app.py", "/static/..%2fapp.py", "/static//etc/passwd", "/static/"]
)
def test_static_files_are_those_of_the_folder(store: Store, path: str):
    assert TestClient(create_app(store, [])).get(path).status_code == 404


def test_another_labelers_task_looks_like_one_that_does_not_exist(store: Store):
    queue.add_batch(store, "batch", [Item("comparison", "Hidden from Ben", ["a", "b"])], labelers_per_item=2)
    anna, ben = Browser(store, "anna"), Browser(store, "ben")
    path = anna.task()
    for mine, none in (
        (ben.get(path), ben.get("/task/unknown")),
        (ben.send(path, ranked(0, 1)), ben.send("/task/unknown", ranked(0, 1))),
        (ben.form("/undo", key=path.removeprefix("/task/")), ben.form("/undo", key="unknown")),
    ):
        assert (mine.status_code, mine.text) == (none.status_code, none.text) and mine.status_code == 404
        assert "Hidden" not in mine.text


@pytest.mark.parametrize("token", ["", "x", "a" * 100_000, "' or 1=1 --", "\0", "\u202e", "../login"])
def test_forged_tokens_do_not_log_in(store: Store, token: str):
    people.add_labeler(store, "anna")
    response = TestClient(create_app(store, [])).post("/login", data={"token": token})
    assert response.status_code == 403 and "set-cookie" not in response.headers


def test_tokens_expire_and_a_new_link_ends_the_old(store: Store):
    client = TestClient(create_app(store, []))
    old = people.add_labeler(store, "anna", now=0)
    assert client.post("/login", data={"token": old}).status_code == 403
    replaced = people.new_link(store, "anna")
    people.new_link(store, "anna")
    assert client.post("/login", data={"token": replaced}).status_code == 403


def test_guessing_links_is_refused_after_a_while_and_locks_nobody_out(store: Store):
    client = TestClient(create_app(store, []))
    token = people.add_labeler(store, "anna")
    for guess in range(10):
        client.post("/login", data={"token": f"guess {guess}"})
    refused = client.post("/login", data={"token": "guess 10"})
    assert refused.status_code == 429 and "Wait a minute" in refused.text
    assert client.post("/login", data={"token": token}, follow_redirects=False).status_code == 303


@pytest.mark.parametrize("cookie", ["", "x", "a" * 3000, "%00", "' or 1=1 --"])
def test_forged_sessions_are_sent_to_the_log_in(store: Store, cookie: str):
    Browser(store)
    client = TestClient(create_app(store, []), follow_redirects=False)
    client.cookies.set("label", cookie)
    assert client.get("/").headers["location"] == "/login"
    assert client.post("/task/x", json={}).status_code == 401
    assert client.get("/session", headers={"Accept": "application/json"}).status_code == 401


def test_writing_needs_the_key_of_the_session(store: Store):
    queue.add_batch(store, "batch", [Item("comparison", "Q", ["a", "b"])], labelers_per_item=2)
    anna, ben = Browser(store, "anna"), Browser(store, "ben")
    path = anna.task()
    for csrf in ("none", ben.csrf, "\x7f"):
        assert anna.send(path, ranked(0, 1), csrf=csrf).status_code == 403
    for form in ("/undo", "/logout"):
        assert anna.client.post(form).status_code == anna.client.post(form, data={"csrf": ben.csrf}).status_code == 403
    assert anna.send(path, ranked(0, 1)).json()["new"]


@pytest.mark.parametrize("site", ["cross-site", "same-site"])
def test_requests_of_other_sites_are_refused(store: Store, site: str):
    token = people.add_labeler(store, "anna")
    client = TestClient(create_app(store, []))
    refused = client.post("/login", data={"token": token}, headers={"Sec-Fetch-Site": site})
    assert refused.status_code == 403 and "Another site" in refused.text
    assert client.post("/login", data={"token": token}).status_code == 200


def test_a_form_cannot_pass_for_the_pages_json(store: Store):
    queue.add_batch(store, "batch", [Item("comparison", "Q", ["a", "b"])])
    anna = Browser(store)
    body = '{"ranks": [0, 1], "revision": 0}'
    refused = anna.client.post(anna.task(), content=body, headers={"X-CSRF": anna.csrf, "Content-Type": "text/plain"})
    assert refused.status_code == 415


BAD_BODIES = [
    (b"", 400),
    (b"[1]", 400),
    (b"{", 400),
    (b"\xff\xfe", 400),
    (b'{"ranks": NaN}', 400),
    (b'{"notes": "\\ud800"}', 400),
    (b"[" * 100_000, 400),
    (b'{"ranks": [0, 1], "seconds": 1e999}', 422),
    (b'{"ranks": [0, 1], "seconds": -1}', 422),
    (b'{"ranks": [0, 99999999999999999999999]}', 422),
    (b'{"ranks": "01"}', 422),
    (b'{"ranks": [true, false]}', 422),
    (b'{"ranks": [0, 1], "admin": true}', 422),
    (b'{"ranks": [0, 1], "notes": "a\\u0000b"}', 422),
    (b'{"ranks": [0, 1], "revision": "0"}', 422),
    (b'{"ranks": [0, 1], "ratings": [{"rating": 8}, {}]}', 422),
    (b'{"ranks": [0, 1], "ratings": [{"flags": {"x": []}}, {}]}', 422),
    (b'{"skipped": ""}', 422),
    (b'{"ranks": [0, 1], "revision": 99}', 409),
    (b'{"ranks": [0, 1], "revision": ' + b"9" * 40 + b"}", 422),
]


def test_seconds_of_400_digits_are_a_day_at_most(store: Store):
    queue.add_batch(store, "batch", [Item("comparison", "Q", ["a", "b"])])
    anna = Browser(store)
    path = anna.task()
    assert anna.send(f"{path}/draft", {"draft": {}, "active": 10**400}, "PUT").status_code == 200
    assert anna.send(f"{path}/draft", {"draft": {}, "active": -1}, "PUT").status_code == 422


@pytest.mark.parametrize(("body", "status"), BAD_BODIES)
def test_a_judgment_that_makes_no_sense_is_refused_and_not_kept(store: Store, body: bytes, status: int):
    queue.add_batch(store, "batch", [Item("comparison", "Q", ["a", "b"])])
    anna = Browser(store)
    path = anna.task()
    headers = {"X-CSRF": anna.csrf, "Content-Type": "application/json"}
    refused = anna.client.post(path, content=body, headers=headers)
    assert refused.status_code == status and len(refused.json()["error"]) > 10
    draft = anna.client.put(f"{path}/draft", content=b'{"draft": ' + body + b"}", headers=headers)
    assert draft.status_code in (200, 400, 409, 422) and anna.get(path).status_code == 200
    with store.read() as db:
        assert db.execute("select count(*) from judgments").fetchone()[0] == 0


def test_notes_of_a_megabyte_are_refused_before_they_are_read(store: Store):
    queue.add_batch(store, "batch", [Item("comparison", "Q", ["a", "b"])])
    anna = Browser(store)
    path = anna.task()
    assert anna.send(path, ranked(0, 1, notes="x" * 20_000)).status_code == 422
    huge = anna.send(path, ranked(0, 1, notes="x" * MAX_BODY))
    assert huge.status_code == 413 and "1 MB" in huge.json()["error"]
    streamed = anna.client.post(
        path,
        content=(b"x" * 65536 for _ in range(40)),  # without a length in advance
        headers={"X-CSRF": anna.csrf, "Content-Type": "application/json"},
    )
    assert streamed.status_code == 413
    assert anna.send(path, ranked(0, 1)).json()["new"]


def test_the_same_judgment_from_many_tabs_at_once_is_there_once(store: Store):
    queue.add_batch(store, "batch", [Item("comparison", "Q", ["a", "b"])])
    anna = Browser(store)
    path, statuses = anna.task(), []
    jobs = [
        threading.Thread(target=lambda: statuses.append(anna.send(path, ranked(1, 0)).json()["new"])) for _ in range(8)
    ]
    for job in jobs:
        job.start()
    for job in jobs:
        job.join()
    assert sorted(statuses) == [False] * 7 + [True]
    with store.read() as db:
        assert db.execute("select count(*) from judgments").fetchone()[0] == 1


def test_different_judgments_at_once_keep_one_and_refuse_the_others(store: Store):
    queue.add_batch(store, "batch", [Item("comparison", "Q", ["a", "b"])])
    anna = Browser(store)
    path, statuses = anna.task(), []
    orders = [(0, 1), (1, 0), (0, 0)]
    jobs = [
        threading.Thread(target=lambda o=o: statuses.append(anna.send(path, ranked(*o)).status_code)) for o in orders
    ]
    for job in jobs:
        job.start()
    for job in jobs:
        job.join()
    assert sorted(statuses) == [200, 409, 409]


@pytest.mark.parametrize("path", ["/admin", "/admin/progress.csv"])
def test_admin_pages_are_for_admins(store: Store, path: str):
    anna = Browser(store)
    refused = anna.get(path)
    assert refused.status_code == 403 and "for admins" in refused.text
    assert TestClient(create_app(store, []), follow_redirects=False).get(path).headers["location"] == "/login"


@pytest.mark.parametrize(
    "path", ["/admin/labelers", "/admin/labelers/1/revoke", "/admin/labelers/1/link", "/admin/demonstrations/x"]
)
def test_labelers_cannot_do_what_admins_do(store: Store, path: str):
    anna = Browser(store)
    assert anna.form(path, name="eve", role="admin").status_code == 403
    assert [one.name for one in people.labelers(store)] == ["anna"] and not people.find_labeler(store, "anna").revoked
