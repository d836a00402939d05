"""A file of completions made elsewhere, matched with the prompts that are asked.

Each line is a JSON object, or a row of a CSV or Parquet file, with `prompt` (text or messages) and `response` or
`completion` (text or one assistant message), and optionally `ended` and `tokens`. Of a file with the answers of several
systems, such as completions.jsonl, the system takes those of its own name.
"""

import json
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rlhf.data.cells import read_cells
from rlhf.data.encode import Prompt, completion_text, prompt_text
from rlhf.data.files import SourceRow, named_row, read_rows
from rlhf.errors import InputError
from rlhf.evaluation.scored_rows import SYSTEM, first_value
from rlhf.evaluation.systems import System

RESPONSES = ("response", "completion", "output", "answer")
SHOWN = 60  # characters of a prompt in a message


def read_completions(system: System, prompts: Sequence[Prompt]) -> list[dict[str, Any]]:
    """Returns the answer to each prompt, with `response`, `ended` and `tokens`.

    A prompt that is asked k times takes its first k answers in the file, or the last one again if there are fewer.

    Raises:
        InputError: the file cannot be read, a line is no answer, or prompts have none.
    """
    path = Path(system.source).expanduser()
    answers: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for number, row in _own_rows(system, path):
        answer = _answer(system, row, f"{path}, line {number}")
        answers[_key(row["prompt"])].append(answer)
    missing = [i for i, prompt in enumerate(prompts) if _key(prompt) not in answers]
    if missing:
        first = " ".join(prompt_text(prompts[missing[0]]).split())
        shown = first if len(first) <= SHOWN else first[:SHOWN] + "..."
        raise InputError(
            f"System {system.name}: {path} answers {len(prompts) - len(missing)} of the {len(prompts)} prompts that "
            f"are asked. It has nothing for {len(missing)}, the first being prompt {missing[0]}, {shown!r}. Complete "
            "the file, or ask only its prompts."
        )
    asked: dict[str, int] = defaultdict(int)
    found = []
    for prompt in prompts:
        key = _key(prompt)
        found.append(answers[key][min(asked[key], len(answers[key]) - 1)])
        asked[key] += 1
    return found


def _own_rows(system: System, path: Path) -> list[tuple[int, Any]]:
    """Returns (line, row) of the rows of one system.

    Raises:
        InputError: the rows name several systems, and none is this one.
    """
    rows = list(enumerate(_rows(system, path), start=1))
    named = [first_value(row, SYSTEM) if isinstance(row, dict) else None for _, row in rows]
    known = list(dict.fromkeys(str(name) for name in named if name is not None))
    if len(known) < 2:
        return rows
    if system.name not in known:
        raise InputError(
            f"System {system.name}: {path} has the answers of {', '.join(known[:SHOWN])}. Take the name of one of "
            f"them: {known[-1]}={path}."
        )
    return [row for row, name in zip(rows, named, strict=True) if str(name) == system.name]


def _rows(system: System, path: Path) -> list[Any]:
    if not path.name.endswith((".json", ".jsonl")):
        return [_read(system, row) for row in read_rows(path)]
    try:
        text = path.read_text(encoding="utf-8")
        if path.suffix == ".json":
            rows = json.loads(text)
            if not isinstance(rows, list):
                raise InputError(f"System {system.name}: {path} holds no list of answers. Write one object per answer.")
        else:
            rows = []
            for number, line in enumerate(text.split("\n"), start=1):
                if line.strip():
                    rows.append(_parsed(system, line, f"{path}, line {number}"))
    except (OSError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"System {system.name}: {path} cannot be read ({error}). Correct the file.") from error
    if not rows:
        raise InputError(f"System {system.name}: {path} is empty. Give it one line for each prompt.")
    return rows


def _read(system: System, row: SourceRow) -> dict[str, Any]:
    """Returns a row of a table, whose cells may spell messages, numbers and truth values; an empty answer is text."""
    with named_row(row, f"System {system.name}: "):
        content = read_cells(row.content)
    content = {name: "" if name in RESPONSES and value is None else value for name, value in content.items()}
    if isinstance(ended := content.get("ended"), str):
        content["ended"] = {"true": True, "false": False}.get(ended.lower(), ended)
    if isinstance(tokens := content.get("tokens"), str) and tokens.isdecimal():
        content["tokens"] = int(tokens)
    return {name: value for name, value in content.items() if value is not None}


def _parsed(system: System, line: str, place: str) -> Any:
    try:
        return json.loads(line)
    except ValueError as error:
        raise InputError(f"System {system.name}: {place} is not JSON ({error}). Correct the line.") from error


def _answer(system: System, row: Any, place: str) -> dict[str, Any]:
    response = next((row[name] for name in RESPONSES if name in row), None) if isinstance(row, dict) else None
    try:
        text = completion_text(response)  # pyright: ignore[reportArgumentType]
        prompt_text(row["prompt"])
    except (TypeError, KeyError, IndexError, AttributeError):
        text = None
    if not isinstance(text, str):
        names = ", ".join(RESPONSES)
        raise InputError(f"System {system.name}: {place} needs a prompt and one of {names}. Correct the line.")
    tokens, ended = row.get("tokens"), row.get("ended", True)
    if not isinstance(ended, bool) or not (tokens is None or isinstance(tokens, int)):
        raise InputError(f"System {system.name}: {place}: ended must be true or false, tokens a number. Correct it.")
    return {"response": text.strip(), "ended": ended, "tokens": tokens}


def _key(prompt: Prompt) -> str:
    """Returns what is equal for a text and for one message of the user with it."""
    return prompt_text(prompt).strip()
