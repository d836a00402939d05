"""Many calls to a model behind an OpenAI-compatible URL: concurrent, paced, and tried again where that may help.

The key comes from an environment variable. It is in no message, file or log: what a server says is searched for it.
"""

import asyncio
import logging
import os
import re
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from tqdm.auto import tqdm

from rlhf.errors import InputError, first_line

if TYPE_CHECKING:
    from openai import AsyncOpenAI

logger = logging.getLogger(__name__)

Messages = list[dict[str, str]]
OPENAI = "api.openai.com"
LOCAL = ("localhost", "127.0.0.1", "::1", "0.0.0.0")
ASKED_AGAIN = 2  # after an answer that cannot be read
GIVE_UP = 20  # failures without an answer in between, each after all its retries, that end the run
REACHABLE = 10.0  # seconds in which a server must answer the first question
FATAL = (401, 403, 404)  # the key or the model is wrong, for every call


@dataclass(frozen=True)
class Reply:
    """A model's answer that could be read: its text, and the tokens that the server counted, or 0."""

    text: str
    tokens_in: int = 0
    tokens_out: int = 0


@dataclass(frozen=True)
class ChatServer:
    """A model behind an OpenAI-compatible URL, and how fast it is asked.

    Attributes:
        url: such as http://localhost:8000/v1.
        model: its name on the server.
        owner: begins messages, such as "Judge llm".
        key: name of the environment variable with the key, or "none". None is OPENAI_API_KEY for OpenAI's own URL, and
            no key for a server on this machine; for others it must be given, so that no key goes to a stranger.
        concurrency: calls at a time.
        requests_per_minute: retries count, too; None is no limit.
        timeout: seconds for one call.
        retries: of a call after a time-out, a broken connection, or one of the states 408, 409, 429 and 5xx. The waits
            between them grow from half a second to 8, or are what the server asks for.

    Raises:
        InputError: no URL, one with a password in it, or no key.
    """

    url: str
    model: str
    owner: str = "Judge llm"
    key: str | None = None
    concurrency: int = 8
    requests_per_minute: float | None = None
    timeout: float = 60.0
    retries: int = 6
    secret: str = field(init=False, repr=False, compare=False, default="none")

    def __post_init__(self):
        parts = _split_url(self.url)
        if parts is None:
            raise InputError(f"{self.owner} needs a URL such as http://localhost:8000/v1, without a password in it.")
        object.__setattr__(self, "secret", _secret(self.owner, self.key, parts))

    @property
    def place(self) -> str:
        """Host and port, for readers."""
        return urlsplit(self.url).netloc

    def check(self) -> None:
        """Asks the server for its models, which costs nothing.

        Raises:
            InputError: it does not answer, or refuses the key. A server without such a list passes.
        """
        openai = _openai(self.owner)
        client = openai.OpenAI(base_url=self.url, api_key=self.secret, timeout=REACHABLE, max_retries=1)
        try:
            with client:
                client.models.list()
        except openai.APIConnectionError as error:
            reason = self.plain(error)
            raise InputError(f"{self.owner} cannot reach {self.url}: {reason}. Start the server there.") from None
        except (openai.AuthenticationError, openai.PermissionDeniedError) as error:
            raise InputError(f"{self.owner}: {self.url} refuses the key: {self.plain(error)}. Give another.") from None
        except (openai.OpenAIError, ValueError, AttributeError, TypeError):
            logger.debug("%s has no list of models", self.place)

    def plain(self, error: Exception) -> str:
        """Returns what a library or server says, in one line and without the key."""
        cause = error.__cause__ if str(error) == "Connection error." else None
        return self.without_key(first_line(cause if isinstance(cause, Exception) else error))[:300]

    def without_key(self, text: str) -> str:
        return text if self.secret == "none" else text.replace(self.secret, "***")

    def ask(
        self,
        conversations: Mapping[str, Messages],
        can_read: Callable[[str], bool],
        take: Callable[[str, Reply], None],
        reminder: str,
        **options: Any,
    ) -> dict[str, str]:
        """Sends all conversations; returns the reason for each that has no answer.

        Args:
            conversations: name -> messages.
            can_read: True for an answer of the right form. Another one is answered with `reminder`, twice at most.
            take: gets the name and the answer as soon as it is there.
            options: of the call, such as temperature and max_tokens. One that the server does not know is left out.

        Raises:
            InputError: the server refuses the key or the model, or has failed 20 times without an answer in between.
        """
        calls = _Calls(self, can_read, take, reminder, options)
        _run(calls.all(conversations))
        return calls.failed


