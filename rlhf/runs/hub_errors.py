"""Errors of the Hub as sentences with a remedy, and another try where the connection broke."""

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from huggingface_hub import get_token
from huggingface_hub.errors import HfHubHTTPError, HTTPError, LocalTokenNotFoundError

from rlhf.errors import InputError, first_line
from rlhf.runs.artifacts import SECRET_VALUES

logger = logging.getLogger(__name__)

WAITS = (1, 4)  # seconds before another try
LOG_IN = "Log in with `hf auth login` as a user with write access."
AGAIN = "Then run it again: what has been uploaded stays, and the rest follows."
Result = TypeVar("Result")


def retried(request: Callable[[], Result]) -> Result:
    """Calls `request`, and again if the connection breaks or the Hub has an error of its own.

    huggingface_hub tries most requests again, but not those that create a repository or a commit.

    Args:
        request: changes nothing if it is repeated: what exists is kept, and files that are there are not sent again.
    """
    for wait in WAITS:
        try:
            return request()
        except HTTPError as error:
            if isinstance(error, HfHubHTTPError) and error.response.status_code < 500:
                raise
            logger.warning("the connection to the Hub broke (%s); next try in %d s", type(error).__name__, wait)
            time.sleep(wait)
    return request()


@contextmanager
def hub_errors(hub_id: str, token: str | None = None) -> Iterator[None]:
    """Turns a refusal of the Hub, or a Hub that cannot be reached, into an InputError.

    Args:
        hub_id: that the request was about.
        token: that was sent; None: the one of `hf auth login`, if there is one.
    """
    try:
        yield
    except InputError:
        raise
    except (OSError, HTTPError, RuntimeError, ValueError) as error:
        cause = error.__cause__ if isinstance(error, RuntimeError) and error.__cause__ else error  # of an LFS upload
        raise InputError(SECRET_VALUES.sub("***", _sentence(cause, hub_id, bool(token or get_token())))) from error


def _sentence(error: BaseException, hub_id: str, has_token: bool) -> str:
    if isinstance(error, HfHubHTTPError):
        status = error.response.status_code
        reason = " ".join((error.server_message or first_line(error)).split()).rstrip(".")
        if status == 401 and has_token:
            return (
                f"The Hub refused {hub_id}: it does not know the token ({reason}). {LOG_IN} If HF_TOKEN is set, it "
                "counts first."
            )
        if status in (401, 403, 404):
            return (
                f"The Hub refused {hub_id}: {reason}. {LOG_IN} If the name belongs to someone else, choose another one."
            )
        if status >= 500:
            return f"The Hub has an error of its own at {hub_id} ({status}: {reason}). Wait a little. {AGAIN}"
        return f"The Hub refused {hub_id}: {reason}. Correct that. {AGAIN}"
    if isinstance(error, LocalTokenNotFoundError):
        return f"The Hub refused {hub_id}: {first_line(error)}. {LOG_IN}"
    if isinstance(error, HTTPError | ConnectionError):  # from the network, or from HF_HUB_OFFLINE
        return f"The Hub cannot be reached to upload {hub_id}. Check the network and HF_HUB_OFFLINE. {AGAIN}"
    return f"The upload of {hub_id} failed: {' '.join(str(error).split()).rstrip('.')}. Correct that. {AGAIN}"
