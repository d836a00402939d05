"""The one exception for input that the user can put right."""


class InputError(ValueError):
    """The user's configuration, data or folders are wrong.

    The message is one sentence that names the file, row or field and says what to do. `rlhf.cli.run` prints it without
    a traceback; every other exception is a bug of ours and keeps its traceback.
    """
