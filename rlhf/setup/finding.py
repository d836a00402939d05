"""A thing that `rlhf doctor` has looked at, and the first of them: the packages without which nothing starts."""

import importlib
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from rlhf.errors import first_line

REQUIRED = ("torch", "transformers", "trl", "peft", "accelerate", "datasets", "yaml", "psutil", "matplotlib")


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at.

    Attributes:
        state: broken if the stages need it, missing if only some commands do.
        text: what is there.
        remedy: one line; "" if nothing is to be done.
    """

    name: str
    state: Literal["ok", "missing", "broken"]
    text: str
    remedy: str = ""


def packages() -> Iterator[Finding]:
    """Yields Python's version, and imports what every stage needs. Imports nothing else."""
    yield Finding("python", "ok", f"{'.'.join(map(str, sys.version_info[:3]))} in {sys.prefix}")
    versions = []
    for name in REQUIRED:
        try:
            versions.append(f"{name} {importlib.import_module(name).__version__}")
        except Exception as error:  # of any kind: a C library that is absent, a version of another package
            remedy = "pip install . -c constraints.txt, in a checkout of this project, installs the tested versions."
            yield Finding(name, "broken", first_line(error), remedy)
    yield Finding("packages", "ok", ", ".join(versions))
