"""Makes the pictures of docs/labeling.md: python examples/label_screenshots.py

Needs Chromium and the extras label and dev.
"""

import sys
import tempfile
from pathlib import Path

from playwright.sync_api import sync_playwright

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests"))
from label_browser import CHROMIUM, DESKTOP, PHONE, Server  # noqa: E402

from rlhf.labeling import people, queue  # noqa: E402
from rlhf.labeling.items import Item, Judgment, Rating  # noqa: E402
from rlhf.labeling.store import Store  # noqa: E402

PROMPT = (
    "My tomato seedlings on the windowsill are tall, thin and fall over. They get water every day. What am I doing "
    "wrong, and can they still be saved?"
)
COMPLETIONS = [
    "They are **leggy**: they stretch toward too little light.\n\n1. Move them to the brightest window, or put a lamp "
    "10 cm above them for 14 hours a day.\n2. Water only when the top of the soil is dry.\n3. Yes, they can be saved. "
    "Plant them again up to the first leaves: tomatoes grow roots from the buried stem.",
    "Tomato seedlings can have many problems. You should consult a professional gardener, who can look at the plants "
    "and give advice for your situation.",
    "You water too much, and they lack light. Let the soil dry between waterings and find a sunnier place. Tall plants "
    "can be repotted deeper, so that the stem is held by soil.",
    "Cut them all off at the soil. New, stronger stems will grow from the roots within about a week, as tomatoes do "
    "every year.",
]
SHORT = [
    ("Write one line that invites colleagues to a picnic.", ["Bring a blanket on Friday!", "Picnic. Friday. Attend."]),
    ("Is a tomato a fruit?", ["In botany yes, in the kitchen no.", "No."]),
    ("Name a river in Peru.", ["The Ucayali.", "The Danube."]),
]


def make_store(path: Path) -> None:
    """Writes an item to show, and three that two labelers have judged."""
    with Store(path) as store:
        short = [Item("comparison", prompt, texts) for prompt, texts in SHORT]
        queue.add_batch(store, "first answers", short, labelers_per_item=2, priority=1)
        for name, seconds in (("Anna", 48), ("Ben", 62)):
            people.add_labeler(store, name)
            labeler = people.find_labeler(store, name).id
            for number, _ in enumerate(short):
                task = queue.next_task(store, labeler)
                assert task is not None
                best = min(task.completions) if name == "Anna" or number else max(task.completions)
                ranks = [int(text != best) for text in task.completions]
                ratings = [Rating(6 - 3 * rank, {"hallucination": bool(rank)}) for rank in ranks]
                queue.submit(store, task.key, labeler, Judgment(ranks=ranks, ratings=ratings, seconds=seconds))
        queue.add_batch(store, "garden", [Item("comparison", PROMPT, COMPLETIONS)], labelers_per_item=3)
        people.add_labeler(store, "Root", role="admin")


def judge(page) -> None:
    """Ranks by text, whatever the order on the page is."""
    ranks = dict(zip(COMPLETIONS, (1, 3, 1, 4), strict=True))
    for number, text in enumerate(
        page.eval_on_selector_all("article.completion", "(a) => a.map((b) => b.dataset.text)")
    ):
        page.locator(f"#ranks-{number} input[value='{ranks[text]}']").check(force=True)
        if text == COMPLETIONS[0]:
            page.locator(f"#completion-{number}").focus()
            page.keyboard.press("Shift+Digit6")
    page.wait_for_selector("#saved[data-state=saved]")


def main() -> None:
    folder = ROOT / "docs" / "labeling"
    with tempfile.TemporaryDirectory() as temporary, sync_playwright() as playwright:
        store = Path(temporary) / "labels.db"
        make_store(store)
        server = Server(store)
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        pictures = (
            ("task", "Anna", DESKTOP, "/", judge),
            ("dark", "Anna", DESKTOP | {"color_scheme": "dark"}, "/", lambda page: page.click("#review")),
            ("phone", "Ben", PHONE | {"device_scale_factor": 1.5}, "/", judge),
            ("admin", "Root", DESKTOP, "/admin", lambda page: None),
        )
        try:
            for name, labeler, options, path, act in pictures:
                page = browser.new_context(**options).new_page()
                page.goto(server.link(labeler))
                page.click("#login")
                page.goto(server.url + path)
                act(page)
                page.mouse.move(0, 0)
                if name != "dark":
                    page.evaluate("scrollTo(0, 0)")
                page.screenshot(path=folder / f"{name}.png")
        finally:
            browser.close()
            server.kill()


if __name__ == "__main__":
    main()
