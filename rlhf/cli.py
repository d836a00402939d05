"""The command line of the recipes: TRL's parser, which reports a mistake of the user in one line."""

import contextlib
import dataclasses
import gc
import logging
import math
import os
import re
import signal
import sys
import time
import warnings
from argparse import SUPPRESS, Action, ArgumentError, ArgumentParser, Namespace
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn, cast

import yaml
from tqdm.auto import tqdm
from trl import TrlParser

from rlhf.errors import InputError, machine_fault, unknown_option
from rlhf.help_page import help_page, takes_auto, wrapped
from rlhf.noise import quiet_libraries
from rlhf.options import Options
from rlhf.smoke import HELP, SMOKE, smoke_line

logger = logging.getLogger(__name__)

# The libraries of a recipe create 460,000 objects that all stay. Looking for garbage among them while they load
# takes 2 of 7 seconds of CPU time, so the collector waits until `run` starts the recipe.
THRESHOLDS = gc.get_threshold()
gc.set_threshold(1_000_000)

OTHER_PROCESSES = 3.0  # seconds that they leave to the first one to report a mistake

# Fields of text that may also be true or false.
TRUTH_OR_TEXT = ("resume_from_checkpoint", "fsdp")

# Options of earlier versions, and what to do without them.
REMOVED = {
    "dataset_test_split": "Drop it: stages hold out a tenth of the conversations for validation and a tenth for test, "
    "whatever splits the source has. Only recipes/evaluate.py takes it.",
    "held_out_share": "Drop it: a tenth of the conversations is for validation and a tenth for test, in all commands.",
}


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
    parser = _Parser(dataclass_types, allow_abbrev=False)  # pyright: ignore[reportArgumentType]
    parser.add_argument(
        "--help-all", action=_HelpAll, nargs=0, default=SUPPRESS, dest=SUPPRESS, help="Show all options and exit."
    )
    parser.config_file = config
    if options is not None:
        parser.leave_out(options)
    try:
        if config is not None:
            with open(config, encoding="utf-8") as file:
                _check_keys(yaml.compose(file), config)
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


class _HelpAll(Action):
    """Prints argparse's own help, which has all options."""

    def __call__(self, parser: ArgumentParser, *args: Any) -> NoReturn:
        print(ArgumentParser.format_help(parser), end="")
        parser.exit()


class _AboveBars(logging.StreamHandler):
    """Writes the log to stderr, and moves a progress bar that is shown below it."""

    def emit(self, record: logging.LogRecord) -> None:
        with tqdm.external_write_mode(file=sys.stderr):
            super().emit(record)


