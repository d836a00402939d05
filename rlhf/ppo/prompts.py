"""Prompts that a script has tokenized, as TRL's PPOTrainer takes them: padding is removed by its mask.

TRL pads them and takes every pad id for padding. Here a mask decides where there is one. Without a mask, pad ids at a
prompt's borders are padding, unless the pad token is also EOS or BOS, which may stand there as a word.
"""

import logging
from collections.abc import Callable
from typing import Any

from datasets import Dataset, concatenate_datasets

from rlhf.errors import InputError

logger = logging.getLogger(__name__)

QUERY = "query_token"  # of the tokenized summarize-from-feedback data sets


def tokenized_prompts(dataset: Dataset, tokenizer, name: str, collate: Callable | None = None) -> Dataset:
    """Returns the rows with unpadded `input_ids`, without the columns `attention_mask` and `query_token`.

    Args:
        collate: data collator that makes `input_ids`, and perhaps `attention_mask`, from a list of one row.

    Raises:
        InputError: a mask of another length than the ids, or pad ids that may be words.
    """
    rows = []
    for i, row in enumerate(dataset):
        try:
            rows.append(row_ids(dict(row), tokenizer, collate))
        except InputError as error:
            raise InputError(f"row {i} of the {name} prompts {error}") from error
    removed = sum(padding for _, padding in rows)
    if removed:
        logger.info("%d padding tokens were removed from the %s prompts", removed, name)
    unused = [column for column in ("input_ids", "attention_mask", QUERY) if column in dataset.column_names]
    others = dataset.remove_columns(unused)
    encoded = Dataset.from_dict({"input_ids": [ids for ids, _ in rows]})
    return concatenate_datasets([others, encoded], axis=1) if others.column_names else encoded


def row_ids(row: dict[str, Any], tokenizer, collate: Callable | None = None) -> tuple[list[int], int]:
    """Returns the ids of a prompt and the number of padding tokens that were removed.

    Raises:
        InputError: see `tokenized_prompts`.
    """
    if collate is not None:
        batch = collate([row])
        if "input_ids" not in batch:
            raise InputError("get no `input_ids` from the data_collator; return them, or leave the data_collator out.")
        row = {key: batch[key][0] for key in ("input_ids", "attention_mask") if key in batch}
    ids = as_list(row["input_ids"] if "input_ids" in row else row[QUERY])
    mask = row.get("attention_mask")
    if mask is None:
        kept = strip_padding(ids, tokenizer)
    else:
        mask = as_list(mask)
        if len(mask) != len(ids):
            raise InputError(f"has {len(ids)} input_ids and {len(mask)} values of attention_mask; tokenize it again.")
        kept = [token for token, real in zip(ids, mask, strict=True) if real]
    return kept, len(ids) - len(kept)


def strip_padding(ids: list[int], tokenizer) -> list[int]:
    """Removes pad ids from both ends.

    Raises:
        InputError: several at one end, and the pad token is also EOS or BOS.
    """
    pad = tokenizer.pad_token_id
    start, end = 0, len(ids)
    while start < end and ids[start] == pad:
        start += 1
    while end > start and ids[end - 1] == pad:
        end -= 1
    if pad not in (tokenizer.eos_token_id, tokenizer.bos_token_id):
        return ids[start:end]
    if start > 1 or len(ids) - end > 1:
        raise InputError(
            f"has several pad ids ({pad}) at one end, which are also EOS or BOS, so padding and words cannot be told "
            "apart; add a column attention_mask, or tokenize without padding."
        )
    return ids


def as_list(values: Any) -> list[int]:
    return [int(value) for value in (values.tolist() if hasattr(values, "tolist") else values)]
