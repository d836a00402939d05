"""Sampling on a GPU: a fixed number of slots, into which the next prompts go as responses end.

Between two tokens Python starts a thousand small kernels, which takes ten times as long as they run. Here one step,
from the ids to the next ids, is captured into a CUDA graph and replayed. A graph has fixed shapes, so no row may leave
the batch; instead each slot has a position of its own, and one that has ended is given another prompt.
"""

from collections import deque
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel
from transformers.cache_utils import Cache, CacheLayerMixin, DynamicLayer

from rlhf.generation.decode_linears import compute_dtype
from rlhf.models.positions import takes_position_ids

# Prompts enter once a quarter of the slots are free: their prompts pass the model together, one kernel after the other.
FREE_SHARE = 0.25
# Attention reads a multiple of so many positions, as many as the longest sequence needs; each multiple has its graph.
WINDOW = 256
PREFILL_TOKENS = 16384  # of prompts, padding included, that pass the model together


def supports_continuous_batching(lm: PreTrainedModel) -> bool:
    """Whether `lm` is on a GPU and can be decoded so: plain attention, and shapes that no datum decides about."""
    layers = DynamicCache(config=lm.config).layers
    return (
        lm.device.type == "cuda"
        and getattr(lm, "_can_compile_fullgraph", False)
        and lm.config._attn_implementation == "sdpa"  # which takes the mask of `StaticBatch.step`
        and takes_position_ids(lm)
        and bool(layers)
        and all(type(layer) is DynamicLayer for layer in layers)  # no sliding windows
        and len(set(getattr(lm, "hf_device_map", {}).values())) <= 1
    )


@torch.no_grad()
def decode_continuously(
    lm: PreTrainedModel,
    prompts: Sequence[list[int]],
    choose: Callable[[Tensor, Tensor, Tensor], Tensor],
    stop_ids: Sequence[int],
    length: int,
    size: int,
    ended: Callable[[int], None] = lambda n: None,
) -> list[list[int]]:
    """Continues each prompt by at most `length` tokens: the new ids, up to and with the first stop token.

    Args:
        lm: a causal LM in evaluation mode that `supports_continuous_batching`; a CPU computes the same without graphs.
        prompts: they enter in this order.
        choose: (logits [S, V], which prompt each is of [S], number of the new token [S]) -> ids [S].
        size: number of slots S.
        ended: called with the number of responses that have ended just now.
    """
    slots = StaticBatch(lm, min(size, len(prompts)), max(map(len, prompts)) + length, length, choose)
    step = replayed(slots.step) if lm.device.type == "cuda" else slots.step
    responses: list[list[int]] = [[] for _ in prompts]
    waiting, inside = deque(range(len(prompts))), dict.fromkeys(range(slots.size))  # slot -> prompt
    while waiting or any(prompt is not None for prompt in inside.values()):
        free = [slot for slot, prompt in inside.items() if prompt is None]
        if waiting and len(free) >= FREE_SHARE * slots.size:
            entering = {slot: waiting.popleft() for slot in free[: len(waiting)]}
            slots.admit(entering, prompts)
            inside |= entering
        going = {slot: prompt for slot, prompt in inside.items() if prompt is not None}
        step(min(slots.room, round_up(max(len(prompts[i]) + len(responses[i]) for i in going.values()), WINDOW)))
        chosen = slots.ids.squeeze(1).tolist()
        for slot, prompt in going.items():
            responses[prompt].append(chosen[slot])
            if chosen[slot] in stop_ids or len(responses[prompt]) == length:
                inside[slot] = None
        ended(sum(inside[slot] is None for slot in going))
    return responses


