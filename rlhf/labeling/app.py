"""The web application: routes, who may use them, and what their errors look like.

Every judgment is a POST with the key of its task and the revision of the page, so it may be sent twice. Handlers are
plain functions on threads; the store serializes their transactions.
"""

import logging
import sqlite3
import time
from collections.abc import Callable, Sequence
from secrets import compare_digest

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, RedirectResponse, Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles

from rlhf.errors import InputError
from rlhf.labeling import admin, people, queue
from rlhf.labeling.calls import Call, error_response
from rlhf.labeling.guard import FailedLogIns, SafeHeaders, read_body, refuse_other_sites
from rlhf.labeling.items import MAX_SECONDS, Conflict, TaskNotFound, read_judgment
from rlhf.labeling.pages import HERE, SKIP_REASONS, Flag, history_page, task_page
from rlhf.labeling.store import Store

logger = logging.getLogger(__name__)

Handler = Callable[[Call], Response]
NOTHING = {
    "pending": (
        "Thank you",
        "You have judged all items of the screening. When they are looked at, you will find work here.",
    ),
    "failed": ("Thank you", "The screening has ended, and there are no more items for you. Your answers are kept."),
}
NOTHING_NOW = ("Nothing to do now", "All items are judged, or other labelers work on them. Come back later.")
INSTRUCTIONS = HERE / "instructions.md"


def create_app(store: Store, flags: Sequence[Flag], https: bool = False) -> Starlette:
    """Returns the application.

    Args:
        flags: of `rlhf.labeling.pages.read_flags`, asked about each completion.
        https: browsers reach the pages through TLS, so cookies are sent through it only.
    """
    failed_log_ins = FailedLogIns()

    def route(path: str, handler: Handler, method: str = "GET", role: str | None = "labeler") -> Route:
        async def endpoint(request: Request) -> Response:
            refuse_other_sites(request)
            body = b"" if request.method in ("GET", "HEAD") else await read_body(request)
            call = Call(request, body, store, flags, https, failed_log_ins)
            return await run_in_threadpool(_answer, call, handler, role)

        return Route(path, endpoint, methods=[method])

    return Starlette(
        routes=[
            route("/", first_page),
            route("/login", login_page, role=None),
            route("/login", log_in, "POST", role=None),
            route("/logout", log_out, "POST"),
            route("/session", session_keys),
            route("/task/{key}", show_task),
            route("/task/{key}", submit, "POST"),
            route("/task/{key}/draft", save_draft, "PUT"),
            route("/undo", undo, "POST"),
            route("/instructions", instructions),
            route("/history", history),
            *(route(path, handler, method, "admin") for path, handler, method in admin.ROUTES),
            route("/health", health, role=None),
            Mount("/static", StaticFiles(directory=HERE / "static")),
        ],
        middleware=[Middleware(SafeHeaders, https=https)],
        exception_handlers={HTTPException: _http_error},
    )


# ---- Pages


def first_page(call: Call) -> Response:
    """Sends a labeler to her next task, or says why there is none."""
    labeler = call.labeler
    task = queue.next_task(call.store, labeler.id, now=time.time())
    if task is not None:
        return RedirectResponse(f"/task/{task.key}", 303)
    title, message = NOTHING.get(labeler.screening, NOTHING_NOW)
    return call.page("message.html", title=title, message=message, judged=labeler.done)


def login_page(call: Call) -> Response:
    """Shows a button. A GET does not use the link up: previews of chats and mails open links, too."""
    return call.page("login.html", token=call.request.query_params.get("token", "")[:200])


def log_in(call: Call) -> Response:
    """Uses the link up and begins a session. A link that holds always does: behind a proxy all have one address."""
    address = call.request.client.host if call.request.client else ""
    secret = people.log_in(call.store, call.form().get("token", "")[:200], now=time.time())
    if secret is None:
        if call.failed_log_ins.must_wait(address):
            return call.error(429, "Too many log-ins have failed. Wait a minute, then open your link again.")
        call.failed_log_ins.add(address)
        return call.error(403, "This link was used before, or is older than seven days. Ask for a new one.")
    response = RedirectResponse("/", 303)
    response.set_cookie(
        call.cookie, secret, max_age=int(people.SESSION_SECONDS), httponly=True, samesite="lax", secure=call.https
    )
    return response


def log_out(call: Call) -> Response:
    """Ends the session."""
    people.log_out(call.store, call.secret)
    response = RedirectResponse("/login", 303)
    response.delete_cookie(call.cookie, httponly=True, samesite="lax", secure=call.https)
    return response


