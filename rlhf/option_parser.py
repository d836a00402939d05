"""The parser of a recipe's options: TRL's, which checks a value in the YAML as it does on the command line."""

import dataclasses
import logging
import re
import sys
from argparse import Action, ArgumentError, ArgumentParser, Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn, cast

import yaml
from trl import TrlParser

from rlhf.errors import InputError, unknown_option
from rlhf.help_page import help_page, takes_auto, wrapped
from rlhf.options import Options
from rlhf.smoke import HELP, SMOKE

logger = logging.getLogger(__name__)

# Fields of text that may also be true or false.
TRUTH_OR_TEXT = ("resume_from_checkpoint", "fsdp")

# Options of earlier versions, and what to do without them.
REMOVED = {
    "dataset_test_split": "Drop it: stages hold out a tenth of the conversations for validation and a tenth for test, "
    "whatever splits the source has. Only recipes/evaluate.py takes it.",
    "held_out_share": "Drop it: a tenth of the conversations is for validation and a tenth for test, in all commands.",
}


class OptionParser(TrlParser):
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
            cpus = "A CPU with AVX512-BF16 or AMX takes an explicit --bf16 true."
            return f"bf16, true by default, needs a GPU that can compute with it. Pass --bf16 false. {cpus}"
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
                wrong = error.message.rstrip(".")
                raise InputError(
                    f"Config file {self.config_file}, key {key}: {wrong}. Run with --help for all options."
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


def _default(field: dataclasses.Field) -> Any:
    return field.default if field.default_factory is dataclasses.MISSING else field.default_factory()


class HelpAll(Action):
    """Prints argparse's own help, which has all options."""

    def __call__(self, parser: ArgumentParser, *args: Any) -> NoReturn:
        print(ArgumentParser.format_help(parser), end="")
        parser.exit()


def check_keys(node: yaml.Node | None, path: str) -> None:
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
