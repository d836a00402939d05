"""The command line of the recipes: TRL's parser, which reports a mistake of the user in one line."""

import contextlib
import dataclasses
import gc
import logging
import math
import os
import signal
import sys
import time
import warnings
from argparse import SUPPRESS
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml
from tqdm.auto import tqdm

from rlhf.errors import InputError, machine_fault
from rlhf.noise import quiet_libraries
from rlhf.option_parser import HelpAll, OptionParser, check_keys
from rlhf.options import Options
from rlhf.smoke import smoke_line

# The libraries of a recipe create 460,000 objects that all stay. Looking for garbage among them while they load
# takes 2 of 7 seconds of CPU time, so the collector waits until `run` starts the recipe.
THRESHOLDS = gc.get_threshold()
gc.set_threshold(1_000_000)

OTHER_PROCESSES = 3.0  # seconds that they leave to the first one to report a mistake


def parse(
    *dataclass_types: type,
    args: list[str] | None = None,
    options: Options | None = None,
    positional: str | None = None,
) -> tuple:
    """Reads `--config file.yaml` and the command line, which overrides it, into one instance per dataclass.

    `--help` prints the own options and exits, `--help-all` all of them. `--smoke` makes a stage short (rlhf/smoke.py).

    Args:
        dataclass_types: dataclasses without a field in common, e.g. `DataArguments, SFTArguments, ModelConfig`.
        args: command line without the program's name; `sys.argv[1:]` if None.
        options: fields that the recipe does not obey; the help says so.
        positional: option whose name may be left out if it comes first: `rlhf compare runs/mine` sets `run`.

    Raises:
        InputError: unknown key or option, value of the wrong type, missing or malformed file, an option that the recipe
            refuses, or a combination of values that a dataclass refuses in `__post_init__`.
    """
    args = list(sys.argv[1:] if args is None else args)
    if positional is not None and args and not args[0].startswith("-"):
        args.insert(0, f"--{positional}")
    args = _separate_config(args)
    config = args[args.index("--config") + 1] if "--config" in args else None
    parser = OptionParser(dataclass_types, allow_abbrev=False)  # pyright: ignore[reportArgumentType]
    parser.add_argument(
        "--help-all", action=HelpAll, nargs=0, default=SUPPRESS, dest=SUPPRESS, help="Show all options and exit."
    )
    parser.config_file = config
    if options is not None:
        parser.leave_out(options)
    try:
        if config is not None:
            with open(config, encoding="utf-8") as file:
                check_keys(yaml.compose(file), config)
        if "--smoke" in args:
            args = smoke_line(Path(sys.argv[0]).stem, args)
        with warnings.catch_warnings():
            quiet_libraries()
            *parsed, unknown = parser.parse_args_and_config(args, return_remaining_strings=True)
    except InputError:
        raise
    except OSError as error:
        raise InputError(f"Config file {config} cannot be read: {error.strerror or error}. Check its path.") from error
    except UnicodeDecodeError as error:
        raise InputError(f"Config file {config} is not UTF-8 text. Save it as UTF-8.") from error
    except yaml.YAMLError as error:
        raise InputError(f"Config file {config} is not valid YAML: {error}. Correct the file.") from error
    except ValueError as error:  # from __post_init__ of dataclasses of TRL, transformers and this library
        raise InputError(parser.sentence(str(error))) from error
    if unknown:
        parser.refuse_unknown(unknown[0], where="the command line")
    for instance in parsed:
        _refuse_not_finite(instance)
    return tuple(parsed)


def run(main: Callable[[], Any]) -> None:
    """Calls `main`, with this library's log on stderr.

    An `InputError` becomes one line on stderr and exit code 2, and so does a fault of the machine, such as a full disk
    (`rlhf.errors.machine_fault`); other exceptions pass through. Notes of the exception end the line.

    Ctrl-C and SIGTERM become one line, too, with exit code 130. It is the message of the KeyboardInterrupt, which a
    trainer gives to say how to go on.
    """
    if gc.get_threshold() != THRESHOLDS:  # the first call: all libraries are loaded
        gc.freeze()
        gc.set_threshold(*THRESHOLDS)
    with contextlib.suppress(ValueError):  # not in the main thread, where Python allows no handler
        signal.signal(signal.SIGTERM, _interrupt)
        if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
            signal.signal(signal.SIGINT, _interrupt)
    _signals.clear()
    log, stderr = logging.getLogger("rlhf"), _AboveBars()  # the root logger prints warnings alone
    level = log.level
    log.addHandler(stderr)
    log.setLevel(logging.INFO)
    try:
        with warnings.catch_warnings():
            quiet_libraries()
            main()
    except (Exception, KeyboardInterrupt) as error:
        if isinstance(error, Exception) and not _signals:
            sentence = str(error) if isinstance(error, InputError) else machine_fault(error)
            if sentence is None:
                raise
            if os.environ.get("RANK", "0") != "0":
                # Most mistakes are those of all processes. The launcher ends the others once the first has said so.
                signal.signal(signal.SIGTERM, signal.SIG_DFL)
                time.sleep(OTHER_PROCESSES)
            words = " ".join([sentence, *getattr(error, "__notes__", ())]).split()
            print(f"error: {' '.join(words)}", file=sys.stderr, flush=True)
            sys.exit(2)
        # Of several processes one is often told by another's end, in an error of the connection, that it is stopped.
        error = error if isinstance(error, KeyboardInterrupt) else ""
        if os.environ.get("RANK", "0") == "0":
            print(f"\n{str(error) or 'stopped'}", file=sys.stderr, flush=True)
        sys.exit(130)
    finally:
        log.removeHandler(stderr)
        log.setLevel(level)


def _interrupt(number: int, frame: object) -> None:
    """Raises KeyboardInterrupt, once a second: terminal and launcher may both send a signal."""
    now, last = time.monotonic(), max(_signals, default=-math.inf)
    _signals.append(now)
    if now - last > 1:
        raise KeyboardInterrupt


_signals: list[float] = []  # times in seconds at which one came, since `run` started


class _AboveBars(logging.StreamHandler):
    """Writes the log to stderr, and moves a progress bar that is shown below it."""

    def emit(self, record: logging.LogRecord) -> None:
        with tqdm.external_write_mode(file=sys.stderr):
            super().emit(record)


def _refuse_not_finite(config: Any) -> None:
    """Raises InputError for a number that is NaN or infinite; `max_grad_norm: inf` clips nothing."""
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        for number in value if isinstance(value, list) else [value]:
            if isinstance(number, float) and not math.isfinite(number) and field.name != "max_grad_norm":
                raise InputError(f"{field.name} is {number}. Give a finite number, or leave it out.")


def _separate_config(args: list[str]) -> list[str]:
    """Rewrites `--config=file` as `--config file`, the only form that TrlParser reads."""
    separated = []
    for arg in args:
        separated += ["--config", arg.removeprefix("--config=")] if arg.startswith("--config=") else [arg]
    if separated.count("--config") > 1:
        raise InputError("--config is given more than once. Pass one YAML file; options after it override its values.")
    if separated[-1:] == ["--config"]:
        raise InputError("--config needs a file. Pass the path of a YAML file after it.")
    return separated