class _Parser(TrlParser):
    """TrlParser that checks a value in the YAML as it checks the same value on the command line."""

    config_file: str | None = None
    options = Options({}, {})
    given = Namespace()  # the values before a dataclass changes them

    def leave_out(self, options: Options) -> None:
        """Makes the parser refuse, or ignore, the options that the recipe does not obey."""
        self.options = options
        for action in self._actions:
            if reason := options.refused.get(action.dest):
                action.help = f"Not an option of this recipe: {reason}."
            elif reason := options.without_effect.get(action.dest):
                action.help = f"Without effect: {reason}."

    def format_help(self) -> str:
        hidden = {**self.options.refused, **self.options.without_effect}
        types = [cast(type, kind) for kind in self.dataclass_types]
        more = HELP if Path(sys.argv[0]).stem in SMOKE else ""
        return wrapped(help_page(sys.argv[0], types, self._actions, hidden, more))

    def parse_known_args(self, args: Sequence[str] | None = None, namespace: Any = None) -> Any:
        parsed, unknown = super().parse_known_args(args, namespace)
        self.given = Namespace(**vars(parsed))  # the caller empties its own
        self._check_options(parsed)
        return parsed, unknown

    def _check_options(self, parsed: Namespace) -> None:
        """Compares values as they were given: a dataclass changes some in `__post_init__`."""
        fields = {field.name: field for types in self.dataclass_types for field in dataclasses.fields(types)}
        by_name = {action.dest: action for action in reversed(self._actions)}
        for name, reason in {**self.options.refused, **self.options.without_effect}.items():
            if name not in fields:
                continue
            default = _default(fields[name])
            if getattr(parsed, name) in (default, self._convert(by_name[name], default)):
                continue
            if name in self.options.refused:
                raise InputError(f"{name} is {getattr(parsed, name)}, but {reason}. Leave {name} out.")
            logger.warning("%s is without effect: %s", name, reason)

    def error(self, message: str) -> NoReturn:
        message = re.sub(r"(--\w+)/--[\w-]+", r"\1", message)  # TRL's second spelling, with hyphens
        raise InputError(message.removesuffix(".") + ". Run with --help for all options.")

    def sentence(self, message: str) -> str:
        """Returns the message of a dataclass with the name of its option, where it begins with the value alone."""
        if "doesn't support bf16" in message:  # transformers advises use_cpu
            cpus = "or on a CPU with AVX512-BF16 or AMX --bf16 true"
            return f"bf16 is true, and there is no GPU that can compute with it. Pass --bf16 false, {cpus}."
        value = message.split(maxsplit=1)[0] if message else ""
        names = [name for name, given in vars(self.given).items() if isinstance(given, str) and given == value]
        return f"{names[0]}: {message.rstrip('.')}." if len(names) == 1 else f"{message.rstrip('.')}."

    def set_defaults_with_config(self, **config: Any) -> list[str]:
        # These become defaults. argparse checks the type of a default only if it is a string, and never its choices:
        # `seed: 1.5` would pass.
        by_name = {action.dest: action for action in reversed(self._actions)}
        for key, value in config.items():
            if key not in by_name:
                self.refuse_unknown(key, where=f"config file {self.config_file}")
            if by_name[key].nargs == "+" and isinstance(value, str | int | float):
                value = [value]  # one element needs no list on the command line either
            try:
                config[key] = self._convert(by_name[key], value)
            except ArgumentError as error:
                raise InputError(
                    f"Config file {self.config_file}, key {key}: {error.message}. Run with --help for all options."
                ) from error
        return super().set_defaults_with_config(**config)

    def _get_value(self, action: Action, arg_string: str) -> Any:
        """Reads `auto` for an option that may be left to the program: as None if it is else true or false."""
        if not takes_auto(action):
            return super()._get_value(action, arg_string)
        kind = getattr(action.type, "__name__", "")
        if arg_string == "auto":
            return None if kind == "string_to_bool" else arg_string
        try:
            return super()._get_value(action, arg_string)
        except ArgumentError as error:
            words = {"string_to_bool": "true, false", "int": "a whole number"}[kind]
            raise ArgumentError(action, f"invalid value {arg_string!r}: set {words} or auto") from error

    def _convert(self, action: Action, value: Any) -> Any:
        kind = getattr(action.type, "__name__", "")  # TRL wraps the types of fields that may be None
        if isinstance(value, dict) and (kind in ("int", "float", "string_to_bool") or action.choices):
            raise ArgumentError(None, f"expected a single value, not the mapping {value}")
        if value is None or isinstance(value, dict):
            return value
        if isinstance(value, list):
            if action.nargs == "+":
                return [self._convert(action, item) for item in value]
            if kind in ("int", "float", "string_to_bool"):
                raise ArgumentError(None, f"expected a single value, not the list {value}")
            return value
        if kind == "str" and isinstance(value, bool):
            if action.dest.endswith("_strategy") and not value:
                return "no"
            if action.dest not in TRUTH_OR_TEXT:
                raise ArgumentError(None, f"YAML reads the value as {str(value).lower()}; write it in quotes")
            return value
        if kind in ("int", "float", "str", "string_to_bool") or action.choices:
            value = self._get_value(action, str(value))
            self._check_value(action, value)
        return value

    def refuse_unknown(self, name: str, where: str) -> NoReturn:
        option = name.lstrip("-").replace("-", "_").split("=")[0]
        if option in REMOVED:
            raise InputError(f"{option} in {where} is not an option of this command any more. {REMOVED[option]}")
        names = {action.dest for action in self._actions}
        if name.startswith("-") and Path(sys.argv[0]).stem in SMOKE:
            names |= {"accelerate", "smoke", "sweep"}  # of `rlhf <stage>`
        raise InputError(unknown_option(name, where, names))


def _check_keys(node: yaml.Node | None, path: str) -> None:
    """Raises InputError for a YAML that is no mapping of names to values, or that has a key twice.

    Of two equal keys, PyYAML takes the last without a word.
    """
    if not isinstance(node, yaml.MappingNode):
        raise InputError(f"Config file {path} is no mapping of options. Write lines such as learning_rate: 1.0e-4.")
    for key, _ in node.value:
        if not isinstance(key, yaml.ScalarNode) or key.tag != "tag:yaml.org,2002:str":
            name = key.value if isinstance(key, yaml.ScalarNode) else "a list or mapping"
            line = key.start_mark.line + 1
            raise InputError(f"Config file {path}, line {line}: the key is {name}. Write the name of an option.")
    _refuse_repeated_keys(node, path)


def _refuse_repeated_keys(node: yaml.Node, path: str) -> None:
    if isinstance(node, yaml.MappingNode):
        lines: dict[str, int] = {}
        for key, value in node.value:
            line, name = key.start_mark.line + 1, str(key.value)
            if name in lines:
                raise InputError(
                    f"Config file {path} sets {name} twice, in lines {lines[name]} and {line}. Leave one out."
                )
            lines[name] = line
            _refuse_repeated_keys(value, path)


def _refuse_not_finite(config: Any) -> None:
    """Raises InputError for a number that is NaN or infinite; `max_grad_norm: inf` clips nothing."""
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        for number in value if isinstance(value, list) else [value]:
            if isinstance(number, float) and not math.isfinite(number) and field.name != "max_grad_norm":
                raise InputError(f"{field.name} is {number}. Give a finite number, or leave it out.")


def _default(field: dataclasses.Field) -> Any:
    return field.default if field.default_factory is dataclasses.MISSING else field.default_factory()


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
