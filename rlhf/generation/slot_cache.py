"""Keys and values of a fixed number of slots, each with a length of its own."""

import torch
from torch import Tensor
from transformers.cache_utils import CacheLayerMixin

from rlhf.generation.decode_linears import compute_dtype


class SlotCacheLayer(CacheLayerMixin):
    """Keys and values [S, capacity, heads, d]; a token writes its own at the position of its slot.

    Attributes:
        window: positions of each slot that attention gets.
    """

    keys: Tensor
    values: Tensor

    def __init__(self, positions: Tensor, capacity: int):
        super().__init__()
        self.positions, self.capacity, self.window = positions, capacity, capacity
        self.slots = torch.arange(len(positions), device=positions.device)

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        # Zero-initialized: masked entries are still multiplied by 0, and 0 * NaN is NaN. The dtype is that of autocast,
        # to which attention would cast anyway.
        size, capacity = len(self.slots), self.capacity
        self.keys, self.values = (
            states.new_zeros(size, capacity, states.shape[1], states.shape[3], dtype=compute_dtype(states))
            for states in (key_states, value_states)
        )
        self.is_initialized = True

    def fill(self, slots: Tensor, keys: Tensor, values: Tensor) -> None:
        """Writes keys and values [b, heads, P, d] to the first P positions of the slots [b]."""
        if not self.is_initialized:
            self.lazy_initialization(keys, values)
        self.keys[slots, : keys.shape[2]] = keys.transpose(1, 2).to(self.keys.dtype)
        self.values[slots, : values.shape[2]] = values.transpose(1, 2).to(self.values.dtype)

    def update(self, key_states: Tensor, value_states: Tensor, *args, **kwargs) -> tuple[Tensor, Tensor]:
        """Writes keys and values [S, heads, 1, d] of the new tokens; returns views [S, heads, window, d]."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        self.keys[self.slots, self.positions] = key_states[:, :, 0].to(self.keys.dtype)
        self.values[self.slots, self.positions] = value_states[:, :, 0].to(self.values.dtype)
        return self.keys[:, : self.window].transpose(1, 2), self.values[:, : self.window].transpose(1, 2)

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.window, 0

    def get_seq_length(self) -> int:
        return 0  # each slot has its own length; models get position_ids

    def get_max_length(self) -> int:
        return self.capacity