def session_keys(call: Call) -> Response:
    """Returns the CSRF key, for a page from before its labeler logged in again. Other sites cannot read the answer."""
    return JSONResponse({"csrf": call.csrf})


def show_task(call: Call) -> Response:
    """Shows a task of hers, with her draft or, if she has judged it, her judgment."""
    task = queue.find_task(call.store, call.request.path_params["key"], call.labeler.id)
    return call.page("task.html", task=task_page(task), flags=call.flags, skip_reasons=SKIP_REASONS)


def submit(call: Call) -> Response:
    """Takes a judgment in. The same one may come again and changes nothing."""
    labeler, now = call.labeler.id, time.time()
    judgment = read_judgment(call.json())
    names = [flag.name for flag in call.flags]
    with call.store.write():  # one transaction: one wait for the disk
        is_new = queue.submit(call.store, call.request.path_params["key"], labeler, judgment, flags=names, now=now)
        task = queue.next_task(call.store, labeler, now=now)
    return JSONResponse({"next": f"/task/{task.key}" if task else "/", "new": is_new})


def save_draft(call: Call) -> Response:
    """Keeps a draft."""
    content = call.json()
    draft, active = content.get("draft"), content.get("active", 0)
    read_judgment(draft)
    if isinstance(active, bool) or not isinstance(active, int | float) or active < 0:
        raise InputError("active is no number. Send seconds.")
    assert isinstance(draft, dict)  # read_judgment refuses all else
    key = call.request.path_params["key"]
    if not queue.save_draft(call.store, key, call.labeler.id, draft, float(min(active, MAX_SECONDS)), now=time.time()):
        raise Conflict("This item was submitted since the page was opened. Reload the page.")
    return JSONResponse({"saved": True})


def undo(call: Call) -> Response:
    """Opens her last judged task again, or the one of `key`."""
    task = queue.reopen(call.store, call.labeler.id, call.form().get("key") or None)
    return RedirectResponse(f"/task/{task.key}" if task else "/", 303)


def instructions(call: Call) -> Response:
    """Shows the instructions: the store's, or those of this package."""
    text = call.store.setting("instructions") or INSTRUCTIONS.read_text(encoding="utf-8")
    return call.page("instructions.html", instructions=text, flags=call.flags)


def history(call: Call) -> Response:
    """Lists her last 50 judgments."""
    judgments = queue.history(call.store, call.labeler.id, 50)
    return call.page("history.html", entries=history_page(judgments, time.time()))


def health(call: Call) -> Response:
    """Answers if the store can be read."""
    with call.store.read() as db:
        db.execute("select 1").fetchone()
    return PlainTextResponse("ok")


# ---- Who may, and errors


def _answer(call: Call, handler: Handler, role: str | None) -> Response:
    """Runs a handler for those who may use it. Mistakes of people become answers that say what to do."""
    try:
        call.session = people.session(call.store, call.secret, now=time.time()) if call.secret else None
        if role is not None:
            refusal = _refusal(call, role)
            if refusal is not None:
                return refusal
        return handler(call)
    except TaskNotFound as error:
        return call.error(404, str(error))
    except Conflict as error:
        return call.error(409, str(error))
    except InputError as error:
        return call.error(422, str(error))
    except HTTPException as error:
        return call.error(error.status_code, error.detail)
    except sqlite3.Error:
        logger.exception("the store failed")
        response = call.error(503, "The store is busy. Your answer is not saved yet. Try again in a moment.")
        response.headers["Retry-After"] = "1"
        return response
    except Exception:
        logger.exception("%s %s failed", call.request.method, call.request.url.path)
        return call.error(500, "Something went wrong on the server. Your work is kept in the page. Try again.")


def _refusal(call: Call, role: str) -> Response | None:
    """Returns the answer to one who may not, else None."""
    if call.session is None:
        if call.request.method in ("GET", "HEAD") and not call.wants_json:
            return RedirectResponse("/login", 303)
        return call.error(401, "You are not logged in. Open your log-in link, or ask for a new one.")
    if call.request.method not in ("GET", "HEAD"):
        sent = call.request.headers.get("x-csrf") or ("" if call.wants_json else call.form().get("csrf", ""))
        if not compare_digest(sent.encode(errors="replace"), call.csrf.encode()):
            return call.error(403, "The page is from an earlier session. Reload it and try again.")
    if role == "admin" and call.labeler.role != "admin":
        return call.error(403, "This page is for admins.")
    return None


def _http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    texts = {404: "There is no such page.", 405: "This address does not take such a request."}
    return error_response(request, error.status_code, texts.get(error.status_code, error.detail), headers=error.headers)
