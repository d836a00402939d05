"""Labelers in a real browser: by keyboard alone, by mouse and by touch; what is typed outlives servers and sessions."""

import json
import re
import sqlite3
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("starlette")
pytest.importorskip("playwright")
from label_browser import DESKTOP, NEEDS_CHROMIUM, PHONE, ROOT, Server, command, environment, watched_page
from playwright.sync_api import Page, expect

from rlhf.labeling.items import Item
from rlhf.labeling.queue import add_batch
from rlhf.labeling.store import Store

pytestmark = NEEDS_CHROMIUM

FIRST = Item("comparison", "Which word is a color?", ["Red.", "Bread.", "Run."])
SECOND = Item("comparison", [{"role": "user", "content": "How are you?"}], ["Well.", "I am a model."])
TO_WRITE = Item("demonstration", "Write a haiku about the sea.")
LONG = Item("comparison", "Tell me all.", ["\n\n".join(f"Part {i}. " + "Much more. " * 9 for i in range(30)), "No."])
OFFLINE = "ERR_CONNECTION|ERR_EMPTY_RESPONSE|ERR_SOCKET"


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    with Store(tmp_path / "labels.db") as store:
        add_batch(store, "words", [FIRST, SECOND, TO_WRITE])
    server = Server(tmp_path / "labels.db")
    yield server
    server.kill()


def add(server: Server, *items: Item, priority: int = 1) -> None:
    """Adds items that come before all others."""
    with Store(server.store) as store:
        add_batch(store, f"batch {priority}", items, priority=priority)


def begin(page: Page, server: Server, name: str = "anna") -> None:
    """Logs in and waits for the first item."""
    page.goto(server.link(name))
    page.click("#login")
    page.wait_for_url("**/task/*")


def index(page: Page, text: str) -> int:
    """Returns where a completion is shown: the order is random."""
    return page.eval_on_selector_all("article.completion", "(all) => all.map((a) => a.dataset.text)").index(text)


def letters(page: Page, rank: int) -> str:
    """Returns the completions in a row of the ranking."""
    return "".join(sorted(page.locator(f"#slot-{rank} .chip .letter").all_inner_texts()))


def tab_to(page: Page, selector: str) -> None:
    for _ in range(60):
        page.keyboard.press("Tab")
        if page.evaluate("(selector) => document.activeElement.matches(selector)", selector):
            return
    raise AssertionError(f"{selector} cannot be reached by Tab")


def shows(page: Page, selector: str, text: str) -> None:
    """Waits for a text and for the page's script: what is typed before the script runs is typed into nothing."""
    expect(page.locator(selector)).to_contain_text(text)
    page.wait_for_load_state()


def item_is(page: Page, number: int) -> None:
    shows(page, "#item-number", f"Item {number}")


def rank_all(page: Page, ranks: str) -> None:
    """Ranks the completions in their order, by keyboard."""
    for rank in ranks:
        page.keyboard.press("j")
        page.keyboard.press(rank)


def submit(page: Page) -> None:
    """Opens the review and confirms it, by keyboard."""
    page.keyboard.press("Control+Enter")
    page.keyboard.press("Enter")


def export(server: Server, kind: str = "comparisons") -> list[dict]:
    """Returns the rows that `make label ARGS="--export ..."` writes beside the running server."""
    folder = server.store.parent / "out"
    subprocess.run(command(server.store, "--export", str(folder)), cwd=ROOT, env=environment(), check=True)
    return [json.loads(line) for line in (folder / f"{kind}.jsonl").read_text().splitlines()]


def rows(server: Server, query: str) -> list[tuple]:
    db = sqlite3.connect(server.store)
    try:
        found = db.execute(query).fetchall()
        db.commit()
        return found
    finally:
        db.close()


def ranks_by_text(row: dict) -> dict[str, int]:
    return dict(zip(row["completions"], row["ranks"], strict=True))