class StaticBatch:
    """The tensors that a step reads and writes; they stay where they are, as a graph demands.

    Attributes:
        ids: [S, 1], the token that enters the model next; after a step, the one that was chosen in it.
        positions: [S], where that token stands in its sequence.
        prompts: [S], which prompt the sequence began with.
        steps: [S], number of the new token that will be chosen.
    """

    def __init__(self, lm: PreTrainedModel, size: int, room: int, length: int, choose: Callable):
        self.lm, self.choose, self.size, self.length = lm, choose, size, length
        self.room = round_up(room, 8)  # attention kernels want it so
        self.ids = torch.zeros(size, 1, dtype=torch.long, device=lm.device)
        self.positions, self.prompts, self.steps = torch.zeros(3, size, dtype=torch.long, device=lm.device)
        self.columns = torch.arange(self.room, device=lm.device)
        self.layers = [StaticCacheLayer(self.positions, self.room) for _ in DynamicCache(config=lm.config).layers]
        self.cache = Cache(layers=self.layers)

    def admit(self, entering: dict[int, int], prompts: Sequence[list[int]]) -> None:
        """Puts prompts into slots: {slot: which prompt}. Their last tokens enter the model in the next step."""
        found = [prompts[i] for i in entering.values()]
        slots = self.tensor(list(entering))
        self.ids[slots, 0] = self.tensor([ids[-1] for ids in found])
        self.positions[slots] = self.tensor([len(ids) - 1 for ids in found])
        self.prompts[slots] = self.tensor(list(entering.values()))
        self.steps[slots] = 0
        rows = max(1, PREFILL_TOKENS // max(map(len, found)))
        for start in range(0, len(found), rows):
            self.prefill(slots[start : start + rows], [ids[:-1] for ids in found[start : start + rows]])

    def prefill(self, slots: Tensor, contexts: list[list[int]]) -> None:
        """Keys and values of all but the last token of a prompt.

        Padding is on the right, where no token of the context sees it; what it leaves there later tokens overwrite
        before they can be seen.
        """
        width = max(map(len, contexts))
        if width == 0:
            return
        ids = self.tensor([context + [0] * (width - len(context)) for context in contexts])
        cache = DynamicCache(config=self.lm.config)
        getattr(self.lm, self.lm.base_model_prefix)(input_ids=ids, past_key_values=cache, use_cache=True)
        for layer, filled in zip(self.layers, cache.layers, strict=True):
            layer.fill(slots, filled.keys, filled.values)

    def step(self, window: int) -> None:
        """One token for each slot, which may see the first `window` positions. Free slots compute what nobody reads."""
        for layer in self.layers:
            layer.window = window
        seen = self.columns[:window] <= self.positions[:, None]
        logits = self.lm(
            input_ids=self.ids,
            position_ids=self.positions[:, None],
            attention_mask=seen[:, None, None],
            past_key_values=self.cache,
            use_cache=True,
            logits_to_keep=1,
        ).logits[:, -1]
        self.ids.copy_(self.choose(logits, self.prompts, self.steps)[:, None])
        self.positions.add_(1).clamp_(max=self.room - 1)
        self.steps.add_(1).clamp_(max=self.length - 1)

    def tensor(self, values: list) -> Tensor:
        return torch.tensor(values, device=self.lm.device)


class StaticCacheLayer(CacheLayerMixin):
    """Keys and values [S, heads, room, d], of which a token writes those at its slot's position."""

    def __init__(self, positions: Tensor, room: int):
        super().__init__()
        self.positions, self.room, self.window = positions, room, room
        self.slots = torch.arange(len(positions), device=positions.device)

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        # Zero-initialized: masked entries are still multiplied by 0, and 0 * NaN is NaN. Attention would cast to
        # autocast's dtype anyway.
        self.keys, self.values = (
            states.new_zeros(len(self.slots), states.shape[1], self.room, states.shape[3], dtype=compute_dtype(states))
            for states in (key_states, value_states)
        )
        self.is_initialized = True

    def fill(self, slots: Tensor, keys: Tensor, values: Tensor) -> None:
        """Writes keys and values [b, heads, P, d] at the beginning of some slots [b]."""
        if not self.is_initialized:
            self.lazy_initialization(keys, values)
        self.keys[slots, :, : keys.shape[2]] = keys.to(self.keys.dtype)
        self.values[slots, :, : values.shape[2]] = values.to(self.values.dtype)

    def update(self, key_states: Tensor, value_states: Tensor, *args, **kwargs) -> tuple[Tensor, Tensor]:
        """Takes those [S, heads, 1, d] of the new tokens."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        self.keys[self.slots, :, self.positions] = key_states[:, :, 0].to(self.keys.dtype)
        self.values[self.slots, :, self.positions] = value_states[:, :, 0].to(self.values.dtype)
        return self.keys[:, :, : self.window], self.values[:, :, : self.window]

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.window, 0

    def get_seq_length(self) -> int:
        return 0  # each slot has its own; models are given position_ids

    def get_max_length(self) -> int:
        return self.room


def replayed(step: Callable[[int], None]) -> Callable[[int], None]:
    """`step` of a GPU from CUDA graphs, one for each of its arguments.

    The first call with an argument runs it as it is, because libraries set themselves up in it, the second captures it.
    The graphs live as long as what is returned, and so do the buffers that they write into.
    """
    graphs: dict[int, torch.cuda.CUDAGraph | None] = {}
    pool = torch.cuda.graph_pool_handle()

    def run(window: int) -> None:
        if window not in graphs:
            graphs[window] = None
            return step(window)
        if graphs[window] is None:
            graphs[window] = torch.cuda.CUDAGraph()
            # thread_local: what other threads do meanwhile, such as pinning memory, is no error.
            with torch.cuda.graph(graphs[window], pool=pool, capture_error_mode="thread_local"):
                step(window)
        graphs[window].replay()

    return run


def round_up(number: int, multiple: int) -> int:
    return -(-number // multiple) * multiple
