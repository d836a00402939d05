"""The contract beside every adapter: what a later stage must know of the stage that wrote it (contract.json)."""

import dataclasses
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rlhf.errors import InputError

FILE_NAME = "contract.json"
VERSION = 1


@dataclass
class Contract:
    """What a stage was trained with. Fields that a stage does not have are None or empty.

    Attributes:
        stage: "sft", "reward" or "ppo".
        base: `name`, `revision` and `digest` of the base model.
        tokenizer: `digest` of the vocabulary and `template_digest` of the chat template.
        prompt_style: "chat" if prompts are messages in the chat template, "text" if they are plain text.
        stop_tokens: tokens that end an answer, as text.
        template_date: the date that the chat template prints; None if it prints none.
        trained_on: for each source its `name`, `split`, `rows`, `range` of the conversation hash and `digest`.
        trained_modules: what the adapter trains: `lora` layers and modules in full.
        seed: of the run.
        options: the options that decide the result.
        parents: stage -> digest of the adapter that this stage started from, or was trained against.
    """

    stage: str
    base: dict[str, Any] = field(default_factory=dict)
    tokenizer: dict[str, Any] = field(default_factory=dict)
    prompt_style: str | None = None
    stop_tokens: list[str] = field(default_factory=list)
    template_date: str | None = None
    trained_on: list[dict[str, Any]] = field(default_factory=list)
    trained_modules: dict[str, Any] = field(default_factory=dict)
    seed: int | None = None
    options: dict[str, Any] = field(default_factory=dict)
    parents: dict[str, str] = field(default_factory=dict)


def write_contract(folder: str | Path, contract: Contract) -> None:
    """Writes contract.json."""
    text = json.dumps({"version": VERSION, **dataclasses.asdict(contract)}, indent=2, ensure_ascii=False)
    (Path(folder) / FILE_NAME).write_text(text + "\n", encoding="utf-8")


def read_contract(folder: str | Path) -> Contract | None:
    """Returns the contract of an adapter; None for an adapter without one, of TRL or of an old run.

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
