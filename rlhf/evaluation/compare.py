"""Answers of the stages of a run to one prompt, for the terminal."""

import shutil
import textwrap
from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

from rlhf.data.encode import Prompt, encode_prompt
from rlhf.errors import InputError
from rlhf.evaluation.preferences import NAMES
from rlhf.generation.completions import completion_rewards, sample_completions
from rlhf.models.loading import context_length
from rlhf.models.shared_base import SharedBase


@dataclass(frozen=True)
class Answer:
    """The answer of one model.

    Attributes:
        name: a key of `rlhf.evaluation.preferences.NAMES`.
        ended: False if the answer was cut off at the length limit.
        reward: score of the reward model; None without one.
    """

    name: str
    text: str
    ended: bool
    reward: float | None


def answers(
    shared: SharedBase,
    tokenizer: PreTrainedTokenizerBase,
    prompt: Prompt,
    *,
    max_new_tokens: int = 256,
    temperature: float = 0.0,
    seed: int = 0,
) -> list[Answer]:
    """Returns the answers to one prompt: of the base, and of `sft` and `ppo` if they are loaded.

    Args:
        max_new_tokens: length limit in tokens; lower if the model's context has less room.
        temperature: 0 is greedy.

    Raises:
        InputError: the prompt fills the context.
    """
    ids = encode_prompt(tokenizer, prompt)
    context = context_length(shared.config)
    room = max_new_tokens if context is None else min(max_new_tokens, context - len(ids))
    if room < 1:
        raise InputError(f"The prompt has {len(ids)} tokens, and the model's context only {context}; shorten it.")
    results = []
    for name in ("base", *(name for name in ("sft", "ppo") if name in shared.adapters)):
        adapter = None if name == "base" else name
        options = {"max_new_tokens": room, "temperature": temperature, "seed": seed, "progress": False}
        [completion] = sample_completions(shared, adapter, [ids], tokenizer, **options)
        reward = None
        if "reward" in shared.heads:
            [reward] = completion_rewards(shared, "reward", [ids], [completion.ids])
        results.append(Answer(name, completion.text, completion.ended, reward))
    return results


def as_text(prompt: str, results: list[Answer], width: int | None = None) -> str:
    """Returns prompt and answers as text: names in a column on the left, wrapped text on the right.

    Args:
        width: columns of the terminal; None asks the terminal. At most 110 are used.
    """
    width = min(width or shutil.get_terminal_size((100, 24)).columns, 110)
    blocks = [_block(["Prompt"], prompt, width)]
    for answer in results:
        left = [NAMES[answer.name]] + ([] if answer.reward is None else [f"reward {answer.reward:+.2f}"])
        blocks.append(_block(left, answer.text + ("" if answer.ended else " … (cut)"), width))
    return f"\n{'-' * width}\n".join(blocks)


def _block(left: list[str], text: str, width: int, column: int = 14) -> str:
    right = [
        line
        for paragraph in (text or "(empty)").splitlines()
        for line in textwrap.wrap(paragraph, width - column) or [""]
    ]
    height = max(len(left), len(right))
    left, right = left + [""] * (height - len(left)), right + [""] * (height - len(right))
    return "\n".join(f"{name:<{column}}{line}".rstrip() for name, line in zip(left, right, strict=True))
