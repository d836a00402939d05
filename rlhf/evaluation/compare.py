"""What the stages of a run answer to one instruction."""

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
    """What one model answers; `reward` is None without a reward model, `ended` false if it was cut off."""

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
    """What the base and those of `sft` and `ppo` that are loaded answer to one prompt.

    Args:
        max_new_tokens: at most; less where the model's context leaves less.
        temperature: 0 is greedy.

    Raises:
        InputError: the prompt alone fills the context.
    """
    ids = encode_prompt(tokenizer, prompt)
    context = context_length(shared.config)
    room = max_new_tokens if context is None else min(max_new_tokens, context - len(ids))
    if room < 1:
        raise InputError(f"the prompt has {len(ids)} tokens and the model's context is {context}; shorten it.")
    found = []
    for name in ("base", *(name for name in ("sft", "ppo") if name in shared.adapters)):
        adapter = None if name == "base" else name
        options = {"max_new_tokens": room, "temperature": temperature, "seed": seed, "progress": False}
        [completion] = sample_completions(shared, adapter, [ids], tokenizer, **options)
        scored = "reward" in shared.heads
        reward = completion_rewards(shared, "reward", [ids], [completion.ids])[0] if scored else None
        found.append(Answer(name, completion.text, completion.ended, reward))
    return found


def as_text(prompt: str, found: list[Answer], width: int | None = None) -> str:
    """Prompt and answers for the terminal: names in a column on the left, text wrapped beside them."""
    width = min(width or shutil.get_terminal_size((100, 24)).columns, 110)
    blocks = [_block(["Prompt"], prompt, width)]
    for answer in found:
        left = [NAMES[answer.name]] + ([] if answer.reward is None else [f"reward {answer.reward:+.2f}"])
        blocks.append(_block(left, answer.text + ("" if answer.ended else " … (cut)"), width))
    return f"\n{'-' * width}\n".join(blocks)


def _block(left: list[str], text: str, width: int, column: int = 14) -> str:
    right = [line for part in (text or "(empty)").splitlines() for line in textwrap.wrap(part, width - column) or [""]]
    height = max(len(left), len(right))
    left, right = left + [""] * (height - len(left)), right + [""] * (height - len(right))
    return "\n".join(f"{name:<{column}}{line}".rstrip() for name, line in zip(left, right, strict=True))
