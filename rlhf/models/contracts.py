"""Checks the contracts of adapters before a model is loaded: one base, one template, one form of prompts."""

import hashlib
import json
import logging
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase
from trl import ModelConfig

from rlhf.errors import InputError
from rlhf.models.loading import resolve_model_name
from rlhf.runs.artifacts import say_once
from rlhf.runs.contract import FILE_NAME, Contract, read_contract
from rlhf.runs.digests import DIGITS, base_identity, file_digest, json_digest

logger = logging.getLogger(__name__)

WEIGHTS = "adapter_model.safetensors"


def base_of(name: str | None, revision: str | None = "main") -> dict[str, str | None]:
    """Returns `rlhf.runs.digests.base_identity` of a base model, under the name that the user gave it."""
    return base_identity(resolve_model_name(name), revision) | {"name": name}


def tokenizer_digests(tokenizer: PreTrainedTokenizerBase) -> dict[str, str | None]:
    """Returns digests of the vocabulary, with its end-of-text and pad tokens, and of the chat template."""
    special = {"eos": tokenizer.eos_token, "pad": tokenizer.pad_token}
    return {"digest": json_digest([tokenizer.get_vocab(), special]), "template_digest": _template_digest(tokenizer)}


def _template_digest(tokenizer: PreTrainedTokenizerBase) -> str | None:
    template = tokenizer.chat_template
    return None if template is None else text_digest(template if isinstance(template, str) else json.dumps(template))


def text_digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:DIGITS]


def contracts_of(folders: Mapping[str, Path]) -> dict[str, Contract]:
    """Returns the contracts of adapters; warns of each without one, which is of TRL or of an old version."""
    contracts = {}
    for name, folder in folders.items():
        contract = read_contract(folder)
        if contract is None:
            say_once(
                f"{folder} has no {FILE_NAME}, so nobody can tell its base's revision, its template, the form of its "
                "prompts and the conversations that it was trained on; run its stage again to check them",
                logging.WARNING,
            )
        else:
            contracts[name] = contract
    return contracts


def check_base(folder: Path, contract: Contract, base_name: str, revision: str | None = "main") -> bool | None:
    """Compares the base of an adapter with the one it is to be loaded on, by their files.

    Returns:
        True if they are the same, None if the files cannot tell (a model of the Hub that is not downloaded yet).

    Raises:
        InputError: another base, in a folder of the same name too, or another revision.
    """
    theirs, ours = contract.base, base_identity(base_name, revision)
    known = [key for key in ("digest", "weights") if theirs.get(key) and ours[key]]
    different = [key for key in known if theirs[key] != ours[key]]
    if not different:
        return True if "weights" in known else None
    key, commits = different[0], ""
    if theirs.get("revision") and theirs["revision"] != ours["revision"]:
        commits = f" (revision {theirs['revision']}, and this one is {ours['revision']})"
    raise InputError(
        f"Adapter {folder} was trained on {theirs.get('name')}{commits}; the {_NOUNS[key]} of {base_name} differs: "
        f"digest {ours[key]}, not {theirs[key]} as in {folder / FILE_NAME}. Set model_name_or_path and model_revision "
        "to its base, or run its stage again."
    )


_NOUNS = {"digest": "configuration", "weights": "file of the weights"}


def with_revision_of(model_args: ModelConfig, folder: str | Path) -> ModelConfig:
    """Returns `model_args` with the revision of the base that an adapter was trained on, unless one is given."""
    contract = read_contract(folder)
    revision = contract.base.get("revision") if contract else None
    if revision is None or model_args.model_revision != "main" or Path(model_args.model_name_or_path or "").is_dir():
        return model_args
    return replace(model_args, model_revision=revision)


def check_agreement(folders: Mapping[str, Path]) -> dict[str, Contract]:
    """Checks that the stages of one run fit together; returns the contracts that there are.

    Args:
        folders: sft, ppo, reward, ... -> folder of the adapter. The first one's tokenizer is used.

    Raises:
        InputError: two stages have different templates, vocabularies or forms of prompts.
    """
    contracts = contracts_of(folders)
    known = {name: _tokenizer_of(folder, contracts.get(name)) for name, folder in folders.items()}
    names = list(folders)
    for name in names[1:]:
        first, a, b = names[0], known[names[0]], known[name]
        for key, what in (("digest", "vocabulary"), ("template_digest", "chat template")):
            if a.get(key) and b.get(key) and a[key] != b[key]:
                raise InputError(
                    f"{folders[name]} has another {what} than {folders[first]} ({FILE_NAME}: tokenizer.{key} "
                    f"{b[key]}, not {a[key]}), so it would read texts in a form that it was not trained on. Train "
                    f"{name} again with the tokenizer of {first}."
                )
        if first in contracts and name in contracts:
            check_style(folders[first], contracts[first], contracts[name].prompt_style, str(folders[name]))
    for name, contract in contracts.items():
        report_replaced_parents(folders[name], contract, folders)
    return contracts


def check_style(folder: Path, contract: Contract | None, style: str | None, where: str) -> None:
    """Compares the form of the prompts that an adapter was trained on with that of rows or of another adapter.

    Args:
        style: "chat" or "text", of `where`.

    Raises:
        InputError: they differ.
    """
    theirs = contract.prompt_style if contract else None
    if theirs is None or style is None or theirs == style:
        return
    words = {"chat": "messages in the chat template", "text": "plain text"}
    raise InputError(
        f"{folder} was trained on prompts that are {words[theirs]} ({FILE_NAME}: prompt_style {theirs}), and the "
        f"prompts of {where} are {words[style]} ({style}). Write them in one form, or set prompt_style to {theirs}."
    )


def report_replaced_parents(folder: Path, contract: Contract, folders: Mapping[str, Path]) -> None:
    """Warns if an adapter was trained against another adapter than the one of that name beside it.

    A reward model may start from another epoch of the SFT run than the one that is chosen later.
    """
    for parent, digest in contract.parents.items():
        beside = folders.get(parent)
        if beside is None or beside == folder or not (beside / WEIGHTS).is_file():
            continue
        now = file_digest(beside / WEIGHTS)
        if now == digest or (contract.stage == "reward" and digest in _epochs(beside)):
            continue
        logger.warning(
            "%s was trained against another %s adapter than %s has now (%s: parents.%s %s, not %s); comparisons of the "
            "two do not show what its training did; run the %s stage again",
            folder, parent, beside, FILE_NAME, parent, digest, now, contract.stage,
        )  # fmt: skip


def _epochs(folder: Path) -> set[str]:
    return {file_digest(path) for path in folder.glob(f"checkpoint-*/{WEIGHTS}")}


def _tokenizer_of(folder: Path, contract: Contract | None) -> dict[str, Any]:
    """Returns the digests of an adapter's tokenizer; without a contract, that of the template in its folder."""
    if contract is not None:
        return contract.tokenizer
    template = folder / "chat_template.jinja"
    return {"template_digest": text_digest(template.read_text(encoding="utf-8"))} if template.is_file() else {}
