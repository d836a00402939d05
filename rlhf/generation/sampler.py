"""Sampling with a short decoding loop, made for small models and for batches whose responses differ in length.

transformers' `generate` does much besides the forward pass of each token, copies the key-value cache each time, and
keeps finished rows until the last one finishes. Here only the temperature shapes the distribution. On a GPU most models
are decoded in `rlhf.generation.continuous_batching` instead.
"""

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from functools import partial
from typing import Any, cast

import torch
from torch import LongTensor, Tensor
from torch.nn import functional as F
from tqdm.auto import tqdm
from transformers import DynamicCache, PreTrainedModel, PreTrainedTokenizerBase
from transformers.cache_utils import DynamicLayer

from rlhf.errors import InputError
from rlhf.generation.continuous_batching import decode_continuously, supports_continuous_batching
from rlhf.generation.decode_linears import fast_decode_linears
from rlhf.generation.random_numbers import inverse_cdf
from rlhf.models.positions import cache_argument, position_ids, takes_position_ids
from rlhf.models.sharding import is_sharded
from rlhf.models.stop_tokens import eos_ids, stop_ids
from rlhf.tensors import pad_left

# Finished rows are dropped once they are a quarter of the batch, because this copies the cache of the other rows.
FINISHED_SHARE = 0.25


@torch.no_grad()
def sample(
    lm: PreTrainedModel,
    prompts: Sequence[list[int]],
    uniforms: Tensor,
    *,
    temperature: float,
    stop_ids: list[int],
    pad_id: int,
    batch_size: int,
    progress: str | None = None,
) -> list[list[int]]:
    """Samples a response to each prompt: at most T ids, up to and including the first stop token.

    Args:
        lm: a causal LM; it is in evaluation mode during the call.
        prompts: N lists of token ids.
        uniforms: [N, T] of `sampling_uniforms`; a response depends on its own row alone.
        temperature: 0 is greedy decoding.
        batch_size: rows that are decoded together.
        progress: label of the progress bar; None: no bar.
    """
    if not prompts:
        return []
    uniforms = uniforms.float() if lm.device.type == "mps" else uniforms  # see `as_float64`
    # Longest first: if a prompt does not fit into memory, the first batch fails.
    order = sorted(range(len(prompts)), key=lambda i: -len(prompts[i]))
    prompts, uniforms, length = [prompts[i] for i in order], uniforms[order].to(lm.device), uniforms.shape[1]

    def choose(logits: Tensor, rows: Tensor, step: int | Tensor) -> Tensor:
        return inverse_cdf(logits, uniforms[rows, step], temperature) if temperature else logits.argmax(-1)

    was_training = lm.training
    lm.eval()  # in training mode activation checkpointing would switch the key-value cache off
    sharded = is_sharded(lm)
    decode_all = (
        decode_continuously
        if supports_continuous_batching(lm) and not sharded
        else partial(decode_in_batches, pad_id=pad_id)
    )
    bar = tqdm(total=len(prompts), desc=progress, unit="answer", leave=False, disable=None if progress else True)
    with nullcontext() if sharded else fast_decode_linears(lm, min(batch_size, len(prompts))), bar:
        responses = decode_all(lm, prompts, choose, stop_ids, length, batch_size, on_finished=bar.update)
    lm.train(was_training)
    by_prompt = dict(zip(order, responses, strict=True))
    return [by_prompt[i] for i in range(len(prompts))]


def decode_in_batches(
    lm: PreTrainedModel,
    prompts: Sequence[list[int]],
    choose: Callable[[Tensor, Tensor, int], Tensor],
    stop_ids: list[int],
    length: int,
    size: int,
    on_finished: Callable[[int], object],
    pad_id: int,
) -> list[list[int]]:
    """Calls `decode` on `size` prompts at a time."""
    responses = []
    for start in range(0, len(prompts), size):
        ids, mask = pad_left(prompts[start : start + size], pad_id, lm.device)
        responses += decode(
            lm, ids, mask, lambda logits, rows, step, s=start: choose(logits, s + rows, step), stop_ids, length
        )
        on_finished(len(ids))
    return responses


