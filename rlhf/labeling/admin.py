"""Pages of the admin: progress, labelers and their links, demonstrations to grade."""

import time
from typing import Any

from starlette.responses import RedirectResponse, Response

from rlhf.errors import InputError
from rlhf.labeling import people, progress, screening
from rlhf.labeling.calls import Call
from rlhf.labeling.import_export import csv_text
from rlhf.labeling.items import TaskNotFound
from rlhf.labeling.pages import ago, prompt_line


def overview(call: Call) -> Response:
    """Shows how far the work is, who does it, and how well they agree."""
    return _overview(call)


def invite(call: Call) -> Response:
    """Adds a labeler and shows her link. It is shown once: the store has its hash only."""
    form = call.form()
    name, role = form.get("name", "").strip(), form.get("role", "labeler")
    screened, held_out = (form.get(choice) == "on" for choice in ("screened", "held_out"))
    token = people.add_labeler(call.store, name, role, screened, held_out, now=time.time())
    return _overview(call, name=name, token=token)


def new_link(call: Call) -> Response:
    """Shows a new link for a labeler. The one before no longer works."""
    name = _name(call)
    return _overview(call, name=name, token=people.new_link(call.store, name, now=time.time()))


def revoke(call: Call) -> Response:
    """Locks a labeler out at once. Her judgments stay."""
    if int(call.request.path_params["id"]) == call.labeler.id:
        raise InputError("You cannot revoke yourself. Ask another admin, or use the command line.")
    people.revoke(call.store, _name(call))
    return RedirectResponse("/admin#labelers", 303)


def grade(call: Call) -> Response:
    """Takes in the grade of a demonstration that was written in screening."""
    value = call.form().get("grade", "")
    if value not in {str(n) for n in range(1, 8)}:
        raise InputError("Choose a grade from 1 to 7.")
    screening.grade_demonstration(call.store, call.request.path_params["key"], int(value))
    return RedirectResponse("/admin#demonstrations", 303)


def progress_csv(call: Call) -> Response:
    """Returns the table of labelers as CSV. Names that a spreadsheet would run as formulas are quoted."""
    labelers = progress.labeler_rows(call.store, now=time.time())
    flat = [{name: value for name, value in one.items() if name != "gold"} | _prefixed(one["gold"]) for one in labelers]
    text = csv_text(list(flat[0]), [list(one.values()) for one in flat])  # an admin is always there
    headers = {"Content-Disposition": 'attachment; filename="labelers.csv"'}
    return Response(text, media_type="text/csv; charset=utf-8", headers=headers)


def _prefixed(gold: dict[str, Any]) -> dict[str, Any]:
    return {f"gold_{name}": value for name, value in gold.items()}


def _overview(call: Call, name: str = "", token: str = "") -> Response:
    now = time.time()
    link = f"{call.origin}/login?token={token}" if token else ""
    to_grade = [one | {"prompt": prompt_line(one["prompt"])} for one in screening.ungraded_demonstrations(call.store)]
    numbers = progress.overview(call.store, now=now)
    for one in numbers["labelers"]:
        one["ago"] = "–" if one["last"] is None else ago(now - one["last"])
    labels = {flag.name: flag.label for flag in call.flags}
    return call.page("admin.html", numbers=numbers, labels=labels, to_grade=to_grade, invited=name, link=link)


def _name(call: Call) -> str:
    """Returns the name of the labeler in the path."""
    number = int(call.request.path_params["id"])
    names = [one.name for one in people.labelers(call.store) if one.id == number]
    if not names:
        raise TaskNotFound("There is no such labeler. Reload the page.")
    return names[0]


ROUTES = (
    ("/admin", overview, "GET"),
    ("/admin/progress.csv", progress_csv, "GET"),
    ("/admin/labelers", invite, "POST"),
    ("/admin/labelers/{id:int}/link", new_link, "POST"),
    ("/admin/labelers/{id:int}/revoke", revoke, "POST"),
    ("/admin/demonstrations/{key}", grade, "POST"),
)
