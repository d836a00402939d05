"""Filters that need a tokenizer."""

import logging

import datasets
from transformers import PreTrainedTokenizerBase

from rlhf.data.encode import encode_prompt
from rlhf.errors import InputError

logger = logging.getLogger(__name__)


def filter_long_prompts(
    dataset: datasets.Dataset, tokenizer: PreTrainedTokenizerBase, max_tokens: int
) -> datasets.Dataset:
    """Rows whose encoded prompt has at most `max_tokens` tokens; how many were left out is logged.

    The paper drops prompts of more than 1,000 tokens, appendix C, and does not cut them: a cut prompt is
    not what the user asked.

    Args:
        dataset: with a column `prompt`.
        max_tokens: the context less the room for the answer.

    Raises:
        InputError: no prompt is short enough.
    """
    kept = [i for i, prompt in enumerate(dataset["prompt"]) if len(encode_prompt(tokenizer, prompt)) <= max_tokens]
    dropped = len(dataset) - len(kept)
    if not kept:
        raise InputError(
            f"all {len(dataset)} prompts are longer than {max_tokens} tokens; "
            "give shorter prompts, or raise the limit if the model's context allows it."
        )
    if dropped:
        logger.warning("left out %d of %d prompts of more than %d tokens", dropped, len(dataset), max_tokens)
    return dataset.select(kept)
