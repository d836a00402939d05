"""A conversation with the systems of a run: the base and the adapters on it, any of which may answer next."""

from collections.abc import Generator
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from rlhf.data.encode import Prompt, encode_prompt
from rlhf.errors import InputError
from rlhf.generation.completions import completion_rewards
from rlhf.generation.decode_linears import fast_decode_linears
from rlhf.generation.random_numbers import inverse_cdf, random_generator
from rlhf.generation.sampler import stop_tokens
from rlhf.generation.streaming import PastTokens, stream
from rlhf.models.chat_template import answer_text
from rlhf.models.loading import context_length
from rlhf.models.sharding import is_sharded
from rlhf.models.shared_base import SharedBase

BASE = "base"


@dataclass
class Answer:
    """An answer, which may still be growing.

    Attributes:
        message: what it answers.
        prompt_ids: the conversation up to here, encoded.
        ids: token ids as sampled, with the stop token if there is one.
        ended: True once a stop token has come.
    """

    message: str
    system: str
    prompt_ids: list[int]
    ids: list[int] = field(default_factory=list)
    text: str = ""
    ended: bool = False


class Chat:
    """A conversation, and the models that take part in it.

    Args:
        shared: the base with adapters; an adapter with a head is a reward model, the others are systems.
        style: "chat": turns are messages in the chat template. "text": a message is a prompt of plain text, and stands
            alone, because such models were trained on single prompts.
        temperature: 0 is greedy.
        max_new_tokens: of an answer; fewer where the context ends before.
        seed: of sampling. Systems that answer the same message share their random numbers.

    Attributes:
        systems: names of the models, the base first.
        system: the one that answers.
        turns: the answers so far, each with its message.
    """

    def __init__(
        self,
        shared: SharedBase,
        tokenizer: PreTrainedTokenizerBase,
        style: str = "chat",
        temperature: float = 1.0,
        max_new_tokens: int = 256,
        seed: int = 0,
    ) -> None:
        self.shared, self.tokenizer, self.style = shared, tokenizer, style
        self.temperature, self.max_new_tokens, self.seed = temperature, max_new_tokens, seed
        self.systems = (BASE, *(name for name in shared.adapters if name not in shared.heads))
        self.system = self.systems[-1]
        self.turns: list[Answer] = []
        self.stops = stop_tokens(shared.lm, tokenizer)
        self.asked = 0  # messages so far, removed ones too: the next one gets other random numbers
        self._past = {name: PastTokens(shared.lm) for name in self.systems}

    def ask(self, message: str) -> Answer:
        """Returns an empty answer of the current system to a further message; `grow` fills it.

        Raises:
            InputError: the conversation fills the context, or the chat template refuses it.
        """
        self.asked += 1
        return self._empty(message, self.system, self.turns)

    def ask_again(self, system: str) -> Answer:
        """Returns an empty answer of a system to the last message."""
        return self._empty(self.turns[-1].message, system, self.turns[:-1])

    def grow(self, answer: Answer) -> Generator[str, None, None]:
        """Samples an answer; yields its text piece by piece, as the tokens come.

        The answer holds what has come so far if the iteration is stopped.
        """
        lm, adapter = self.shared.lm, None if answer.system == BASE else answer.system
        generator = random_generator("chat", self.seed, self.asked)

        def choose(logits: Tensor, step: int) -> Tensor:
            if not self.temperature:
                return logits.argmax(-1)
            uniform = torch.rand(1, generator=generator, dtype=torch.float64)
            uniform = uniform.float() if logits.device.type == "mps" else uniform  # see `as_float64`
            return inverse_cdf(logits, uniform.to(logits.device), self.temperature)

        length = self._room(len(answer.prompt_ids))
        with self.shared.use(adapter), nullcontext() if is_sharded(lm) else fast_decode_linears(lm, 1):
            for token in stream(lm, answer.prompt_ids, choose, self.stops, length, self._past[answer.system]):
                answer.ids.append(token)
                answer.ended = token in self.stops
                before, answer.text = answer.text, answer_text(self.tokenizer, answer.prompt_ids, answer.ids).strip()
                yield _added(before, answer.text)
        yield answer.text[len(_whole(answer.text)) :]

    def reward(self, answer: Answer) -> float | None:
        """Returns the calibrated score of the reward model; None without one."""
        if "reward" not in self.shared.heads or not answer.ids:
            return None
        return completion_rewards(self.shared, "reward", [answer.prompt_ids], [answer.ids])[0]

    def rows(self) -> list[dict[str, Any]]:
        """Returns the conversation as rows of demonstrations; `source` names the systems that answered, in order."""
        if self.style == "text":
            return [{"prompt": t.message, "completion": t.text, "source": t.system} for t in self.turns]
        messages = _messages([(turn.message, turn.text) for turn in self.turns])
        return [{"messages": messages, "source": ", ".join(t.system for t in self.turns)}]

    def _empty(self, message: str, system: str, turns: list[Answer]) -> Answer:
        pairs = [(turn.message, turn.text) for turn in turns]
        prompt: Prompt = message if self.style == "text" else [*_messages(pairs), *_messages([(message, "")])[:1]]
        ids = encode_prompt(self.tokenizer, prompt)
        if self._room(len(ids)) < 1:
            remedy = "/undo and shorten the message, or /reset" if turns else "Shorten the message"
            raise InputError(
                f"The conversation has {len(ids)} tokens, and the model's context only "
                f"{context_length(self.shared.config)}. {remedy}."
            )
        return Answer(message, system, ids)

    def _room(self, used: int) -> int:
        context = context_length(self.shared.config)
        return self.max_new_tokens if context is None else min(self.max_new_tokens, context - used)


def _messages(pairs: list[tuple[str, str]]) -> list[dict[str, str]]:
    return [
        {"role": role, "content": text}
        for pair in pairs
        for role, text in zip(("user", "assistant"), pair, strict=True)
    ]


def _whole(text: str) -> str:
    """Returns a text without a character at its end of which only some bytes have come."""
    return text.rstrip("\ufffd")


def _added(before: str, after: str) -> str:
    """Returns what is to be printed after `_whole(before)`; on a new line if the beginning has changed."""
    before, after = _whole(before), _whole(after)
    return after[len(before) :] if after.startswith(before) else "\n" + after
