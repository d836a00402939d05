"""Options of a stage as its script would read them, without running it."""

import importlib.util
import sys
from collections.abc import Sequence
from enum import Enum
from pathlib import Path
from types import ModuleType
from typing import Any, NoReturn

from rlhf.cli import parse
from rlhf.noise import without_log
from rlhf.options import Options


def parsed_options(script: str | Path, args: Sequence[str]) -> tuple[Any, ...]:
    """Returns the dataclasses that a script reads from its command line.

    Args:
        script: such as recipes/ppo.py, whose `main` calls `parse` first.

    Raises:
        InputError: what `rlhf.cli.parse` raises.
    """
    module = _load(Path(script))

    def parse_alone(*types: type, options: Options | None = None) -> NoReturn:
        raise _Parsed(parse(*types, args=list(args), options=options))

    setattr(module, "parse", parse_alone)  # noqa: B010
    before, sys.argv = sys.argv, [str(script), *args]
    try:
        with without_log():  # the stage itself will say it
            module.main()
    except _Parsed as parsed:
        return parsed.args[0]
    finally:
        sys.argv = before
    raise AssertionError(f"{script} has not called parse")


def value_of(configs: Sequence[Any], name: str) -> Any:
    """Returns the value of an option, of an enumeration its text."""
    value = next(getattr(config, name) for config in configs if hasattr(config, name))
    return value.value if isinstance(value, Enum) else value


class _Parsed(Exception):
    """Ends `main` when it has read its options, which are the argument."""


def _load(script: Path) -> ModuleType:
    name = f"script_of_{script.stem}"
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, script)
        assert spec is not None and spec.loader is not None, script
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module  # dataclasses look up their types there
        spec.loader.exec_module(module)
    return sys.modules[name]
