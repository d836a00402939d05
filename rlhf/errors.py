"""The one exception for input that the user can put right."""


class InputError(ValueError):
    """The user's configuration, data or folders are wrong.

    The message is one sentence that names the file, row or field and says what to do. `rlhf.cli.run` prints it without
    a traceback; every other exception is a bug of ours and keeps its traceback.
    """


def require_at_least(config: object, minimum: float, *names: str) -> None:
    """Raises InputError if one of the named fields of `config` is below `minimum`. A field that is None passes."""
    for name in names:
        value = getattr(config, name)
        if value is not None and value < minimum:
            raise InputError(f"{name} is {value}; it must be at least {minimum}.")