def test_from_log_in_to_export_by_keyboard_alone(browser, server):
    with watched_page(browser) as page:
        keys = page.keyboard
        page.goto(server.link())
        tab_to(page, "#login")
        keys.press("Enter")
        item_is(page, 1)
        keys.press("Control+Enter")  # an order that nobody touched is no answer
        expect(page.locator("#submit")).to_be_disabled()
        expect(page.locator("#review-problem")).to_contain_text("Not ranked yet: A, B, C")
        keys.press("Escape")
        ranks = {"Red.": 1, "Bread.": 3, "Run.": 3}
        for i in range(3):
            keys.press("j")
            text = page.evaluate("document.activeElement.dataset.text")
            assert index(page, text) == i
            keys.press(str(ranks[text]))
            keys.press(f"Shift+Digit{8 - 2 * ranks[text]}")
        keys.press("r")
        tab_to(page, ".rating.active [data-flag]")
        keys.press("Space")
        flag = page.evaluate("document.activeElement.dataset.flag")
        keys.press("Escape")
        flagged = page.evaluate("document.activeElement.dataset.text")
        keys.press("n")
        keys.type("Digits 1 2 3 and s, u stay text.")
        keys.press("Control+Enter")
        expect(page.locator("#submit")).to_be_focused()
        keys.press("Enter")
        item_is(page, 2)
        keys.press("s")
        keys.press("Space")  # the first reason is in focus
        tab_to(page, "#skip-submit")
        keys.press("Enter")
        item_is(page, 3)
        tab_to(page, "#demonstration")
        keys.type("Waves fold into foam.")
        keys.press("Control+Enter")
        keys.press("Enter")
        expect(page.locator("#message")).to_contain_text("All items are judged")
    [row] = export(server)
    assert ranks_by_text(row) == {"Red.": 0, "Bread.": 1, "Run.": 1} and row["labeler_id"] == "anna"
    assert dict(zip(row["completions"], row["ratings"], strict=True)) == {"Red.": 6, "Bread.": 2, "Run.": 2}
    flags = {one["completion"]: one["flags"] for one in export(server, "ratings")}
    assert flags[flagged][flag] is True
    assert export(server, "demonstrations")[0]["completion"] == "Waves fold into foam."
    assert rows(server, "select notes from judgments where skipped is null and notes != ''") == [
        ("Digits 1 2 3 and s, u stay text.",)
    ]


def test_a_submitted_item_is_opened_again_and_revised_by_keyboard(browser, server):
    with watched_page(browser) as page:
        begin(page, server)
        rank_all(page, "123")
        submit(page)
        item_is(page, 2)
        page.keyboard.press("u")
        shows(page, "#reopened", "You opened this item again")
        assert [letters(page, rank) for rank in (1, 2, 3)] == ["A", "B", "C"]
        best = page.locator("article.completion").nth(2).get_attribute("data-text")
        rank_all(page, "321")
        submit(page)
        item_is(page, 2)
    [row] = export(server)
    assert ranks_by_text(row)[best] == 0
    assert rows(server, "select count(*) from judgments") == [(1,)]


def drag(page: Page, chip: str, slot: str, share: float = 0.5) -> None:
    """Drags a chip by the mouse onto a row, at a share of its height."""
    start, end = page.locator(chip).bounding_box(), page.locator(slot).bounding_box()
    assert start and end
    page.mouse.move(start["x"] + 10, start["y"] + start["height"] / 2)
    page.mouse.down()
    page.mouse.move(end["x"] + 150, end["y"] + end["height"] * share, steps=6)
    page.mouse.up()


