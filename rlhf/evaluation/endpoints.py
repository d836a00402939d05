"""A model behind an OpenAI-compatible endpoint: checked before models are loaded, and asked concurrently.

Key and server are checked as those of judges (`rlhf.evaluation.chat_api`), and the openai client tries again.
"""

import asyncio
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from accelerate.utils import broadcast_object_list
from tqdm.auto import tqdm

from rlhf.data.encode import Prompt, plain_messages, prompt_text
from rlhf.data.prompt_style import as_messages
from rlhf.errors import InputError
from rlhf.evaluation.chat_api import OPENAI, ChatServer
from rlhf.evaluation.store import AnswerStore
from rlhf.evaluation.systems import System
from rlhf.runs.artifacts import is_first_process

if TYPE_CHECKING:
    from openai import AsyncOpenAI

MALFORMED = 3  # replies without an answer in OpenAI's form, one after another, that end the run


def server_of(system: System) -> ChatServer:
    """Returns the server of a system.

    Raises:
        InputError: no URL, or no key; see `ChatServer`.
    """
    return ChatServer(system.source, str(system.model), f"System {system.name}", system.key)


def check_endpoint(system: System) -> None:
    """Asks the server for its models.

    Raises:
        InputError: the key or the package is missing, nobody answers at this URL, or the server refuses the key.
    """
    server = server_of(system)
    if is_first_process():
        server.check()


def answer_by_endpoint(system: System, asked: Mapping[int, Prompt], store: AnswerStore) -> None:
    """Adds the missing answers to the store, each as it comes. The first process asks.

    Raises:
        InputError: the server refuses a request, or keeps failing. The answers so far are kept.
    """
    missing = {i: prompt for i, prompt in asked.items() if i not in store.done}
    failure: str | None = None
    if missing and is_first_process():
        try:
            asyncio.run(_ask_all(server_of(system), system, missing, store))
        except InputError as error:
            failure = str(error)
    [failure, store.done] = broadcast_object_list([failure, store.done])
    if failure:
        kept = f" {len(store.done)} of {len(asked)} answers are kept; run again to go on." if store.done else ""
        raise InputError(failure + kept)


async def _ask_all(server: ChatServer, system: System, missing: Mapping[int, Prompt], store: AnswerStore) -> None:
    from openai import AsyncOpenAI

    waiting = iter(missing.items())
    bar = tqdm(total=len(missing), desc=system.name, unit="answer", leave=False, disable=None)
    client = AsyncOpenAI(base_url=server.url, api_key=server.secret, max_retries=server.retries, timeout=server.timeout)

    async def work() -> None:
        for i, prompt in waiting:
            store.append([(i, await _answer(client, server, system, prompt))])
            bar.update()

    async with client:
        try:
            async with asyncio.TaskGroup() as group:  # the first failure cancels the other requests
                for _ in range(min(server.concurrency, len(missing))):
                    group.create_task(work())
        except ExceptionGroup as errors:
            raise errors.exceptions[0] from None
        finally:
            bar.close()


async def _answer(client: "AsyncOpenAI", server: ChatServer, system: System, prompt: Prompt) -> dict[str, Any]:
    import openai

    for _ in range(MALFORMED):
        try:
            return _fields(await _create(client, server, system, prompt), server)
        except openai.APIStatusError as error:
            raise InputError(f"{server.owner}: {server.url} refuses a request: {server.plain(error)}.") from None
        except openai.APITimeoutError:
            raise InputError(f"{server.owner}: no answer from {server.url} in {server.timeout:g} seconds.") from None
        except openai.APIConnectionError as error:
            raise InputError(f"{server.owner} cannot reach {server.url} any more: {server.plain(error)}.") from None
        except (openai.OpenAIError, AttributeError, IndexError, TypeError, ValueError):
            continue  # no JSON, or no answer in it
    raise InputError(f"{server.owner}: {server.url} sends no answers in the form of OpenAI's API.")


async def _create(client: "AsyncOpenAI", server: ChatServer, system: System, prompt: Prompt) -> Any:
    options: dict[str, Any] = {"model": server.model, "temperature": system.temperature}
    if system.stop:
        options["stop"] = list(system.stop)
    if system.prefix:
        text = Path(system.prefix).expanduser().read_text(encoding="utf-8") + prompt_text(prompt)
        return await client.completions.create(prompt=text, max_tokens=system.max_new_tokens, **options)
    messages: Any = as_messages(prompt) if isinstance(prompt, str) else plain_messages(prompt)
    limit = "max_completion_tokens" if urlsplit(server.url).hostname == OPENAI else "max_tokens"
    options[limit] = system.max_new_tokens
    return await client.chat.completions.create(messages=messages, **options)


def _fields(reply: Any, server: ChatServer) -> dict[str, Any]:
    """Returns the answer of a reply, with `response`, `ended` and `tokens`."""
    choice = reply.choices[0]
    text = choice.message.content if hasattr(choice, "message") else choice.text
    return {
        "response": server.without_key(text or "").strip(),
        "ended": choice.finish_reason == "stop",
        "tokens": getattr(reply.usage, "completion_tokens", None),
    }
