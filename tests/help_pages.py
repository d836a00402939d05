"""The help of each command as its parser makes it, and as rlhf/help/ stores it.

python tests/help_pages.py    # writes rlhf/help/*.txt; `make format` does so
"""

import contextlib
import io
import os
import runpy
import sys
from pathlib import Path
from unittest import mock

import rlhf.option_parser
from rlhf.help_page import PAGES

RECIPES = Path(__file__).resolve().parent.parent / "recipes"


def page_of(command: str) -> str:
    """Returns what `python recipes/<command>.py --help` prints, with help texts in one line each."""
    script, printed = str(RECIPES / f"{command}.py"), io.StringIO()
    with (
        mock.patch.object(sys, "argv", [script, "--help"]),
        mock.patch.object(rlhf.option_parser, "wrapped", lambda page: page),
        mock.patch.dict(os.environ, COLUMNS="100"),
        contextlib.redirect_stdout(printed),
        contextlib.suppress(SystemExit),
    ):
        runpy.run_path(script, run_name="__main__")
    return printed.getvalue()


def main() -> None:
    PAGES.mkdir(exist_ok=True)
    commands = sorted(path.stem for path in RECIPES.glob("[a-z]*.py"))
    for page in PAGES.glob("*.txt"):
        if page.stem not in commands:
            page.unlink()
    for command in commands:
        (PAGES / f"{command}.txt").write_text(page_of(command), encoding="utf-8")


if __name__ == "__main__":
    main()