@torch.no_grad()
def decode(
    lm: PreTrainedModel,
    input_ids: Tensor,
    attention_mask: Tensor,
    choose: Callable[[Tensor, Tensor, int], Tensor],
    stop_ids: list[int],
    length: int,
) -> list[list[int]]:
    """Continues each row by at most `length` tokens: the new ids, up to and including the first stop token.

    Args:
        lm: a causal LM in evaluation mode; its generation config is ignored.
        input_ids, attention_mask: [B, P], padded on the left.
        choose: (logits [b, V], indices [b] of their rows among the B, number of the new token) -> ids [b].
    """
    device, width = input_ids.device, input_ids.shape[1]
    stops = torch.tensor(stop_ids, device=device)
    sharded, cache_name = is_sharded(lm), cache_argument(lm)
    keeps_dynamic_cache: bool = cast(Any, lm)._supports_default_dynamic_cache()  # MiniMax has a cache of its own
    cache: Any = preallocated_cache(lm, width + length) if keeps_dynamic_cache else None
    takes_positions = takes_position_ids(lm)
    attention_mask = F.pad(attention_mask, (0, length), value=1)
    positions = position_ids(attention_mask)
    new_ids = torch.zeros(len(input_ids), length, dtype=torch.long, device=device)
    rows = torch.arange(len(input_ids), device=device)  # in the batch
    active = torch.ones_like(rows, dtype=torch.bool)  # rows that have not finished
    start, ids = 0, input_ids
    for step in range(length):
        end = width + step
        inputs = {"input_ids": ids, "attention_mask": attention_mask[:, :end]}
        if start and cache_name == "cache_params":
            del inputs["attention_mask"]  # padding is in the prompts alone, and Mamba takes a mask for its tokens only
        if takes_positions:
            inputs["position_ids"] = positions[:, start:end]
        output = lm(**inputs, **{cache_name: cache}, use_cache=True, logits_to_keep=1)
        cache = cache if keeps_dynamic_cache else output[cache_name]
        next_ids = choose(output.logits[:, -1], rows, step)
        new_ids[rows, step] = next_ids
        active &= ~torch.isin(next_ids, stops)
        num_active = int(active.sum())
        if num_active == 0 and not sharded:
            break
        if keeps_dynamic_cache and 0 < num_active <= (1 - FINISHED_SHARE) * len(rows):
            cache.reorder_cache(active.nonzero().squeeze(1))  # states of Mamba have no batch_select_indices
            attention_mask, positions = attention_mask[active], positions[active]
            rows, next_ids, active = rows[active], next_ids[active], active[active]
        start, ids = end, next_ids[:, None]
    return [until_stop(row, stop_ids) for row in new_ids.tolist()]


def until_stop(ids: list[int], stop_ids: list[int]) -> list[int]:
    """`ids` up to and including the first stop token.

    Later tokens are leftovers: finished rows keep decoding until they are dropped from the batch.
    """
    for i, token in enumerate(ids):
        if token in stop_ids:
            return ids[: i + 1]
    return ids


def preallocated_cache(lm: PreTrainedModel, capacity: int) -> DynamicCache:
    """The model's own cache, with layers that keep all tokens replaced by `PreallocatedLayer`."""
    cache = DynamicCache(config=lm.config)
    cache.layers = [PreallocatedLayer(capacity) if type(layer) is DynamicLayer else layer for layer in cache.layers]
    return cache


class PreallocatedLayer(DynamicLayer):
    """Keys and values [B, heads, T, d] as views of buffers for `capacity` tokens, which are not copied for each token.

    Attributes:
        buffers: of keys and values, [B, heads, capacity, d] each; empty before the first update and after rows leave.
    """

    keys: Tensor
    values: Tensor

    def __init__(self, capacity: int):
        super().__init__()
        self.capacity = capacity
        self.buffers: list[Tensor] = []

    def update(self, key_states: Tensor, value_states: Tensor, *args, **kwargs) -> tuple[Tensor, Tensor]:
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        past = self.get_seq_length()
        end = past + key_states.shape[-2]
        if not self.buffers:
            for states, past_states in ((key_states, self.keys), (value_states, self.values)):
                buffer = states.new_empty(*states.shape[:2], self.capacity, states.shape[-1])
                if past:
                    buffer[:, :, :past] = past_states
                self.buffers.append(buffer)
        for buffer, states in zip(self.buffers, (key_states, value_states), strict=True):
            buffer[:, :, past:end] = states
        self.keys, self.values = (buffer[:, :, :end] for buffer in self.buffers)
        return self.keys, self.values

    def reorder_cache(self, beam_idx: Tensor) -> None:
        super().reorder_cache(cast(LongTensor, beam_idx))
        self.buffers = []


def stop_tokens(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, stop_token_id: int | None = None
) -> list[int]:
    """Ids that end a response: of the model's generation config, of the tokenizer, and `stop_token_id`."""
    own = eos_ids(model.generation_config or model.config)
    ids = {*own, *stop_ids(tokenizer), *([] if stop_token_id is None else [stop_token_id])}
    if not ids:
        raise InputError("Neither the model nor the tokenizer has an EOS token. Set stop_token_id.")
    return sorted(ids)
