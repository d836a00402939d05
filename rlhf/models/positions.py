"""Arguments of a forward: positions of tokens in padded rows, and the cache."""

import inspect

from torch import Tensor
from transformers import PreTrainedModel

from rlhf.errors import InputError
from rlhf.tensors import PADDING_ID


def takes_position_ids(lm: PreTrainedModel) -> bool:
    """True if the forward of `lm` has position_ids. BLOOM and other models with ALiBi have none."""
    return "position_ids" in inspect.signature(lm.forward).parameters


def cache_argument(lm: PreTrainedModel) -> str:
    """Returns the name under which the forward of `lm` takes its cache; any other name it would ignore.

    Raises:
        InputError: it takes none, so every token would be sampled from the last one alone.
    """
    parameters = inspect.signature(lm.forward).parameters
    for name in ("past_key_values", "cache_params"):  # the second of Mamba
        if name in parameters:
            return name
    raise InputError(f"{type(lm).__name__} has no key-value cache to sample with. Choose another model.")


def position_ids(attention_mask: Tensor) -> Tensor:
    """Positions [B, T] that count from the first real token of each row, as in transformers' `generate`."""
    return (attention_mask.cumsum(-1) - 1).clamp(min=0)


def forward_inputs(lm: PreTrainedModel, input_ids: Tensor, attention_mask: Tensor | None) -> dict:
    """Arguments of a forward without a key-value cache.

    Args:
        input_ids, attention_mask: [B, T]; padding may be on either side. Without a mask it must be on the right.
    """
    if attention_mask is not None:  # the tokenizer's pad token may have no embedding
        input_ids = input_ids.masked_fill(attention_mask == 0, PADDING_ID)
    inputs = {"input_ids": input_ids, "attention_mask": attention_mask, "use_cache": False}
    if attention_mask is not None and takes_position_ids(lm):
        inputs["position_ids"] = position_ids(attention_mask)
    return inputs
