"""Results that cost time or money, kept in a file of JSON lines: a run that was killed repeats none of them."""

import hashlib
import json
from pathlib import Path
from typing import Any

from rlhf.runs.artifacts import is_first_process


def content_key(*parts: Any) -> str:
    """Returns a hash of JSON values, 32 hex digits: the name of a result that depends on nothing else."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:32]


class KeptResults:
    """Dictionary of JSON objects that is also a file: each result is a line, and is written when it is added.

    A line that a crash cut short is left out when the file is read, so its result is made again.

    Args:
        path: of the file, which need not exist. None keeps the results in memory alone.
    """

    def __init__(self, path: Path | None):
        self.path = path
        self.results: dict[str, dict[str, Any]] = {}
        self._ends_in_newline = True
        if path is not None and path.exists():
            text = path.read_text(encoding="utf-8", errors="replace")
            self._ends_in_newline = text.endswith("\n") or not text
            self.results = dict(filter(None, map(_result, text.split("\n"))))

    def __contains__(self, key: str) -> bool:
        return key in self.results

    def __getitem__(self, key: str) -> dict[str, Any]:
        return self.results[key]

    def add(self, key: str, result: dict[str, Any]) -> None:
        """Adds a result; the first process of a launch writes it."""
        self.results[key] = result
        if self.path is None or not is_first_process():
            return
        line = json.dumps({"key": key, **result}, ensure_ascii=False) + "\n"
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a", encoding="utf-8", errors="backslashreplace") as file:
            file.write(line if self._ends_in_newline else "\n" + line)
        self._ends_in_newline = True


def _result(line: str) -> tuple[str, dict[str, Any]] | None:
    try:
        result = json.loads(line)
        return result.pop("key"), result
    except (ValueError, KeyError, AttributeError, TypeError):
        return None