class _Calls:
    """The calls of one `ChatServer.ask`."""

    def __init__(self, server: ChatServer, can_read, take, reminder: str, options: dict[str, Any]):
        self.server, self.can_read, self.take, self.reminder, self.options = server, can_read, take, reminder, options
        self.openai = _openai(server.owner)
        self.failed: dict[str, str] = {}
        self.failures = 0  # in a row
        self.stop: InputError | None = None

    async def all(self, conversations: Mapping[str, Messages]) -> None:
        todo = iter(conversations.items())
        hooks: dict[str, list[Any]] = {"request": [Pace(self.server.requests_per_minute)]}  # each retry is a request
        http = self.openai.DefaultAsyncHttpxClient(event_hooks=hooks, timeout=self.server.timeout)
        client = self.openai.AsyncOpenAI(
            base_url=self.server.url,
            api_key=self.server.secret,
            timeout=self.server.timeout,
            max_retries=self.server.retries,
            http_client=http,
        )
        with tqdm(total=len(conversations), desc=self.server.owner, unit="call", leave=False, disable=None) as bar:
            async with client:
                workers = min(self.server.concurrency, len(conversations))
                await asyncio.gather(*(self._work(client, todo, bar) for _ in range(workers)))
        if self.stop:
            raise self.stop

    async def _work(self, client: "AsyncOpenAI", todo: Iterator[tuple[str, Messages]], bar: tqdm) -> None:
        for name, messages in todo:
            reason = await self._converse(client, name, list(messages))
            if self.stop:
                return
            self.failures = 0 if reason is None else self.failures + 1
            if reason is not None:
                self.failed[name] = reason
                if self.failures >= GIVE_UP:
                    self._stop(f"has failed {GIVE_UP} times in a row, the last time with: {reason}")
                    return
            bar.update()

    async def _converse(self, client: "AsyncOpenAI", name: str, messages: Messages) -> str | None:
        """Takes the answer; returns the reason if there is none."""
        for _ in range(1 + ASKED_AGAIN):
            try:
                reply = _reply(await self._create(client, messages))
            except self.openai.APIStatusError as error:
                if error.status_code in FATAL:
                    self._stop(f"refuses model {self.server.model}: {self.server.plain(error)}")
                return f"state {error.status_code}: {self.server.plain(error)}"
            except self.openai.APITimeoutError:
                return f"no answer within {self.server.timeout:g} seconds"
            except self.openai.APIConnectionError as error:
                return self.server.plain(error)
            except (self.openai.OpenAIError, ValueError):  # not the JSON of a completion
                continue
            if reply is None:
                continue
            reply = Reply(self.server.without_key(reply.text), reply.tokens_in, reply.tokens_out)
            if self.can_read(reply.text):
                self.take(name, reply)
                return None
            said = {"role": "assistant", "content": reply.text}
            messages = [*messages[:1], said, {"role": "user", "content": self.reminder}]
        return f"{1 + ASKED_AGAIN} answers that cannot be read"

    async def _create(self, client: "AsyncOpenAI", messages: Messages) -> Any:
        while True:
            options = dict(self.options)
            call: dict[str, Any] = {"model": self.server.model, "messages": messages, **options}
            try:
                return await client.chat.completions.create(**call)
            except self.openai.BadRequestError as error:
                # Newer models have max_completion_tokens in place of max_tokens, and reason at their own temperature.
                if error.param not in options or error.param not in ("max_tokens", "temperature"):
                    raise
                value = self.options.pop(error.param, None)
                if error.param == "max_tokens" and value is not None:
                    self.options["max_completion_tokens"] = value

    def _stop(self, reason: str) -> None:
        self.stop = self.stop or InputError(
            f"{self.server.owner}: {self.server.url} {reason}. The answers so far are kept; run again to go on."
        )


class Pace:
    """Spreads requests evenly: as a hook of the HTTP client it waits for the turn of each.

    Args:
        per_minute: None is no limit.
    """

    def __init__(self, per_minute: float | None):
        self.gap = 60 / per_minute if per_minute else 0.0  # seconds
        self.next = 0.0

    async def __call__(self, _request: object) -> None:
        now = time.monotonic()
        turn = max(self.next, now)
        self.next = turn + self.gap
        if turn > now:
            await asyncio.sleep(turn - now)


def _reply(completion: Any) -> Reply | None:
    """Returns the text of a finished completion; None for one that was cut off, or that is none."""
    try:
        choice = completion.choices[0]
        text, usage = choice.message.content, completion.usage
    except (AttributeError, IndexError, TypeError):
        return None
    if not isinstance(text, str) or choice.finish_reason == "length":
        return None
    return Reply(text, getattr(usage, "prompt_tokens", 0) or 0, getattr(usage, "completion_tokens", 0) or 0)


def _split_url(url: str) -> Any:
    try:
        parts = urlsplit(url)
        bare = parts.hostname and parts.username is None and parts.password is None and parts.port != 0
        return parts if bare and parts.scheme in ("http", "https") else None
    except ValueError:
        return None


def _secret(owner: str, variable: str | None, url: Any) -> str:
    """Returns the key, or "none" for a server that needs none."""
    if variable == "none" or (variable is None and url.hostname in LOCAL):
        return "none"
    if variable is None and url.hostname != OPENAI:
        raise InputError(
            f"{owner} has no key for {url.hostname}. Put it into an environment variable and name that with key=NAME; "
            "key=none is for a server without keys."
        )
    variable = variable or "OPENAI_API_KEY"
    if not re.fullmatch(r"[A-Z][A-Z0-9_]*", variable):  # perhaps the key itself, which no message may show
        raise InputError(f"{owner} has a key= that is no name of an environment variable. Write key=NAME.")
    secret = os.environ.get(variable, "").strip()
    if not secret:
        raise InputError(f"{owner} needs a key: the environment variable {variable} is not set. Export it.")
    return secret


def _openai(owner: str) -> Any:
    try:
        import openai
    except ImportError as error:
        raise InputError(f"{owner} needs the package openai. Run pip install 'instruct-rlhf[eval]'.") from error
    return openai


def _run(coroutine: Awaitable[None]) -> None:
    """Runs a coroutine to its end; in a thread of its own where a notebook has an event loop already."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        asyncio.run(coroutine)  # pyright: ignore[reportArgumentType]
        return
    with ThreadPoolExecutor(1) as pool:
        pool.submit(asyncio.run, coroutine).result()  # pyright: ignore[reportArgumentType]
