"""One request to the application, with what its handler needs."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response

from rlhf.labeling.guard import FailedLogIns, read_form, read_json
from rlhf.labeling.pages import Flag, templates
from rlhf.labeling.people import Labeler, Session
from rlhf.labeling.store import Store


@dataclass
class Call:
    """A request, and what it is answered from.

    Attributes:
        body: all of it.
        https: pages are reached through TLS.
        session: of the labeler, set before a handler runs.
    """

    request: Request
    body: bytes
    store: Store
    flags: Sequence[Flag]
    https: bool
    failed_log_ins: FailedLogIns
    session: Session | None = None

    @property
    def cookie(self) -> str:
        """Name of the session's cookie. Browsers take __Host- from this host through TLS only."""
        return "__Host-label" if self.https else "label"

    @property
    def secret(self) -> str:
        return self.request.cookies.get(self.cookie, "")

    @property
    def labeler(self) -> Labeler:
        assert self.session is not None  # handlers with a role have one
        return self.session.labeler

    @property
    def csrf(self) -> str:
        assert self.session is not None
        return self.session.csrf

    @property
    def origin(self) -> str:
        """Scheme, host and port under which this page was opened."""
        return f"{'https' if self.https else self.request.url.scheme}://{self.request.url.netloc}"

    @property
    def wants_json(self) -> bool:
        """True for a request of the page's script."""
        return wants_json(self.request)

    def json(self) -> dict[str, Any]:
        """Returns the JSON object in the body. Raises HTTPException."""
        return read_json(self.request.headers, self.body)

    def form(self) -> dict[str, str]:
        """Returns the fields of the form in the body. Raises HTTPException."""
        return self._form

    @cached_property
    def _form(self) -> dict[str, str]:
        return read_form(self.body)

    def page(self, template: str, status: int = 200, **values: Any) -> Response:
        """Returns a page."""
        return render(template, self.session, status, **values)

    def error(self, status: int, text: str) -> Response:
        """Returns a refusal, as JSON to the page's script and else as a page."""
        return error_response(self.request, status, text, self.session)


def wants_json(request: Request) -> bool:
    """Returns True for a request that the page's script sends: all of these are, or ask for, JSON."""
    headers = request.headers
    return "application/json" in headers.get("content-type", "") or "application/json" in headers.get("accept", "")


def error_response(
    request: Request, status: int, text: str, session: Session | None = None, headers: Mapping[str, str] | None = None
) -> Response:
    """Returns a refusal, as JSON to the page's script and else as a page."""
    if wants_json(request):
        return JSONResponse({"error": text}, status, headers)
    title = "Not found" if status == 404 else "Please log in" if status == 401 else "That did not work"
    response = render("message.html", session, status, title=title, message=text)
    response.headers.update(headers or {})
    return response


def render(template: str, session: Session | None, status: int = 200, **values: Any) -> Response:
    """Returns a page of the templates."""
    return HTMLResponse(templates().get_template(template).render(session=session, **values), status)
