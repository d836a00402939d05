"""The exception for mistakes that the user can correct, how its message is made, and faults of the machine."""

import argparse
import difflib
import errno
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, NoReturn


class InputError(ValueError):
    """A mistake in the user's configuration, data or folders.

    The message names the file, row or field and ends with what to do. `rlhf.cli.run` prints it without a traceback. Any
    other exception is a bug of this library and keeps its traceback.
    """


class NotFiniteError(InputError):
    """A loss, gradient or score that is NaN or infinite, which ends the run. To resume it would not help."""


def first_line(error: BaseException) -> str:
    """Returns the first line of a library's error, without a full stop; the name of its class if it has no text.

    Of the system's own errors it is the reason, without number and path.
    """
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")


@contextmanager
def options_named(names: dict[str, str]) -> Iterator[None]:
    """Gives options in the message of an InputError the names that they have for another source.

    Args:
        names: {option of the stage's own source: option of this source}, as the message writes them.
    """
    try:
        yield
    except InputError as error:
        message = str(error)
        for name, here in names.items():
            message = message.replace(name, here)
        raise InputError(message) from error


def require_at_least(config: object, minimum: float, *names: str) -> None:
    """Raises InputError if one of the named fields of `config` is below `minimum`, or NaN. None passes."""
    for name in names:
        value = getattr(config, name)
        if value is not None and not value >= minimum:
            raise InputError(f"{name} is {value}; it must be at least {minimum}.")


def unknown_option(name: str, where: str, names: Iterable[str]) -> str:
    """Returns the sentence for an option that a command does not have, with the nearest that it has.

    Args:
        name: as given, with hyphens on a command line.
        where: place of the option.
        names: of the command's options, without hyphens in front.
    """
    name = name.partition("=")[0]
    hyphens = "--" if name.startswith("-") else ""
    close = difflib.get_close_matches(name.lstrip("-").replace("-", "_"), sorted(names), n=1)
    hint = f"did you mean {hyphens}{close[0]}?" if close else "run with --help for all options."
    return f"{name} in {where} is not an option of this command; {hint}"


class PlainParser(argparse.ArgumentParser):
    """Parser of a command without configs, which shows the script's docstring and reports a mistake in one line."""

    def __init__(self, description: str | None):
        super().__init__(
            description=description,
            formatter_class=partial(argparse.RawDescriptionHelpFormatter, max_help_position=6),
            allow_abbrev=False,
        )

    def parse_args(self, args: Sequence[str] | None = None, namespace: Any = None) -> Any:
        parsed, unknown = self.parse_known_args(args, namespace)
        if unknown:
            names = {option.removeprefix("--") for action in self._actions for option in action.option_strings}
            self.exit(2, f"error: {unknown_option(unknown[0], 'the command line', names)}\n")
        return parsed

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"error: {message}. Run with --help for all options.\n")


# ---- Faults of the machine

FULL = "The disk is full. Free space, or set an output folder on another disk."
MEMORY = (
    "The memory is used up. Make per_device_train_batch_size, the lengths or the model smaller, or pass "
    "--gradient_checkpointing true."
)
OS_FAULTS = {
    errno.ENOSPC: FULL,
    errno.EDQUOT: "The disk quota is used up. Free space, or set an output folder on another disk.",
    errno.EFBIG: "A file is larger than allowed here. Raise `ulimit -f`, or set an output folder on another disk.",
    errno.EACCES: "{file}: permission denied. Change its permissions, or name another.",
    errno.EPERM: "{file}: operation not permitted. Change its permissions, or name another.",
    errno.EROFS: "{file} is on a file system that is read only. Name another.",
    errno.EMFILE: "Too many files are open. Raise `ulimit -n`.",
    errno.ENFILE: "Too many files are open on this machine. End other programs.",
    errno.EIO: "{file}: the disk or the network drive does not answer. Check it, or name another.",
    errno.ESTALE: "{file}: the network drive has gone away. Mount it again.",
    errno.ENOMEM: MEMORY,
    errno.EADDRINUSE: "The port is in use. End the program that uses it, or choose another port.",
}
# Libraries written in C++ and Rust raise errors of their own, whose text says the same.
TEXTS = {
    r"No space left on device|failed writing file|iostream error": FULL,
    r"File too large": OS_FAULTS[errno.EFBIG],
    r"out of memory|can't allocate memory|Cannot allocate memory|bad_alloc": MEMORY,
    r"address already in use|EADDRINUSE": OS_FAULTS[errno.EADDRINUSE],
    r"Could not determine home directory": "A path begins with ~ and a user without a home. Write the whole path.",
    r"Symlink loop": "The symbolic links of a path point at each other. Correct the path.",
}


def is_damage(error: BaseException) -> bool:
    """True for an exception with which a library reports that a file of JSON, safetensors or torch is damaged."""
    kinds = {each.__name__ for each in type(error).__mro__}
    damaged = bool(kinds & {"SafetensorError", "JSONDecodeError", "UnpicklingError", "EOFError", "BadZipFile"})
    return damaged or (isinstance(error, RuntimeError) and "PytorchStreamReader" in str(error))


def machine_fault(error: BaseException | None) -> str | None:
    """Returns a sentence with the remedy if an exception, or one that led to it, is a fault of the machine, else None.

    Such faults are a full disk, missing permissions, no memory: nothing that a check at the start can rule out.
    """
    while error is not None:
        if isinstance(error, OSError) and error.errno in OS_FAULTS:
            return OS_FAULTS[error.errno].format(file=error.filename or "A file")
        if isinstance(error, MemoryError):
            return MEMORY
        kind = type(error).__name__
        if isinstance(error, RuntimeError | OSError) or kind == "SafetensorError":
            for pattern, sentence in TEXTS.items():
                if re.search(pattern, str(error), re.IGNORECASE):
                    return sentence
        error = error.__cause__ or error.__context__
    return None
