"""A labeler without a browser: logs in with a link, reads the page of her task, and sends her judgment."""

import http.client
import json
import re
from html.parser import HTMLParser
from urllib.parse import parse_qs, urlencode, urlsplit


class TaskPage(HTMLParser):
    """What a labeler sees of a task: prompt, completions in their order on the screen, and the keys of the page."""

    def __init__(self, page: str):
        super().__init__()
        self.csrf = self.key = self.kind = ""
        self.revision = 0
        self.prompt, self.completions, self._depth = "", [], 0
        self.feed(page)
        self.prompt = self.prompt.strip()

    def handle_starttag(self, tag, attrs):
        values = dict(attrs)
        if tag == "meta" and values.get("name") == "csrf":
            self.csrf = values["content"]
        if tag == "main" and "data-key" in values:
            self.key, self.kind, self.revision = values["data-key"], values["data-kind"], int(values["data-revision"])
        if tag == "article" and "data-text" in values:
            self.completions.append(values["data-text"])
        if tag == "div" and (self._depth or re.fullmatch(r"message-\d+", values.get("id") or "")):
            self._depth += 1

    def handle_endtag(self, tag):
        self._depth -= tag == "div" and self._depth > 0

    def handle_data(self, data):
        self.prompt += data if self._depth else ""


class LabelerClient:
    """A session with the server.

    Args:
        link: for logging in once.
    """

    def __init__(self, link: str):
        url = urlsplit(link)
        self.connection = http.client.HTTPConnection(url.hostname, url.port, timeout=60)
        [token] = parse_qs(url.query)["token"]
        form = {"Content-Type": "application/x-www-form-urlencoded"}
        response, _ = self.request("POST", "/login", urlencode({"token": token}), form)
        assert response.status == 303, response.status
        self.cookie = response.getheader("Set-Cookie").split(";")[0]

    def request(self, method: str, path: str, body: str | None = None, headers: dict | None = None):
        cookie = {"Cookie": self.cookie} if hasattr(self, "cookie") else {}
        self.connection.request(method, path, body, cookie | (headers or {}))
        response = self.connection.getresponse()
        return response, response.read().decode()

    def next_task(self) -> TaskPage | None:
        """Returns the page of the next task, None if there is nothing to do."""
        response, _ = self.request("GET", "/")
        if response.status != 303:
            return None
        response, text = self.request("GET", response.getheader("Location"))
        assert response.status == 200, text
        return TaskPage(text)

    def submit(self, page: TaskPage, **judgment) -> dict:
        """Sends a judgment; returns the answer."""
        headers = {"Content-Type": "application/json", "X-CSRF": page.csrf}
        body = json.dumps({"revision": page.revision, "seconds": 1, **judgment})
        response, text = self.request("POST", f"/task/{page.key}", body, headers)
        assert response.status == 200, text
        return json.loads(text)