def test_dragging_by_mouse_ranks_ties_and_moves_between(browser, server):
    with watched_page(browser) as page:
        begin(page, server)
        drag(page, "#chip-0", "#slot-1")
        drag(page, "#chip-1", "#slot-1")  # onto another: a tie
        assert letters(page, 1) == "AB"
        drag(page, "#chip-1", "#slot-2")
        drag(page, "#chip-2", "#slot-2", share=0.02)  # onto its upper edge: between A and B
        assert [letters(page, rank) for rank in (1, 2, 3)] == ["A", "C", "B"]
        drag(page, "#chip-0", "#slot-none")
        expect(page.locator("#progress")).to_have_text("2 of 3 ranked")
        drag(page, "#chip-0", "#slot-1")
        page.click("#completion-2 .letter")
        page.click("#quality-2 label:nth-of-type(4)")
        page.click("#rating-2 .check:first-of-type")
        texts = page.eval_on_selector_all("article.completion", "(all) => all.map((a) => a.dataset.text)")
        page.click("#review")
        expect(page.locator("#review-body .letter")).to_have_text(["A", "C", "B"])
        page.dblclick("#submit")
        item_is(page, 2)
    [row] = export(server)
    assert ranks_by_text(row) == {texts[0]: 0, texts[2]: 1, texts[1]: 2}
    [rating] = export(server, "ratings")
    assert (rating["completion"], rating["rating"]) == (texts[2], 4)
    assert rows(server, "select count(*) from judgments") == [(1,)]  # in spite of the double click


def touch_drag(page: Page, chip: str, slot: str) -> None:
    """Drags with a finger, through the browser's own touch events."""
    page.locator("#board").scroll_into_view_if_needed()
    start, end = page.locator(chip).bounding_box(), page.locator(slot).bounding_box()
    assert start and end
    x, y = start["x"] + start["width"] / 2, start["y"] + start["height"] / 2
    to_x, to_y = end["x"] + end["width"] / 2, end["y"] + end["height"] / 2
    session = page.context.new_cdp_session(page)
    session.send("Input.dispatchTouchEvent", {"type": "touchStart", "touchPoints": [{"x": x, "y": y}]})
    for share in (0.2, 0.4, 0.6, 0.8, 1):
        point = {"x": x + (to_x - x) * share, "y": y + (to_y - y) * share}
        session.send("Input.dispatchTouchEvent", {"type": "touchMove", "touchPoints": [point]})
    page.wait_for_timeout(500)  # a finger rests before it lets go; else it is a fling, and the next tap ends the fling
    session.send("Input.dispatchTouchEvent", {"type": "touchMove", "touchPoints": [{"x": to_x, "y": to_y}]})
    session.send("Input.dispatchTouchEvent", {"type": "touchEnd", "touchPoints": []})
    expect(page.locator(f"{slot} {chip}")).to_be_visible()
    page.wait_for_timeout(500)


def test_from_log_in_to_export_by_touch_on_a_phone(browser, server):
    with watched_page(browser, **PHONE) as page:
        page.goto(server.link())
        page.tap("#login")
        item_is(page, 1)
        texts = page.eval_on_selector_all("article.completion", "(all) => all.map((a) => a.dataset.text)")
        touch_drag(page, "#chip-2", "#slot-3")
        page.tap("#ranks-0 label:nth-of-type(2)")
        page.tap("#ranks-1 label:nth-of-type(1)")
        assert [letters(page, rank) for rank in (1, 2, 3)] == ["B", "A", "C"]
        page.tap("#rate-1")
        page.tap("#quality-1 label:nth-of-type(7)")
        page.tap("#review")
        page.tap("#submit")
        item_is(page, 2)
        page.tap("#unrankable-label")
        page.tap("#review")
        page.tap("#submit")
        item_is(page, 3)
        page.tap("#demonstration")
        page.keyboard.type("Waves.")
        page.tap("#review")
        page.tap("#submit")
        expect(page.locator("#message")).to_contain_text("All items are judged")
    [row] = export(server)
    assert ranks_by_text(row) == {texts[1]: 0, texts[0]: 1, texts[2]: 2}


@pytest.mark.parametrize("options", [DESKTOP, PHONE], ids=["desktop", "phone"])
def test_nothing_is_wider_than_the_screen_and_fingers_hit_each_control(browser, server, options):
    wide = "| " + " | ".join(f"column {i}" for i in range(20)) + " |"
    code = f"```\n{'long_line ' * 40}\n```\n\n{wide}\n{re.sub('[^|]+', '---', wide)}\n\n{'unbroken' * 60}"
    add(server, Item("comparison", "Show me.", [code, *(f"Answer {i}" for i in range(8))]))
    with watched_page(browser, **options) as page:
        begin(page, server)
        for path in (page.url, f"{server.url}/instructions", f"{server.url}/history"):
            page.goto(path)
            assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
        page.goto(server.url)
        for button in page.locator(".bar button, .ranks label span, .chip").all():
            box = button.bounding_box()
            assert box and box["height"] >= 24 and box["width"] >= 24


