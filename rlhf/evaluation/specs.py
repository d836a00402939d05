"""One-line specifications of judges: `reward=runs/x/reward,name=other`, equal in YAML and on the command line."""

import re
from collections.abc import Collection
from dataclasses import dataclass

from rlhf.errors import InputError


@dataclass(frozen=True)
class Spec:
    """A specification, taken apart.

    Attributes:
        key: the word before the first `=`.
        value: what follows it; None if there is no `=`.
        options: of the form `,option=value`.
    """

    key: str
    value: str | None
    options: dict[str, str]

    def number(self, name: str, default: float, low: float) -> float:
        """Returns an option that must be a number of at least `low`.

        Raises:
            InputError: it is not.
        """
        text = self.options.get(name)
        if text is None:
            return default
        try:
            number = float(text)
        except ValueError:
            number = float("nan")
        if not low <= number < float("inf"):
            raise InputError(f"{self.key} has {name}={text}; it must be a number of at least {low:g}.")
        return number

    def whole(self, name: str, default: int, low: int = 1) -> int:
        """Returns an option that must be a whole number of at least `low`."""
        number = self.number(name, default, low)
        if number != int(number):
            raise InputError(f"{self.key} has {name}={self.options[name]}; it must be a whole number.")
        return int(number)


def parse_spec(text: str, options: Collection[str]) -> Spec:
    """Takes a specification apart. A comma divides only before `word=`, so values may hold commas and equal signs.

    Args:
        options: the names that are known.

    Raises:
        InputError: no key, an unknown option, or one that is given twice or without a value.
    """
    first, *rest = re.split(r",(?=\w+=)", text.strip())
    key, equals, value = (part.strip() for part in first.partition("="))
    if not key or (equals and not value):
        raise InputError(f"{text!r} is not a specification. Write name=value, or name=value,option=value.")
    given: dict[str, str] = {}
    for part in rest:
        name, _, option = (word.strip() for word in part.partition("="))
        if name not in options:
            raise InputError(f"{key} has no option {name}. Choose from {', '.join(sorted(options))}.")
        if name in given or not option:
            fault = "twice" if name in given else "without a value"
            raise InputError(f"{key} has the option {name} {fault}. Give one value.")
        given[name] = option
    return Spec(key, value or None, given)
