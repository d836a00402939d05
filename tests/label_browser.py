"""The labeling server in its own process, and a real browser that reports what goes wrong in its pages."""

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from rlhf.labeling import people
from rlhf.labeling.store import Store

ROOT = Path(__file__).parent.parent
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
NEEDS_CHROMIUM = [pytest.mark.browser, pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium")]
DESKTOP = {"viewport": {"width": 1280, "height": 800}}
PHONE = {"viewport": {"width": 390, "height": 844}, "has_touch": True, "is_mobile": True, "device_scale_factor": 2}
WATCH = """
document.addEventListener("securitypolicyviolation", (event) => {
  report(`policy: ${event.violatedDirective} ${event.blockedURI}`);
});
new PerformanceObserver((list) => {
  for (const entry of list.getEntries()) {
    const names = entry.sources.map(({ node }) => node?.id || node?.className || node?.nodeName);
    if (!entry.hadRecentInput) report(`layout shift of ${entry.value}: ${names.join(" ")}`);
  }
}).observe({ type: "layout-shift", buffered: true });
"""


def command(store: Path, *arguments: str) -> list[str]:
    """Returns the command line of recipes/label.py."""
    return [sys.executable, "recipes/label.py", "--run", str(store.parent), "--store", str(store), *arguments]


def environment() -> dict[str, str]:
    return os.environ | {"PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}


class Server:
    """The server of a store. Its address stays through a kill and a start."""

    def __init__(self, store: Path):
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = free.getsockname()[1]
        self.store, self.url = store, f"http://127.0.0.1:{self.port}"
        self.start()

    def start(self) -> None:
        log = self.store.with_suffix(".log")
        arguments = command(self.store, "--port", str(self.port))
        with log.open("a") as output:
            self.process = subprocess.Popen(arguments, cwd=ROOT, env=environment(), stdout=output, stderr=output)
        for _ in range(600):
            assert self.process.poll() is None, log.read_text()
            try:
                urllib.request.urlopen(f"{self.url}/health", timeout=10).close()
                return
            except OSError:
                time.sleep(0.1)
        raise AssertionError(log.read_text())

    def kill(self) -> None:
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()

    def link(self, name: str = "anna") -> str:
        """Returns a new log-in link of a labeler, who is added if need be."""
        with Store(self.store) as store:
            known = name in {one.name for one in people.labelers(store)}
            token = people.new_link(store, name) if known else people.add_labeler(store, name)
        return f"{self.url}/login?token={token}"


@contextmanager
def watched_page(browser, expected: str = "$^", **options) -> Iterator:
    """Gives a page in a window of its own, and fails if anything went wrong in it.

    That is: errors of scripts and in the console but those that match `expected`, violations of the content-security
    policy, dialogs of scripts, requests to other hosts, and layout that shifts without a person's doing.
    """
    context = browser.new_context(**(options or DESKTOP))
    context.set_default_timeout(20_000)
    faults: list[str] = []
    context.expose_function("report", lambda text: faults.append(text))
    context.add_init_script(WATCH)
    context.on("console", lambda message: message.type == "error" and faults.append(f"console: {message.text}"))
    context.on("weberror", lambda error: faults.append(f"script: {error.error}"))
    context.on("dialog", lambda dialog: (faults.append(f"dialog: {dialog.message}"), dialog.dismiss()))
    context.on("request", lambda one: one.url.startswith("http://127.0.0.1:") or faults.append(f"request: {one.url}"))
    try:
        yield context.new_page()
        faults = [fault for fault in faults if not re.search(expected, fault)]
        assert not faults, faults  # pytest does not explain assertions of helpers
    finally:
        context.close()