def test_text_typed_while_the_server_is_dead_is_saved_and_submitted_once(browser, server):
    with watched_page(browser, OFFLINE) as page:
        begin(page, server)
        page.locator("#notes").press_sequentially("before the kill, ")
        expect(page.locator("#saved")).to_have_text("Saved")
        server.kill()
        page.locator("#notes").press_sequentially("after the kill")
        expect(page.locator("#trouble-text")).to_contain_text("Your work is kept")
        server.start()
        page.dispatch_event("#retry", "click")  # the page may have tried again by itself, and hidden the button
        expect(page.locator("#saved")).to_have_text("Saved")
        expect(page.locator("#trouble")).to_be_hidden()
        page.reload()
        expect(page.locator("#notes")).to_have_value("before the kill, after the kill")
        rank_all(page, "123")
        expect(page.locator("#saved")).to_have_text("Saved")
        server.kill()
        submit(page)
        expect(page.locator("#saved")).to_have_text("Not saved yet")
        server.start()
        item_is(page, 2)
    assert rows(server, "select notes from judgments") == [("before the kill, after the kill",)]


def test_a_reload_at_once_keeps_all_that_was_chosen(browser, server):
    with watched_page(browser) as page:
        begin(page, server)
        page.click("#ranks-1 label:nth-of-type(3)")
        page.click("#completion-1 .letter")
        page.click("#quality-1 label:nth-of-type(2)")
        page.fill("#notes-1", "hm")
        page.reload()  # before the draft is sent
        assert letters(page, 3) == "B"
        assert page.is_checked("#quality-1 input[value='2']") and page.input_value("#notes-1") == "hm"
        expect(page.locator("#saved")).to_have_text("Saved")


def test_work_outlives_a_session(browser, server):
    with watched_page(browser, "401|403") as page:
        begin(page, server)
        page.keyboard.press("j")
        rows(server, "update sessions set expires = 0")
        page.locator("#notes").press_sequentially("kept")
        expect(page.locator("#trouble-text")).to_contain_text("You are logged out")
        other = page.context.new_page()
        begin(other, server)
        other.close()
        page.click("#retry")
        expect(page.locator("#saved")).to_have_text("Saved")
        page.reload()
        expect(page.locator("#notes")).to_have_value("kept")


def test_a_second_window_cannot_overwrite_what_was_submitted(browser, server):
    with watched_page(browser, "409") as page:
        begin(page, server)
        other = page.context.new_page()
        other.goto(page.url)
        for rank in "123":
            rank_all(page, rank)
            rank_all(other, "1")
        submit(page)
        item_is(page, 2)
        submit(other)
        expect(other.locator("#review-problem")).to_contain_text("judged in another way")
    [row] = export(server)
    assert sorted(row["ranks"]) == [0, 1, 2]


CONTRAST = """() => {
  const light = (color) => {
    const linear = (c) => (c <= .03928 ? c / 12.92 : ((c + .055) / 1.055) ** 2.4);
    const [r, g, b] = color.match(/[\\d.]+/g).map((c) => linear(c / 255));
    return .2126 * r + .7152 * g + .0722 * b;
  };
  const ground = (node) => {
    for (; node; node = node.parentElement) {
      const color = getComputedStyle(node).backgroundColor;
      if (!/, 0\\)$/.test(color)) return color;
    }
    return "rgb(255, 255, 255)";
  };
  const found = [];
  for (const node of document.querySelectorAll("body *")) {
    const text = [...node.childNodes].some((child) => child.nodeType === 3 && child.textContent.trim());
    if (!text || !node.checkVisibility() || node.closest(":disabled, .unseen, [hidden]")) continue;
    const [a, b] = [light(getComputedStyle(node).color), light(ground(node))].sort((x, y) => y - x);
    const contrast = (a + .05) / (b + .05);
    if (contrast < 4.5) found.push(`${node.tagName} ${node.className}: ${contrast.toFixed(2)}`);
  }
  return found;
}"""
NAMELESS = """() => {
  const labels = (one) => [...(one.labels || [])].map((label) => label.textContent).join("");
  return [...document.querySelectorAll("button, input:not([type=hidden]), textarea, select, summary")]
    .filter((one) => !(one.textContent.trim() || one.getAttribute("aria-label") || labels(one).trim()))
    .map((one) => one.outerHTML.slice(0, 80));
}"""


