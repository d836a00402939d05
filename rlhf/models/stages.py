"""Loads the finished stages of a run onto one base."""

import logging
from collections.abc import Container, Iterable, Mapping
from dataclasses import replace
from pathlib import Path

from huggingface_hub import hf_hub_download
from huggingface_hub.errors import HTTPError
from transformers import PreTrainedTokenizerBase
from trl import ModelConfig

from rlhf.errors import InputError
from rlhf.models.adapter_files import adapter_folder, base_model_name, check_policy_adapter, check_reward_adapter
from rlhf.models.contracts import WEIGHTS, check_agreement, with_revision_of
from rlhf.models.loading import load_base, load_tokenizer, resolve_model_name
from rlhf.models.shared_base import SharedBase
from rlhf.models.stop_tokens import add_stop_ids, base_stop_ids, saved_stop_tokens, token_ids
from rlhf.runs.contract import FILE_NAME, read_contract
from rlhf.runs.digests import file_digest
from rlhf.runs.processes import process_state

logger = logging.getLogger(__name__)

TOKENIZER = "tokenizer_config.json"


def stage_folders(run: str | Path) -> dict[str, str]:
    """Returns {stage: folder} of the finished stages among sft, ppo and reward of a run, e.g. `runs/sandbox`.

    Raises:
        InputError: the run does not exist, or neither SFT nor PPO has finished, which may start from the base.
    """
    run = Path(run)
    finished = [name for name in ("sft", "ppo", "reward") if (run / name / "adapter_config.json").exists()]
    if not {"sft", "ppo"} & set(finished):
        problem = "has no finished SFT stage" if run.is_dir() else "does not exist"
        target = "rlhf demo" if run.name == "sandbox" else f"rlhf sft {run.name}"
        raise InputError(f"Run folder {run} {problem}. Run `{target}` to create it.")
    return {name: str(run / name) for name in finished}


def load_adapters(
    model_args: ModelConfig, adapters: Mapping[str, str | Path]
) -> tuple[SharedBase, PreTrainedTokenizerBase]:
    """Loads a base with named adapters, in evaluation mode, and its tokenizer. Adapter `reward` gets its score head.

    Args:
        model_args: without model_name_or_path, the base is the one that the adapters name.
        adapters: name -> folder or Hub id. All are checked before the base is loaded.

    Raises:
        InputError: see `load_stage_tokenizer`.
    """
    model_args, tokenizer = load_stage_tokenizer(model_args, adapters)
    return load_shared_base(model_args, tokenizer, adapters), tokenizer


def load_shared_base(
    model_args: ModelConfig,
    tokenizer: PreTrainedTokenizerBase,
    adapters: Mapping[str, str | Path],
    heads: Container[str] = ("reward",),
) -> SharedBase:
    """Loads a base with named adapters as `load_adapters` does; options and tokenizer are of `load_stage_tokenizer`.

    Args:
        heads: names of the adapters that get their score heads.
    """
    base = load_base(model_args, tokenizer)
    if not getattr(base, "is_quantized", False):
        base = base.to(process_state().device)  # pyright: ignore[reportArgumentType]
    shared = SharedBase(base)
    for name, folder in adapters.items():
        shared.add_adapter(name, folder=folder, head=name in heads)
    return shared.eval()


def load_stage_tokenizer(
    model_args: ModelConfig, adapters: Mapping[str, str | Path]
) -> tuple[ModelConfig, PreTrainedTokenizerBase]:
    """Checks named adapters; returns the options of their base, and their tokenizer with the stop tokens of all.

    Raises:
        InputError: see `rlhf.models.adapter_files.check_adapter` and `rlhf.models.contracts.check_agreement`; or
            neither a base nor an adapter is given.
    """
    base_name, folders = model_args.model_name_or_path, {name: adapter_folder(f) for name, f in adapters.items()}
    for name, folder in folders.items():
        check = check_reward_adapter if name == "reward" else check_policy_adapter
        config = check(folder, base_name and resolve_model_name(base_name), model_args.model_revision)
        base_name = base_name or base_model_name(config, folder)
    if base_name is None:
        raise InputError("There is nothing to load. Set model_name_or_path, or pass the folder of an adapter.")
    contracts = check_agreement(folders)
    if "ppo" in contracts and contracts["ppo"].stage == "sft":
        raise InputError(f"{folders['ppo']} is of an SFT stage ({FILE_NAME}). Pass the folder of a PPO stage as ppo.")
    _report_equal_weights(folders)
    model_args = replace(model_args, model_name_or_path=base_name)
    for folder in folders.values():
        model_args = with_revision_of(model_args, folder)
    saved = (folder for folder in folders.values() if (folder / TOKENIZER).exists())
    tokenizer = load_adapter_tokenizer(model_args, next(saved, None))
    for name in set(adapters) - {"reward"}:  # PPO may have been trained with a stop_token_id
        add_stop_ids(tokenizer, token_ids(tokenizer, saved_stop_tokens(adapter_folder(adapters[name]))))
    return model_args, tokenizer


def _report_equal_weights(folders: Mapping[str, Path]) -> None:
    """Warns of adapters under two names that are one model: a comparison of the two measures chance alone."""
    first: dict[str, str] = {}
    for name, folder in folders.items():
        if name != "reward" and first.setdefault(file_digest(folder / WEIGHTS), name) != name:
            same = first[file_digest(folder / WEIGHTS)]
            logger.warning("%s and %s have the same weights: %s was not trained further", same, name, folder)


def load_adapter_tokenizer(
    model_args: ModelConfig, folder: Path | None, eos_token: str | None = None
) -> PreTrainedTokenizerBase:
    """Loads the tokenizer that a stage saved beside its adapter, with the chat template of the training.

    Args:
        model_args: names the base and its revision, whose tokenizer is loaded for a folder that has none.
        folder: of the adapter; None: the base's.
        eos_token: see `load_tokenizer`.
    """
    name, revision = resolve_model_name(model_args.model_name_or_path), model_args.model_revision
    if folder is None or not (folder / TOKENIZER).exists():
        return load_tokenizer(name, revision, eos_token)
    tokenizer = load_tokenizer(str(folder), eos_token=eos_token)
    if not saved_stop_tokens(folder):  # TRL's tokenizers do not say where the base stops
        add_stop_ids(tokenizer, base_stop_ids(name, revision))
    return tokenizer


def trained_style(folders: Iterable[str | Path]) -> str | None:
    """Returns the form of prompts, "chat" or "text", in the first contract of these adapters that names one."""
    contracts = (read_contract(adapter_folder(folder)) for folder in folders)
    return next((contract.prompt_style for contract in contracts if contract and contract.prompt_style), None)


def merged_style(name: str) -> str | None:
    """Returns the form of prompts that a merged model was trained on; None for any other model.

    Args:
        name: folder or Hub id. `rlhf merge` writes the contract of the adapter into the folder.
    """
    folder = Path(name).expanduser()
    try:
        folder = folder if folder.is_dir() else Path(hf_hub_download(name, FILE_NAME)).parent
    except (OSError, ValueError, HTTPError):  # no such file, not a Hub id, no network
        return None
    contract = read_contract(folder)
    return contract.prompt_style if contract else None
