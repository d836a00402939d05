"""A labeler's browser without a screen, for tests of the pages over HTTP."""

import json
import re
from collections.abc import Sequence
from html import unescape

from starlette.testclient import TestClient

from rlhf.labeling import people
from rlhf.labeling.app import create_app
from rlhf.labeling.pages import Flag, read_flags
from rlhf.labeling.store import Store


class Browser:
    """A labeler's browser: keeps cookies, and sends what the page's script sends."""

    def __init__(
        self,
        store: Store,
        name: str = "anna",
        role: str = "labeler",
        screened: bool = False,
        new: bool = True,
        flags: Sequence[Flag] | None = None,
    ):
        app = create_app(store, read_flags() if flags is None else flags)
        self.client = TestClient(app, follow_redirects=False)
        token = people.add_labeler(store, name, role, screened) if new else people.new_link(store, name)
        assert self.client.post("/login", data={"token": token}).headers["location"] == "/"
        self.csrf = self.get("/session").json()["csrf"]

    def get(self, path: str):
        return self.client.get(path, follow_redirects=path == "/")

    def form(self, path: str, **fields: str):
        return self.client.post(path, data={"csrf": self.csrf, **fields})

    def send(self, path: str, content: object, method: str = "POST", csrf: str | None = None):
        return self.client.request(method, path, json=content, headers={"X-CSRF": csrf or self.csrf})

    def task(self) -> str:
        """Returns the path of the task that the first page leads to."""
        return self.get("/").url.path

    def draft(self, path: str) -> dict | None:
        [draft] = re.findall(r'data-draft="([^"]*)"', self.get(path).text)
        return json.loads(unescape(draft))


def ranked(*ranks: int, revision: int = 0, **more: object) -> dict:
    return {"ranks": list(ranks), "revision": revision, **more}
