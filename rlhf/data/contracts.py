"""Fills the contract of a stage from its options, its tokenizer and its rows."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset
from transformers import PreTrainedTokenizerBase
from trl import ModelConfig

from rlhf.data.arguments import DataArguments
from rlhf.data.splits import conversation_id
from rlhf.models.adapter_files import adapter_digest, adapter_folder
from rlhf.models.chat_template import template_date
from rlhf.models.contracts import base_of, tokenizer_digests
from rlhf.models.stop_tokens import stop_token_texts
from rlhf.runs.contract import Contract, read_conversations
from rlhf.runs.decisive_options import decisive_options
from rlhf.runs.digests import rows_digest, rows_entry

IDS_BELOW = 16**13  # `conversation_id` is a fraction of it


def stage_contract(
    stage: str,
    configs: Sequence[Any],
    tokenizer: PreTrainedTokenizerBase,
    rows: Dataset,
    encoded: Mapping[str, Dataset | None],
    parents: Mapping[str, str | Path] | None = None,
) -> Contract:
    """Returns the contract of a stage that is about to be trained; no model need be loaded.

    Args:
        stage: "sft", "reward" or "ppo".
        configs: the dataclasses of the recipe, with one DataArguments and one ModelConfig among them.
        rows: the rows to train on, as loaded: with their prompts.
        encoded: the rows as the trainer gets them: `train`, and `eval` if these decide the result.
        parents: stage -> folder or Hub id of the adapters that this stage starts from or is trained against.
    """
    data_args = next(config for config in configs if isinstance(config, DataArguments))
    model_args = next(config for config in configs if isinstance(config, ModelConfig))
    options, defaults = decisive_options(*configs)
    folders = {name: adapter_folder(folder) for name, folder in (parents or {}).items()}
    own = conversation_ids(rows)
    ids = [own, *(known for folder in folders.values() if (known := read_conversations(folder)) is not None)]
    return Contract(
        stage=stage,
        base=base_of(model_args.model_name_or_path, model_args.model_revision),
        tokenizer=tokenizer_digests(tokenizer),
        prompt_style=prompt_style(rows),
        stop_tokens=stop_token_texts(tokenizer),
        template_date=template_date(tokenizer),
        trained_on=[source_entry(data_args, rows, own)],
        rows={name: rows_entry(dataset) for name, dataset in encoded.items() if dataset is not None},
        trained_modules=trained_modules(model_args, stage),
        seed=next((config.seed for config in configs if hasattr(config, "learning_rate")), None),
        options=options,
        defaults=defaults,
        parents={name: adapter_digest(folder) for name, folder in folders.items()},
        conversations=np.unique(np.concatenate(ids)),
    )


def conversation_ids(rows: Dataset) -> np.ndarray:
    """Returns the different `conversation_id` of the rows, [N] int64, sorted."""
    column = "prompt" if "prompt" in rows.column_names else "text"
    return np.unique(np.array([conversation_id({column: value}) for value in rows[column]], dtype=np.int64))


def source_entry(args: DataArguments, rows: Dataset, ids: np.ndarray) -> dict[str, Any]:
    """Returns what a contract says of a source: its name, split, rows, conversations and the range of their hashes."""
    span = [round(float(i) / IDS_BELOW, 4) for i in (ids[0], ids[-1])] if len(ids) else []
    entry = {"name": args.dataset_name, "split": args.dataset_train_split, "rows": len(rows)}
    return entry | {"conversations": len(ids), "range": span, "digest": rows_digest(rows)}


def prompt_style(rows: Dataset) -> str:
    """Returns "text" or "chat", the form of the prompts as they are encoded."""
    return "text" if "prompt" not in rows.column_names or isinstance(rows[0]["prompt"], str) else "chat"


def trained_modules(model_args: ModelConfig, stage: str) -> dict[str, Any]:
    """Returns the layers with LoRA weights, its rank, and the modules that are trained in full."""
    full = list(model_args.lora_modules_to_save or []) + (["score"] if stage == "reward" else [])
    return {"lora": model_args.lora_target_modules or "all-linear", "r": model_args.lora_r, "full": full}
