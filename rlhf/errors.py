"""The exception for mistakes that the user can correct, and how its message is made."""


class InputError(ValueError):
    """A mistake in the user's configuration, data or folders.

    The message names the file, row or field and ends with what to do. `rlhf.cli.run` prints it without a traceback. Any
    other exception is a bug of this library and keeps its traceback.
    """


def first_line(error: Exception) -> str:
    """Returns the first line of a library's error, without a full stop; the name of its class if it has no text."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")


def require_at_least(config: object, minimum: float, *names: str) -> None:
    """Raises InputError if one of the named fields of `config` is below `minimum`, or NaN. None passes."""
    for name in names:
        value = getattr(config, name)
        if value is not None and not value >= minimum:
            raise InputError(f"{name} is {value}; it must be at least {minimum}.")
