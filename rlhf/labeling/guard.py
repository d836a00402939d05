"""Keeps the pages safe whatever is sent to them: headers of all answers, size and form of requests, log-in attempts."""

import json
import time
from collections import deque
from collections.abc import Mapping
from typing import Any
from urllib.parse import parse_qsl

from starlette.datastructures import MutableHeaders
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

MAX_BODY = 1_000_000  # bytes
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
    "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)
HEADERS = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), microphone=(), geolocation=()",
}


class SafeHeaders:
    """ASGI middleware that adds `HEADERS`. Pages are not cached; files of /static/ are checked before each use.

    Args:
        https: browsers shall come back through TLS only.
    """

    def __init__(self, app: ASGIApp, https: bool):
        self.app = app
        self.headers = HEADERS | ({"Strict-Transport-Security": "max-age=31536000"} if https else {})

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        caching = "no-cache" if scope["path"].startswith("/static/") else "no-store"

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(self.headers | {"Cache-Control": caching})
            await send(message)

        await self.app(scope, receive, send_with_headers)


async def read_body(request: Request) -> bytes:
    """Returns the body of a request.

    Raises:
        HTTPException: 413 for more than `MAX_BODY` bytes, before all of it is read.
    """
    announced = request.headers.get("content-length", "0")
    if announced.isdecimal() and int(announced) > MAX_BODY:
        raise HTTPException(413, "This is too long. At most 1 MB can be sent at once: shorten the texts.")
    body = bytearray()
    async for part in request.stream():
        body += part
        if len(body) > MAX_BODY:
            raise HTTPException(413, "This is too long. At most 1 MB can be sent at once: shorten the texts.")
    return bytes(body)


def refuse_other_sites(request: Request) -> None:
    """Raises HTTPException 403 if a browser says that the page of another site has made a request that writes."""
    if request.method not in ("GET", "HEAD") and request.headers.get("sec-fetch-site") in ("cross-site", "same-site"):
        raise HTTPException(403, "Another site has sent this request. Open the page itself.")


def read_json(headers: Mapping[str, str], body: bytes) -> dict[str, Any]:
    """Returns the object of a JSON body.

    Raises:
        HTTPException: 415 for another type, which a form of another site could send; 400 for what is no JSON object.
    """
    if headers.get("content-type", "").partition(";")[0].strip() != "application/json":
        raise HTTPException(415, "Send application/json.")
    try:
        content = json.loads(body, parse_constant=_refuse_constant)
        json.dumps(content, ensure_ascii=False).encode()  # refuses halves of surrogate pairs
    except (ValueError, RecursionError) as error:
        raise HTTPException(400, "The request is no JSON. Reload the page and try again.") from error
    if not isinstance(content, dict):
        raise HTTPException(400, "The request is no JSON object. Reload the page and try again.")
    return content


def read_form(body: bytes) -> dict[str, str]:
    """Returns the fields of a form; of fields with one name, the last.

    Raises:
        HTTPException: 400 for more than 50 fields, or for text that is not UTF-8.
    """
    try:
        return dict(parse_qsl(body.decode("ascii"), keep_blank_values=True, max_num_fields=50, errors="strict"))
    except ValueError as error:
        raise HTTPException(400, "The form cannot be read. Reload the page and try again.") from error


class FailedLogIns:
    """Counts failed log-ins, and refuses more for a while.

    Args:
        per_address: failures in a minute after which an address has to wait.
        in_all: failures in a minute after which everybody has to wait.
    """

    def __init__(self, per_address: int = 10, in_all: int = 200):
        self.per_address, self.in_all = per_address, in_all
        self.failures: deque[tuple[float, str]] = deque(maxlen=in_all)

    def add(self, address: str, now: float | None = None) -> None:
        """Counts a failure."""
        self.failures.append((time.monotonic() if now is None else now, address))

    def must_wait(self, address: str, now: float | None = None) -> bool:
        """Returns True if another log-in from this address is refused."""
        now = time.monotonic() if now is None else now
        recent = [one for when, one in self.failures.copy() if when > now - 60]
        return len(recent) >= self.in_all or recent.count(address) >= self.per_address


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON")
