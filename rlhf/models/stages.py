"""Loads the stages of a run onto one base and lets them answer one instruction."""

import shutil
import textwrap
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from transformers import PreTrainedTokenizerBase
from trl import ModelConfig

from rlhf.data.encode import Prompt, encode_prompt
from rlhf.errors import InputError
from rlhf.evaluation.preferences import NAMES
from rlhf.generation.completions import completion_rewards, sample_completions
from rlhf.models.adapter_files import adapter_folder, base_of, check_adapter, check_reward_adapter
from rlhf.models.loading import context_length, load_base, load_tokenizer, resolve_model_name
from rlhf.models.shared_base import SharedBase
from rlhf.runs.processes import launched


@dataclass(frozen=True)
class Answer:
    """What one model answers; `reward` is None without a reward model, `ended` false if it was cut off."""

    name: str
    text: str
    ended: bool
    reward: float | None


def stage_folders(run: str | Path) -> dict[str, str]:
    """stage -> folder, for those of sft, ppo and reward that have finished in a run such as `runs/sandbox`.

    Raises:
        InputError: there is no such run, or SFT has not finished in it.
    """
    run = Path(run)
    finished = [name for name in ("sft", "ppo", "reward") if (run / name / "adapter_config.json").exists()]
    if "sft" not in finished:
        problem = "has no finished SFT stage" if run.is_dir() else "does not exist"
        target = "make demo" if run.name == "sandbox" else f"make sft RECIPE={run.name}"
        raise InputError(f"run folder {run} {problem}; `{target}` makes it.")
    return {name: str(run / name) for name in finished}


def load_adapters(
    model_args: ModelConfig, adapters: Mapping[str, str | Path]
) -> tuple[SharedBase, PreTrainedTokenizerBase]:
    """The base with the named adapters on it, ready to answer and (`reward`) to score, and its tokenizer.

    Args:
        model_args: without model_name_or_path the base is the one that the adapters name.
        adapters: name -> folder or Hub id. All are checked before the base is loaded.

    Raises:
        InputError: see `rlhf.models.shared_base.check_adapter`.
    """
    base_name = model_args.model_name_or_path
    for name, folder in adapters.items():
        check = check_reward_adapter if name == "reward" else check_adapter
        config = check(folder, base_name and resolve_model_name(base_name))
        base_name = base_name or base_of(config, folder)
    if base_name is None:
        raise InputError("neither a base (--model_name_or_path) nor an adapter is given; there is nothing to load.")
    model_args = replace(model_args, model_name_or_path=base_name)
    tokenizer = load_tokenizer(_tokenizer_source(base_name, adapters))
    base = load_base(model_args, tokenizer)
    shared = SharedBase(base if getattr(base, "is_quantized", False) else base.to(launched().device))
    for name, folder in adapters.items():
        shared.add_adapter(name, folder=folder, head=name == "reward")
    return shared.eval(), tokenizer


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


def _tokenizer_source(base_name: str, adapters: Mapping[str, str | Path]) -> str:
    """The stages save the tokenizer that they trained with, chat template included; the base's is the second choice."""
    for folder in adapters.values():
        if (adapter_folder(folder) / "tokenizer_config.json").exists():
            return str(adapter_folder(folder))
    return base_name
