"""Answers of a base and the adapters on it to a few prompts, for the terminal."""

import shutil
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedTokenizerBase

from rlhf.data.encode import Prompt, encode_prompt
from rlhf.errors import InputError
from rlhf.generation.completions import Completion, completion_rewards, sample_completions
from rlhf.models.loading import context_length
from rlhf.models.shared_base import SharedBase
from rlhf.runs.system_names import NAMES


@dataclass(frozen=True)
class Answer:
    """The answer of one model.

    Attributes:
        name: `base`, or the name of an adapter.
        ended: False if the answer was cut off at the length limit.
        reward: score of the reward model; None without one.
    """

    name: str
    text: str
    ended: bool
    reward: float | None


def answers(shared: SharedBase, tokenizer: PreTrainedTokenizerBase, prompt: Prompt, **options) -> list[Answer]:
    """Returns the answers to one prompt: of the base, and of each adapter that writes text; see `answers_to_all`."""
    return answers_to_all(shared, tokenizer, [prompt], **options)[0]


def answers_to_all(
    shared: SharedBase,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Prompt],
    *,
    max_new_tokens: int = 256,
    temperature: float = 0.0,
    seed: int = 0,
) -> list[list[Answer]]:
    """Returns the answers to each prompt.

    Args:
        max_new_tokens: length limit in tokens; lower if the model's context has less room.
        temperature: 0 is greedy.

    Raises:
        InputError: a prompt fills the context.
    """
    ids = [encode_prompt(tokenizer, prompt) for prompt in prompts]
    rooms = _rooms(list(map(len, ids)), context_length(shared.config), max_new_tokens)
    by_prompt: list[list[Answer]] = [[] for _ in ids]
    for name in ("base", *(name for name in shared.adapters if name not in shared.heads)):
        adapter, many = None if name == "base" else name, len(ids) > 1
        options = {"temperature": temperature, "seed": seed, "progress": many, "description": name}
        found: dict[int, Completion] = {}
        for room, numbers in rooms.items():
            asked = [ids[i] for i in numbers]
            options |= {"max_new_tokens": room, "numbers": numbers}
            found |= zip(numbers, sample_completions(shared, adapter, asked, tokenizer, **options), strict=True)
        completions = [found[i] for i in range(len(ids))]
        rewards: Sequence[float | None] = [None] * len(ids)
        if "reward" in shared.heads:
            rewards = completion_rewards(shared, "reward", ids, [completion.ids for completion in completions])
        for row, completion, reward in zip(by_prompt, completions, rewards, strict=True):
            row.append(Answer(name, completion.text, completion.ended, reward))
    return by_prompt


def _rooms(lengths: Sequence[int], context: int | None, max_new_tokens: int) -> dict[int, list[int]]:
    """Returns {tokens of an answer, at most: numbers of the prompts}: `max_new_tokens`, or what the context leaves."""
    rooms: dict[int, list[int]] = {}
    for i, length in enumerate(lengths):
        room = max_new_tokens if context is None else min(max_new_tokens, context - length)
        if room < 1:
            number = f" {i + 1}" if len(lengths) > 1 else ""
            raise InputError(
                f"The prompt{number} has {length} tokens, and the model's context only {context}; shorten it."
            )
        rooms.setdefault(room, []).append(i)
    return rooms


def rows_of(prompts: Sequence[Prompt], results: Sequence[list[Answer]]) -> list[dict[str, Any]]:
    """Returns a row for each answer, with the columns of completions.jsonl (`rlhf.evaluation.preferences`)."""
    return [
        {"prompt_id": i, "prompt": prompt, "system": answer.name, "response": answer.text, "ended": answer.ended}
        | ({} if answer.reward is None else {"reward": answer.reward})
        for i, (prompt, found) in enumerate(zip(prompts, results, strict=True))
        for answer in found
    ]


def totals(results: Sequence[list[Answer]]) -> str:
    """Returns a table with a line for each system: mean reward, and the share of answers that ended by themselves."""
    lines = []
    for i, first in enumerate(results[0]):
        answers = [found[i] for found in results]
        rewards = [answer.reward for answer in answers if answer.reward is not None]
        mean = f"reward {sum(rewards) / len(rewards):+.2f}  " if rewards else ""
        ended = sum(answer.ended for answer in answers)
        lines.append(f"{NAMES.get(first.name, first.name):<14}{mean}ended {ended} of {len(answers)}")
    return "\n".join(lines)


def as_text(prompt: str, results: list[Answer], width: int | None = None) -> str:
    """Returns prompt and answers as text: names in a column on the left, wrapped text on the right.

    Args:
        width: columns of the terminal; None asks the terminal. At most 110 are used.
    """
    width = min(width or shutil.get_terminal_size((100, 24)).columns, 110)
    blocks = [_block(["Prompt"], prompt, width)]
    for answer in results:
        left = [NAMES.get(answer.name, answer.name)] + (
            [] if answer.reward is None else [f"reward {answer.reward:+.2f}"]
        )
        blocks.append(_block(left, answer.text + ("" if answer.ended else " … (cut)"), width))
    return f"\n{'-' * width}\n".join(blocks)


def _block(left: list[str], text: str, width: int) -> str:
    column = max(14, *(len(name) + 2 for name in left))
    right = [
        line
        for paragraph in (text or "(empty)").splitlines()
        for line in textwrap.wrap(paragraph, width - column) or [""]
    ]
    height = max(len(left), len(right))
    left, right = left + [""] * (height - len(left)), right + [""] * (height - len(right))
    return "\n".join(f"{name:<{column}}{line}".rstrip() for name, line in zip(left, right, strict=True))
