"""Prepares what the templates show. They get plain values, and escape all text but that of `safe_text`."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import yaml
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from rlhf.errors import InputError, first_line
from rlhf.labeling.items import Task
from rlhf.labeling.judgments import Judged
from rlhf.labeling.safe_text import is_long, shown, shown_line

HERE = Path(__file__).parent
LETTERS = "ABCDEFGHI"
ROLES = {"user": "Writer", "assistant": "Assistant", "system": "System"}
SKIP_REASONS = (
    "I do not understand the prompt",
    "It needs knowledge that I do not have",
    "It is upsetting, and I do not want to judge it",
    "It contains personal data",
    "The page or a text is broken",
)


@dataclass(frozen=True)
class Flag:
    """A yes-or-no question about one completion (Table 3 of the paper).

    Attributes:
        name: in exports.
        label: on the page.
        help: one sentence.
        may_not_apply: the labeler chooses yes, no or "does not apply"; else an unticked flag is a no.
    """

    name: str
    label: str
    help: str = ""
    may_not_apply: bool = False


def read_flags(path: str | Path = HERE / "flags.yaml") -> list[Flag]:
    """Reads flags from YAML: name -> label, help, may_not_apply.

    Raises:
        InputError: the file cannot be read, or holds something else.
    """
    try:
        content = yaml.safe_load(Path(path).read_text(encoding="utf-8")) or {}
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise InputError(f"{path} cannot be read: {first_line(error)}. Give a YAML file of flags.") from error
    if not isinstance(content, dict):
        raise InputError(f"{path} is no mapping of flags. Write `name: {{label: ...}}` for each.")
    return [_flag(path, name, one) for name, one in content.items()]


def _flag(path: str | Path, name: object, content: object) -> Flag:
    types = {"label": str, "help": str, "may_not_apply": bool}
    if not isinstance(name, str) or not name.isidentifier():
        raise InputError(
            f"{path}: flag {name!r:.60} is no name of letters, digits and _. Write one, such as {'rude'!r}."
        )
    if not isinstance(content, dict) or not isinstance(content.get("label"), str):
        raise InputError(f"{path}: flag {name} has no label. Write `{name}: {{label: what labelers read}}`.")
    wrong = [key for key, value in content.items() if not isinstance(value, types.get(key, ()))]
    if wrong:
        raise InputError(
            f"{path}: flag {name} has a wrong {wrong[0]!r:.60}. Write label, help (texts) or may_not_apply."
        )
    return Flag(name, **content)


@cache
def templates() -> Environment:
    """Returns the templates, with what they may call."""
    environment = Environment(
        loader=FileSystemLoader(HERE / "templates"), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    filters = {"shown": shown, "shown_line": shown_line, "percent": percent, "duration": duration, "number": number}
    environment.filters.update(filters)
    return environment


def task_page(task: Task) -> dict[str, Any]:
    """Returns the values of task.html."""
    messages = [{"role": "user", "content": task.prompt}] if isinstance(task.prompt, str) else task.prompt
    one = len(messages) == 1
    return {
        "key": task.key,
        "kind": task.kind,
        "revision": task.revision,
        "is_reopened": task.revision > 0,
        "number": task.done + (task.revision == 0),
        "seconds": round(task.active),
        "draft": json.dumps(task.draft),
        "can_undo": task.done > 0,
        "messages": [
            {"role": "" if one else ROLES.get(m["role"], m["role"]), "role_class": m["role"], **_text(m["content"])}
            for m in messages
        ],
        "completions": [{"letter": LETTERS[i], **_text(text)} for i, text in enumerate(task.completions)],
    }


def _text(text: str) -> dict[str, Any]:
    return {"text": text, "content": text, "is_long": is_long(text), "words": len(text.split())}


def history_page(judgments: Sequence[Judged], now: float) -> list[dict[str, str]]:
    """Returns the lines of history.html."""
    return [
        {
            "key": one.key,
            "prompt": prompt_line(one.prompt),
            "outcome": _outcome(one),
            "ago": ago(now - (one.revised or one.created)),
        }
        for one in judgments
    ]


def _outcome(judged: Judged) -> str:
    if judged.skipped is not None:
        return f"skipped: {judged.skipped}"
    if judged.unrankable:
        return "cannot be ranked"
    return "ranked" if judged.kind == "comparison" else "written"


def prompt_line(prompt: str | Sequence[Mapping[str, str]]) -> str:
    """Returns the text that stands for a prompt: itself, or its last message."""
    return prompt if isinstance(prompt, str) else prompt[-1]["content"]


def ago(seconds: float) -> str:
    """Returns a span up to now in words, such as "5 minutes ago"."""
    for size, name in ((86400, "day"), (3600, "hour"), (60, "minute")):
        if seconds >= size:
            count = int(seconds // size)
            return f"{count} {name}{'s' if count > 1 else ''} ago"
    return "just now"


def percent(share: float | None) -> str:
    """Returns .726 as "73 %", and what is not known as a dash."""
    return "–" if share is None or math.isnan(share) else f"{100 * share:.0f} %"


def duration(seconds: float | None) -> str:
    """Returns 95 as "1:35"."""
    return "–" if seconds is None or math.isnan(seconds) else f"{int(seconds) // 60}:{int(seconds) % 60:02d}"


def number(value: float | None, digits: int = 0) -> str:
    """Returns 1234.5 as "1,234", and what is not known as a dash."""
    return "–" if value is None or math.isnan(value) else f"{value:,.{digits}f}"
