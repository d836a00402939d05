"""A short decoding loop, for small models and for batches in which some responses end long before others.

transformers' `generate` does much besides the forward pass for each token, copies the key-value cache each time, and
keeps rows that have ended until the last one has.
"""

import inspect
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import DynamicCache, PreTrainedModel
from transformers.cache_utils import DynamicLayer

from rlhf.ppo.groups import is_sharded

# Rows that have ended leave once they are a quarter of the batch: to drop them, the cache of the others is copied.
ENDED_SHARE = 0.25


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
    takes_positions = "position_ids" in inspect.signature(lm.forward).parameters  # BLOOM and others with ALiBi do not
    attention_mask = F.pad(attention_mask, (0, length), value=1)
    position_ids = (attention_mask.cumsum(1) - 1).clamp(min=0)
    new = torch.zeros(len(input_ids), length, dtype=torch.long, device=device)
    rows = torch.arange(len(input_ids), device=device)  # those in the batch
    going = torch.ones_like(rows, dtype=torch.bool)  # which of them have not ended
    start, ids = 0, input_ids
    for step in range(length):
        end = width + step
        inputs = {"input_ids": ids, "attention_mask": attention_mask[:, :end]}
        if takes_positions:
            inputs["position_ids"] = position_ids[:, start:end]
        logits = lm(**inputs, past_key_values=cache, use_cache=True, logits_to_keep=1).logits[:, -1]
        chosen = choose(logits, rows, step)
        new[rows, step] = chosen
        going &= ~torch.isin(chosen, stops)
        left = int(going.sum())
        if left == 0 and not sharded:
            break
        if 0 < left <= (1 - ENDED_SHARE) * len(rows):
            cache.batch_select_indices(going.nonzero().squeeze(1))
            attention_mask, position_ids = attention_mask[going], position_ids[going]
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
