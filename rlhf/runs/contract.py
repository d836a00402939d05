"""The contract beside every adapter: what a later stage must know of the stage that wrote it.

contract.json              base, tokenizer, form of the prompts, rows, options, parents; for people, too
trained_on.safetensors     int64 ids of all conversations that the adapter and its parents were trained on
"""

import dataclasses
import json
import shutil
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from rlhf.errors import InputError

FILE_NAME, IDS_NAME = "contract.json", "trained_on.safetensors"
VERSION = 1


@dataclass
class Contract:
    """The base, data and options that a stage was trained with. Fields that a stage does not have are None or empty.

    Attributes:
        stage: "sft", "reward" or "ppo".
        base: `name`, `revision` (commit), `digest` of the configuration and of the `weights` of the base model.
        tokenizer: `digest` of the vocabulary and `template_digest` of the chat template.
        prompt_style: "chat" if prompts are messages in the chat template, "text" if they are plain text.
        stop_tokens: tokens that end an answer, as text.
        template_date: the date that the chat template prints; None if it prints none.
        trained_on: for each source its `name`, `split`, `rows`, `range` of the conversation hash and `digest`.
        rows: `train` and `eval`, each the number and the digest of the encoded rows.
        trained_modules: what the adapter trains: `lora` layers and modules in full.
        seed: of the run.
        options: the options that decide the result.
        parents: stage -> digest of the adapter that this stage started from, or was trained against.
        conversations: [N] int64 ids, sorted; in a file of their own. None if they were not recorded.
        defaults: of the options that are left out of `options`; not written.
    """

    stage: str
    base: dict[str, Any] = field(default_factory=dict)
    tokenizer: dict[str, Any] = field(default_factory=dict)
    prompt_style: str | None = None
    stop_tokens: list[str] = field(default_factory=list)
    template_date: str | None = None
    trained_on: list[dict[str, Any]] = field(default_factory=list)
    rows: dict[str, str] = field(default_factory=dict)
    trained_modules: dict[str, Any] = field(default_factory=dict)
    seed: int | None = None
    options: dict[str, Any] = field(default_factory=dict)
    parents: dict[str, str] = field(default_factory=dict)
    conversations: np.ndarray | None = field(default=None, repr=False, compare=False)
    defaults: dict[str, Any] = field(default_factory=dict, repr=False, compare=False)


def write_contract(folder: str | Path, contract: Contract) -> None:
    """Writes contract.json and, if the conversations are known, trained_on.safetensors."""
    Path(folder).mkdir(parents=True, exist_ok=True)
    if contract.conversations is not None:
        save_file({"conversation_ids": contract.conversations}, Path(folder) / IDS_NAME)
    values = {f.name: getattr(contract, f.name) for f in dataclasses.fields(contract) if f.compare}
    text = json.dumps({"version": VERSION, **values}, indent=2, ensure_ascii=False)
    (Path(folder) / FILE_NAME).write_text(text + "\n", encoding="utf-8")


def read_contract(folder: str | Path) -> Contract | None:
    """Returns the contract of an adapter; None for an adapter without one, of TRL or of an old run.

    `conversations` is left out; see `read_conversations`.

    Raises:
        InputError: the file is damaged, or of a newer version of this library.
    """
    path = Path(folder) / FILE_NAME
    if not path.exists():
        return None
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        version = values.pop("version")
        if version > VERSION:
            raise InputError(f"{path} has version {version}, and this library reads {VERSION}. Update the library.")
        return Contract(**values)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{path} is damaged ({error}). Run the stage that writes it again.") from error


def read_conversations(folder: str | Path) -> np.ndarray | None:
    """Returns the ids [N] int64, sorted, of the conversations that an adapter and its parents were trained on.

    None if the folder does not say.
    """
    path = Path(folder) / IDS_NAME
    if not path.exists():
        return None
    try:
        return load_file(path)["conversation_ids"]
    except (SafetensorError, KeyError) as error:
        raise InputError(f"{path} is damaged ({error}). Run the stage that writes it again.") from error


def copy_contract(source: str | Path, target: str | Path) -> None:
    """Copies the contract's files of an adapter that is copied to `target`; deletes those of the adapter before."""
    for name in (FILE_NAME, IDS_NAME):
        (Path(target) / name).unlink(missing_ok=True)
        if (Path(source) / name).exists():
            shutil.copyfile(Path(source) / name, Path(target) / name)


def differences(theirs: Contract, ours: Contract, names: Iterable[str]) -> list[tuple[str, Any, Any]]:
    """Returns (name, theirs, ours) of each value that differs, of the given fields; of dicts, key by key.

    A value that one side does not know (None, or a field that is empty) differs from nothing. An option that one side
    leaves out has its default, of `defaults` of `theirs` or `ours`; a parent that one side leaves out is a difference.
    """
    found, defaults = [], theirs.defaults | ours.defaults
    for name in names:
        a, b = getattr(theirs, name), getattr(ours, name)
        if not isinstance(a, dict):
            found += [(name, a, b)] if a != b and _known(a) and _known(b) else []
            continue
        # A trainer without a recipe knows the weights of its parents, not their names.
        by_name = name == "parents" and ("frozen_weights" in a) == ("frozen_weights" in b)
        for key in sorted(a.keys() | b.keys()) if by_name or (a and b) else ():
            if by_name:
                found += [(f"parents.{key}", a.get(key), b.get(key))] if a.get(key) != b.get(key) else []
            elif name == "options":
                x, y = (options.get(key, defaults.get(key)) for options in (a, b))
                found += [(key, x, y)] if x != y else []
            elif _known(a.get(key)) and _known(b.get(key)) and a[key] != b[key]:
                found.append((f"{name}.{key}", a[key], b[key]))
    return found


def _known(value: Any) -> bool:
    return value is not None and value != [] and value != ""
