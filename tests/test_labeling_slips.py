"""Slips of hands and networks in a real browser: none of them becomes a rank, or a judgment that nobody has sent."""

import json
import socket
import threading
import time

import pytest

pytest.importorskip("starlette")
pytest.importorskip("playwright")
import uvicorn
from label_browser import NEEDS_CHROMIUM
from playwright.sync_api import Page, Route

from rlhf.labeling import people
from rlhf.labeling.app import create_app
from rlhf.labeling.items import Item
from rlhf.labeling.pages import read_flags
from rlhf.labeling.queue import add_batch
from rlhf.labeling.store import Store

pytestmark = NEEDS_CHROMIUM


@pytest.fixture
def store(tmp_path):
    with Store(tmp_path / "labels.db") as store:
        add_batch(store, "words", [Item("comparison", f"Question {i}?", ["Red.", "Bread.", "Run."]) for i in range(3)])
        yield store


@pytest.fixture
def page(store: Store, browser):
    listening = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(create_app(store, read_flags()), log_config=None, log_level="error"))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
    thread.start()
    context = browser.new_context(viewport={"width": 1280, "height": 800})
    context.set_default_timeout(10_000)
    page = context.new_page()
    page.goto(f"http://127.0.0.1:{listening.getsockname()[1]}/login?token={people.add_labeler(store, 'anna')}")
    page.click("#login")
    page.wait_for_url("**/task/*")
    yield page
    context.close()
    server.should_exit = True
    thread.join()


def ranks(page: Page) -> list[str]:
    return page.eval_on_selector_all(".ranks input:checked", "all => all.map((one) => `${one.name} ${one.value}`)")


def slow(route: Route) -> None:
    time.sleep(0.3)
    route.continue_()


def number_of_judgments(store: Store) -> int:
    with store.read() as db:
        return db.execute("select count(*) from judgments").fetchone()[0]


def rank_all(page: Page) -> None:
    for i in range(3):
        page.focus(f"#completion-{i}")
        page.keyboard.press(str(i + 1))


def test_what_is_clicked_is_what_the_stages_read(page: Page, store: Store):
    wanted = {"Red.": (0, 7), "Run.": (1, 4), "Bread.": (1, 2)}
    texts = [page.get_attribute(f"#completion-{i}", "data-text") or "" for i in range(3)]
    for i, text in enumerate(texts):
        page.focus(f"#completion-{i}")
        page.keyboard.press(str([1, 3][wanted[text][0]]))
        page.keyboard.press(f"Shift+Digit{wanted[text][1]}")
        if text == "Bread.":
            page.check(f"#rating-{i} input[data-flag=hallucination]")
    page.keyboard.press("Control+Enter")
    page.click("#submit")
    page.wait_for_selector("#saved[data-state=sent]")
    with store.read() as db:
        found = [json.loads(text) for _, text in db.execute("select * from label_rows")]
    [row] = [one for one in found if "ranks" in one]
    assert dict(zip(row["completions"], zip(row["ranks"], row["ratings"], strict=True), strict=True)) == wanted
    flags = {one["completion"]: one["flags"]["hallucination"] for one in found if "rating" in one}
    assert flags == {"Red.": False, "Bread.": True, "Run.": False}


def test_a_tap_after_a_cancelled_drag_ranks_nothing(page: Page):
    chip, slot = page.locator("#chip-0").bounding_box(), page.locator("#slot-2").bounding_box()
    assert chip and slot
    page.mouse.move(chip["x"] + 9, chip["y"] + 9)
    page.mouse.down()
    page.mouse.move(chip["x"] + 9, slot["y"] + slot["height"] / 2, steps=4)
    page.dispatch_event("#chip-0", "pointercancel", {"pointerId": 1})
    page.mouse.up()
    page.click("#chip-0")
    assert ranks(page) == []


def test_arrows_of_a_number_pad_without_num_lock_are_no_ranks(page: Page):
    page.focus("#completion-0")
    page.keyboard.press("Numpad2")  # an arrow here, as without Num Lock
    assert ranks(page) == []
    page.evaluate(
        "document.activeElement.dispatchEvent(new KeyboardEvent('keydown', {key: '2', code: 'Numpad2', bubbles: true}))"
    )
    assert ranks(page) == ["rank-0 2"]


@pytest.mark.parametrize("keys", [["Control", "Enter"], ["Enter"]])
def test_a_key_that_is_held_opens_the_review_and_does_not_submit(page: Page, store: Store, keys: list[str]):
    rank_all(page)
    page.focus("#review")
    for key in [*keys, "Enter", "Enter"]:
        page.keyboard.down(key)
    page.wait_for_timeout(500)
    assert page.is_visible("#review-dialog") and number_of_judgments(store) == 0


def test_only_the_server_can_acknowledge_a_judgment(page: Page, store: Store):
    rank_all(page)
    page.wait_for_selector("#saved[data-state=saved]")
    address = page.url
    page.route(address, lambda route: route.fulfill(status=200, content_type="text/html", body="Log in to the Wi-Fi"))
    page.keyboard.press("Control+Enter")
    page.keyboard.press("Enter")
    page.wait_for_timeout(500)
    assert page.url == address and page.get_attribute("#saved", "data-state") == "failed"
    page.unroute(address)
    page.wait_for_url(lambda url: url != address)
    assert number_of_judgments(store) == 1


def test_two_clicks_on_log_in_send_the_link_once(page: Page, store: Store):
    sent: list[str] = []
    page.on("request", lambda request: sent.append(request.method))
    address = page.url
    page.click("#logout")
    page.goto(f"{address.partition('/task')[0]}/login?token={people.new_link(store, 'anna')}")
    sent.clear()
    page.route("**/login", slow)
    page.dblclick("#login", delay=100)
    page.wait_for_url("**/task/*")
    assert sent.count("POST") == 1


def test_an_answer_does_not_wait_for_a_draft_that_failed(page: Page, store: Store):
    page.route("**/draft", lambda route: route.fulfill(status=401, content_type="application/json", body="{}"))
    rank_all(page)
    page.wait_for_selector("#trouble:not([hidden])")
    address, began = page.url, time.monotonic()
    page.keyboard.press("Control+Enter")
    page.keyboard.press("Enter")
    page.wait_for_url(lambda url: url != address)
    assert number_of_judgments(store) == 1 and time.monotonic() - began < 9