@pytest.mark.parametrize("options", [DESKTOP, PHONE], ids=["desktop", "phone"])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_has_contrast_and_controls_have_names(browser, server, options, scheme):
    with watched_page(browser, **options, color_scheme=scheme) as page:
        begin(page, server)
        is_dark = page.evaluate("matchMedia('(prefers-color-scheme: dark)').matches")
        ground = page.evaluate("getComputedStyle(document.body).backgroundColor")
        assert is_dark == (scheme == "dark") == (int(re.findall(r"\d+", ground)[0]) < 60)
        page.click("#ranks-0 label:nth-of-type(2)")
        assert page.evaluate(CONTRAST) == [] and page.evaluate(NAMELESS) == []
        page.click("#help")
        assert page.evaluate(CONTRAST) == []
        for path in ("instructions", "history"):
            page.goto(f"{server.url}/{path}")
            assert page.evaluate(CONTRAST) == [] and page.evaluate(NAMELESS) == []


def test_a_long_completion_unfolds_by_key(browser, server):
    add(server, LONG)
    with watched_page(browser) as page:
        begin(page, server)
        text = page.locator(f"#text-{index(page, LONG.completions[0])}")
        folded = text.bounding_box()
        page.locator(f"#completion-{index(page, LONG.completions[0])}").focus()
        page.keyboard.press("e")
        assert text.bounding_box()["height"] > folded["height"] + 200
        page.keyboard.press("e")
        assert text.bounding_box()["height"] == folded["height"]


HOSTILE = [
    "<script>window.hacked = 1</script><img src=x onerror='window.hacked = 2'><svg onload=alert(1)>",
    "[a](javascript:window.hacked=3) ![i](https://tracker.example/i.png) <https://evil.example> [d](data:text/html,x)",
    '" onfocus="window.hacked=4" autofocus x="\u202egnp.exe\u202c \u2066hidden\u2069 a\u200bb',
    "```<script>\n</textarea><script>window.hacked = 5</script>\n```\n<iframe srcdoc='<script>alert(1)</script>'>",
]


@pytest.mark.parametrize("options", [DESKTOP, PHONE], ids=["desktop", "phone"])
def test_hostile_texts_run_load_and_link_nothing(browser, server, options):
    add(server, Item("comparison", [{"role": "user", "content": text} for text in HOSTILE], HOSTILE))
    with watched_page(browser, **options) as page:
        begin(page, server)
        assert page.locator(".text :is(a, img, script, svg, iframe, [onfocus], [style])").count() == 0
        shown = page.locator("#completions").inner_text()
        assert "<script>window.hacked = 1</script>" in shown and "javascript:window.hacked=3" in shown
        assert "\u202e" not in shown and "\u200b" not in shown
        page.fill("#notes", HOSTILE[0])
        for i in range(4):
            page.locator(f"#completion-{i}").focus()
            page.keyboard.press(str(i + 1))
        page.click("#ideal summary")
        for i in range(4):
            page.fill("#demonstration", "")
            page.click(f"[data-start='{i}']")
        page.click("#review")
        page.click("#submit")
        item_is(page, 2)
        page.goto(f"{server.url}/history")
        assert page.locator(".history :is(img, script, svg, iframe)").count() == 0
        page.click(".history button")
        expect(page.locator("#notes")).to_have_value(HOSTILE[0])
        assert page.evaluate("window.hacked") is None
    [row] = export(server)
    assert sorted(row["completions"]) == sorted(HOSTILE)
