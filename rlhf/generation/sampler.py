"""Sampling: a short decoding loop, for small models and for batches in which some responses end long before others.

transformers' `generate` does much besides the forward pass for each token, copies the key-value cache each time, and
keeps rows that have ended until the last one has. Nothing but temperature shapes the distribution here. On a GPU most
models are decoded in `rlhf.generation.continuous_batching` instead.
"""

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F
from tqdm.auto import tqdm
from transformers import DynamicCache, PreTrainedModel, PreTrainedTokenizerBase
from transformers.cache_utils import DynamicLayer

from rlhf.errors import InputError
from rlhf.generation.continuous_batching import decode_continuously, supports_continuous_batching
from rlhf.generation.decode_linears import fast_decode_linears
from rlhf.generation.random_numbers import inverse_cdf
from rlhf.models.positions import position_ids, takes_position_ids
from rlhf.models.sharding import is_sharded
from rlhf.tensors import pad_left

# Rows that have ended leave once they are a quarter of the batch: to drop them, the cache of the others is copied.
ENDED_SHARE = 0.25


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
    """A response to each prompt: at most T ids, up to and with the first stop token.

    Args:
        lm: a causal LM; it is in evaluation mode meanwhile.
        prompts: N lists of token ids.
        uniforms: [N, T] of `sampling_uniforms`; a response depends on its own row alone.
        temperature: 0 is greedy decoding.
        batch_size: rows that are decoded together.
        progress: label of the progress bar; None: no bar.
    """
    if not prompts:
        return []
    uniforms = uniforms.float() if lm.device.type == "mps" else uniforms  # see `as_float64`
    # Longest first: a prompt length that does not fit into memory shows at once.
    order = sorted(range(len(prompts)), key=lambda i: -len(prompts[i]))
    ordered, drawn, length = [prompts[i] for i in order], uniforms[order].to(lm.device), uniforms.shape[1]

    def choose(logits: Tensor, rows: Tensor, step: int | Tensor) -> Tensor:
        return inverse_cdf(logits, drawn[rows, step], temperature) if temperature else logits.argmax(-1)

    was_training = lm.training
    lm.eval()  # in training mode activation checkpointing would switch the key-value cache off
    sharded = is_sharded(lm)
    decode_all = (
        decode_continuously
        if supports_continuous_batching(lm) and not sharded
        else partial(decode_in_batches, pad_id=pad_id)
    )
    bar = tqdm(total=len(prompts), desc=progress, unit="answer", leave=False, disable=not progress)
    with nullcontext() if sharded else fast_decode_linears(lm), bar:
        found = decode_all(lm, ordered, choose, stop_ids, length, batch_size, ended=bar.update)
    lm.train(was_training)
    responses = dict(zip(order, found, strict=True))
    return [responses[i] for i in range(len(prompts))]


def decode_in_batches(
    lm: PreTrainedModel,
    prompts: Sequence[list[int]],
    choose: Callable[[Tensor, Tensor, int], Tensor],
    stop_ids: list[int],
    length: int,
    size: int,
    ended: Callable[[int], None],
    pad_id: int,
) -> list[list[int]]:
    """`decode` of `size` prompts at a time."""
    responses = []
    for start in range(0, len(prompts), size):
        ids, mask = pad_left(prompts[start : start + size], pad_id, lm.device)
        responses += decode(
            lm, ids, mask, lambda logits, rows, step, s=start: choose(logits, s + rows, step), stop_ids, length
        )
        ended(len(ids))
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
    """Continues each row by at most `length` tokens: the new ids, up to and with the first stop token.

    Args:
        lm: a causal LM in evaluation mode; its generation config has no say.
        input_ids, attention_mask: [B, P], padded on the left.
        choose: (logits [b, V], which b of the B rows they belong to, number of the new token) -> ids [b].
    """
    device, width = input_ids.device, input_ids.shape[1]
    stops = torch.tensor(stop_ids, device=device)
    sharded, cache = is_sharded(lm), roomy_cache(lm, width + length)
    takes_positions = takes_position_ids(lm)
    attention_mask = F.pad(attention_mask, (0, length), value=1)
    positions = position_ids(attention_mask)
    new = torch.zeros(len(input_ids), length, dtype=torch.long, device=device)
    rows = torch.arange(len(input_ids), device=device)  # those in the batch
    going = torch.ones_like(rows, dtype=torch.bool)  # which of them have not ended
    start, ids = 0, input_ids
    for step in range(length):
        end = width + step
        inputs = {"input_ids": ids, "attention_mask": attention_mask[:, :end]}
        if takes_positions:
            inputs["position_ids"] = positions[:, start:end]
        logits = lm(**inputs, past_key_values=cache, use_cache=True, logits_to_keep=1).logits[:, -1]
        chosen = choose(logits, rows, step)
        new[rows, step] = chosen
        going &= ~torch.isin(chosen, stops)
        left = int(going.sum())
        if left == 0 and not sharded:
            break
        if 0 < left <= (1 - ENDED_SHARE) * len(rows):
            cache.batch_select_indices(going.nonzero().squeeze(1))
            attention_mask, positions = attention_mask[going], positions[going]
            rows, chosen, going = rows[going], chosen[going], going[going]
        start, ids = end, chosen[:, None]
    return [until_stop(row, stop_ids) for row in new.tolist()]


def until_stop(ids: list[int], stop_ids: list[int]) -> list[int]:
    """`ids` up to and with the first stop token: what comes after it was sampled because the row was still there."""
    for i, token in enumerate(ids):
        if token in stop_ids:
            return ids[: i + 1]
    return ids


def roomy_cache(lm: PreTrainedModel, length: int) -> DynamicCache:
    """The model's own kind of cache, in which layers that keep everything do so without copying it for each token."""
    cache = DynamicCache(config=lm.config)
    cache.layers = [RoomyLayer(length) if type(layer) is DynamicLayer else layer for layer in cache.layers]
    return cache


class RoomyLayer(DynamicLayer):
    """Keys and values [B, heads, T, d] as views into tensors that have room for all tokens from the start."""

    def __init__(self, length: int):
        super().__init__()
        self.length = length
        self.room: list[Tensor] = []

    def update(self, key_states: Tensor, value_states: Tensor, *args, **kwargs) -> tuple[Tensor, Tensor]:
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        past = self.get_seq_length()
        end = past + key_states.shape[-2]
        if not self.room:
            for states, kept in ((key_states, self.keys), (value_states, self.values)):
                room = states.new_empty(*states.shape[:2], self.length, states.shape[-1])
                if past:
                    room[:, :, :past] = kept
                self.room.append(room)
        for room, states in zip(self.room, (key_states, value_states), strict=True):
            room[:, :, past:end] = states
        self.keys, self.values = (room[:, :, :end] for room in self.room)
        return self.keys, self.values

    def batch_select_indices(self, indices: Tensor) -> None:
        super().batch_select_indices(indices)
        self.room = []


def stop_tokens(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, stop_token_id: int | None = None
) -> list[int]:
    """Every id that ends a response: those of the model's generation config, the tokenizer's, and `stop_token_id`."""
    own = (model.generation_config or model.config).eos_token_id
    ids = {*(own if isinstance(own, list) else [own]), tokenizer.eos_token_id, stop_token_id} - {None}
    if not ids:
        raise InputError("neither model nor tokenizer has an EOS token; set stop_token_id.")
    return sorted(ids)
