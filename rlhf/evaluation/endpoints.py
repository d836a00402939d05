"""A model behind an OpenAI-compatible endpoint: checked before models are loaded, and asked concurrently.

The key is that of the environment, OPENAI_API_KEY; a server on the own machine may need none.
"""

import asyncio
import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from accelerate.utils import broadcast_object_list
from tqdm.auto import tqdm

from rlhf.data.encode import Prompt, plain_messages, prompt_text
from rlhf.data.prompt_style import as_messages
from rlhf.errors import InputError, first_line
from rlhf.evaluation.store import AnswerStore
from rlhf.evaluation.systems import System
from rlhf.runs.artifacts import is_first_process

if TYPE_CHECKING:
    from openai import AsyncOpenAI

KEY = "OPENAI_API_KEY"
CONCURRENCY = 8  # requests at a time
RETRIES = 6  # of time-outs, rate limits and errors of the server, with growing pauses
TIMEOUT = 120.0  # seconds
HOST = "api.openai.com"


def check_endpoint(system: System) -> None:
    """Asks the server for its models, without repeats.

    Raises:
        InputError: the package is missing, nobody answers at this URL, or the server refuses the key.
    """
    if urlsplit(system.source).hostname == HOST and not os.environ.get(KEY):
        raise InputError(f"System {system.name}: {system.source} needs a key. Set {KEY}.")
    if is_first_process():
        asyncio.run(_check(system))


async def _check(system: System) -> None:
    async with _client(system, retries=0, timeout=10.0) as client:
        import openai

        try:
            await client.models.list()
        except (openai.AuthenticationError, openai.PermissionDeniedError) as error:
            raise _refused_key(system) from error
        except openai.APIConnectionError as error:
            raise InputError(f"System {system.name}: nobody answers at {system.source}. Start the server.") from error
        except (openai.APIError, ValueError):  # a server may list no models
            pass


def answer_by_endpoint(system: System, asked: Mapping[int, Prompt], store: AnswerStore) -> None:
    """Adds the missing answers to the store, each as it comes. The first process asks.

    Raises:
        InputError: the server refuses a request, or keeps failing. The answers so far are kept.
    """
    missing = {i: prompt for i, prompt in asked.items() if i not in store.done}
    failure: str | None = None
    if missing and is_first_process():
        try:
            asyncio.run(_ask_all(system, missing, store))
        except InputError as error:
            failure = str(error)
    [failure, store.done] = broadcast_object_list([failure, store.done])
    if failure:
        kept = f" {len(store.done)} of {len(asked)} answers are kept; run again to go on." if store.done else ""
        raise InputError(failure + kept)


async def _ask_all(system: System, missing: Mapping[int, Prompt], store: AnswerStore) -> None:
    free, bar = asyncio.Semaphore(CONCURRENCY), tqdm(total=len(missing), desc=system.name, unit="answer", leave=False)

    async def ask(client: "AsyncOpenAI", i: int) -> None:
        async with free:
            store.append([(i, await _ask(client, system, missing[i]))])
            bar.update()

    async with _client(system, RETRIES, TIMEOUT) as client:
        try:
            async with asyncio.TaskGroup() as group:  # the first failure cancels the other requests
                for i in missing:
                    group.create_task(ask(client, i))
        except ExceptionGroup as errors:
            raise errors.exceptions[0] from errors
        finally:
            bar.close()


async def _ask(client: "AsyncOpenAI", system: System, prompt: Prompt) -> dict[str, Any]:
    import openai

    options: dict[str, Any] = {"model": system.model, "temperature": system.temperature}
    if system.stop:
        options["stop"] = list(system.stop)
    limit = "max_completion_tokens" if urlsplit(system.source).hostname == HOST else "max_tokens"
    for last in (False,) * RETRIES + (True,):
        try:
            if system.prefix:
                text = _prefix(system) + prompt_text(prompt)
                reply = await client.completions.create(prompt=text, max_tokens=system.max_new_tokens, **options)
                answer = _field(reply, "text")
            else:
                messages: Any = as_messages(prompt) if isinstance(prompt, str) else plain_messages(prompt)
                options[limit] = system.max_new_tokens
                reply = await client.chat.completions.create(messages=messages, **options)
                answer = _field(reply, "message").content
            usage = getattr(reply, "usage", None)
            return {
                "response": (answer or "").strip(),
                "ended": _field(reply, "finish_reason") == "stop",
                "tokens": getattr(usage, "completion_tokens", None),
            }
        except (openai.AuthenticationError, openai.PermissionDeniedError) as error:
            raise _refused_key(system) from error
        except (openai.APIResponseValidationError, AttributeError, IndexError, TypeError, ValueError) as error:
            if last:  # no JSON, or no answer in it
                raise InputError(f"System {system.name}: {system.source} sends no answers in OpenAI's form.") from error
            await asyncio.sleep(0.1)
        except openai.APIConnectionError as error:
            raise InputError(f"System {system.name}: {system.source} does not answer any more.") from error
        except openai.APIStatusError as error:
            reason = first_line(Exception(error.message))
            raise InputError(f"System {system.name}: {system.source} refuses a request: {reason}.") from error
    raise AssertionError("the last attempt returns or raises")


def _field(reply: Any, name: str) -> Any:
    return getattr(reply.choices[0], name)


def _prefix(system: System) -> str:
    from pathlib import Path

    return Path(str(system.prefix)).expanduser().read_text(encoding="utf-8")


def _client(system: System, retries: int, timeout: float) -> "AsyncOpenAI":
    try:
        from openai import AsyncOpenAI
    except ImportError as error:
        raise InputError(
            f"System {system.name} needs the package openai. Run pip install 'instruct-rlhf[eval]'."
        ) from error
    # A server without keys gets a word in its place, because the client wants one.
    return AsyncOpenAI(
        base_url=system.source, api_key=os.environ.get(KEY) or "none", max_retries=retries, timeout=timeout
    )


def _refused_key(system: System) -> InputError:
    state = f"refuses the key of {KEY}. Correct it" if os.environ.get(KEY) else f"needs a key. Set {KEY}"
    return InputError(f"System {system.name}: {system.source} {state}.")
