"""Loads the finished stages of a run onto one base."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from transformers import PreTrainedTokenizerBase
from trl import ModelConfig

from rlhf.errors import InputError
from rlhf.models.adapter_files import adapter_folder, base_model_name, check_adapter, check_reward_adapter
from rlhf.models.loading import load_base, load_tokenizer, resolve_model_name
from rlhf.models.shared_base import SharedBase
from rlhf.runs.processes import process_state


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
        base_name = base_name or base_model_name(config, folder)
    if base_name is None:
        raise InputError("neither a base (--model_name_or_path) nor an adapter is given; there is nothing to load.")
    model_args = replace(model_args, model_name_or_path=base_name)
    tokenizer = load_tokenizer(_tokenizer_source(base_name, adapters))
    base = load_base(model_args, tokenizer)
    shared = SharedBase(base if getattr(base, "is_quantized", False) else base.to(process_state().device))
    for name, folder in adapters.items():
        shared.add_adapter(name, folder=folder, head=name == "reward")
    return shared.eval(), tokenizer


def _tokenizer_source(base_name: str, adapters: Mapping[str, str | Path]) -> str:
    """The stages save the tokenizer that they trained with, chat template included; the base's is the second choice."""
    for folder in adapters.values():
        if (adapter_folder(folder) / "tokenizer_config.json").exists():
            return str(adapter_folder(folder))
    return base_name
