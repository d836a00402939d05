"""Pages of the admin: progress, labelers and their links, demonstrations to grade."""

import time

from starlette.responses import RedirectResponse, Response

from rlhf.errors import InputError
from rlhf.labeling import people, screening
from rlhf.labeling.calls import Call
from rlhf.labeling.items import TaskNotFound
from rlhf.labeling.pages import prompt_line


def overview(call: Call) -> Response:
    """Shows how far the work is, who does it, and how well they agree."""
    return _overview(call)


def invite(call: Call) -> Response:
    """Adds a labeler and shows her link. It is shown once: the store has its hash only."""
    form = call.form()
    name, role = form.get("name", "").strip(), form.get("role", "labeler")
    token = people.add_labeler(call.store, name, role, screened=form.get("screened") == "on", now=time.time())
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


def _overview(call: Call, name: str = "", token: str = "") -> Response:
    link = f"{call.origin}/login?token={token}" if token else ""
    to_grade = [one | {"prompt": prompt_line(one["prompt"])} for one in screening.ungraded_demonstrations(call.store)]
    labelers = people.labelers(call.store)
    return call.page("admin.html", labelers=labelers, to_grade=to_grade, invited=name, link=link)


def _name(call: Call) -> str:
    """Returns the name of the labeler in the path."""
    number = int(call.request.path_params["id"])
    names = [one.name for one in people.labelers(call.store) if one.id == number]
    if not names:
        raise TaskNotFound("There is no such labeler. Reload the page.")
    return names[0]


ROUTES = (
    ("/admin", overview, "GET"),
    ("/admin/labelers", invite, "POST"),
    ("/admin/labelers/{id:int}/link", new_link, "POST"),
    ("/admin/labelers/{id:int}/revoke", revoke, "POST"),
    ("/admin/demonstrations/{key}", grade, "POST"),
)
