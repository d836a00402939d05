"""Tokens that end an answer: every EOS of the model's generation config, the tokenizer's, and PPO's `stop_token_id`.

The tokenizer carries them, as `stop_tokens` in tokenizer_config.json, because rows are encoded before a model is loaded
and because a later stage has the saved tokenizer of the stage before. So one list decides where a trained answer ends,
where sampling stops and at which token a score is read.
"""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any, cast

from transformers import GenerationConfig, PreTrainedTokenizerBase

from rlhf.errors import InputError
from rlhf.models.configurations import read_config

KEY = "stop_tokens"


def stop_ids(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Returns the ids that end an answer, ascending: the tokenizer's EOS and the tokens that it carries.

    A tokenizer that `load_tokenizer` has not loaded gets those of the model that it was loaded with, the first time.
    """
    if KEY not in tokenizer.init_kwargs:
        tokenizer.init_kwargs[KEY] = []
        if tokenizer.name_or_path:
            add_stop_ids(tokenizer, base_stop_ids(tokenizer.name_or_path))
    eos_id = cast(int | None, tokenizer.eos_token_id)
    ids = token_ids(tokenizer, tokenizer.init_kwargs[KEY])
    return sorted({*ids, *([] if eos_id is None else [eos_id])})


def token_ids(tokenizer: PreTrainedTokenizerBase, tokens: Iterable[str]) -> list[int]:
    """Returns the ids of tokens of the vocabulary; others are left out."""
    ids = {token: tokenizer.convert_tokens_to_ids(token) for token in tokens}
    unknown = (None, tokenizer.unk_token_id)
    return [cast(int, i) for token, i in ids.items() if i not in unknown or token == tokenizer.unk_token]


def stop_token_texts(tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """Returns the tokens that end an answer, in the order of their ids."""
    return [str(tokenizer.convert_ids_to_tokens(i)) for i in stop_ids(tokenizer)]


def add_stop_ids(tokenizer: PreTrainedTokenizerBase, ids: Iterable[int]) -> None:
    """Makes the tokenizer carry further stop tokens; ids without a token in its vocabulary are left out."""
    known = {i for i in ids if 0 <= i < len(tokenizer) and tokenizer.convert_ids_to_tokens(i) is not None}
    tokens = [tokenizer.convert_ids_to_tokens(i) for i in sorted(known | set(stop_ids(tokenizer)))]
    tokenizer.init_kwargs[KEY] = tokens


def check_token_id(tokenizer: PreTrainedTokenizerBase, token_id: int, option: str) -> None:
    """Raises InputError if the tokenizer has no token of this id."""
    if not 0 <= token_id < len(tokenizer) or tokenizer.convert_ids_to_tokens(token_id) is None:
        raise InputError(
            f"{option} is {token_id}, and the tokenizer has no token of this id. Its ids are 0 to {len(tokenizer) - 1}."
        )


def saved_stop_tokens(folder: str | Path) -> list[str]:
    """Returns the stop tokens of the tokenizer that a stage saved in its folder; none for a folder without them."""
    path = Path(folder) / "tokenizer_config.json"
    return json.loads(path.read_text(encoding="utf-8")).get(KEY) or [] if path.exists() else []


def base_stop_ids(name: str, revision: str = "main", gguf_file: str | None = None) -> list[int]:
    """Returns the EOS ids that the base's generation config names, or without one its configuration.

    Args:
        name: model folder, Hub id, or folder of an adapter, which names its base.
    """
    adapter = Path(name) / "adapter_config.json"
    if adapter.exists():
        base = json.loads(adapter.read_text(encoding="utf-8")).get("base_model_name_or_path")
        return base_stop_ids(base) if base and base != name else []
    try:
        return eos_ids(GenerationConfig.from_pretrained(name, revision=revision))
    except (OSError, ValueError):  # none, as in folders of older models and in GGUF files
        pass
    try:
        config = read_config(name, revision, gguf_file)
    except (OSError, ValueError):  # a folder with a tokenizer alone
        return []
    return eos_ids(config) or eos_ids(config.get_text_config())


def eos_ids(config: Any) -> list[int]:
    """Returns the EOS ids of a configuration, which has one, several or none."""
    ids = getattr(config, "eos_token_id", None)
    return [] if ids is None else list(ids) if isinstance(ids, list | tuple) else [ids]
