"""Continuous batching on a GPU: a fixed number of slots; the next prompts take the slots of finished responses.

Between two tokens, Python launches a thousand small kernels, which takes ten times as long as they run. Here one step,
from the token ids to the next token ids, is captured in a CUDA graph and replayed. A graph has fixed shapes, so no row
can leave the batch. Instead, each slot has its own position, and a slot that is free gets another prompt.
"""

from collections import deque
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel
from transformers.cache_utils import Cache, DynamicLayer

from rlhf.generation.cuda_graphs import with_cuda_graphs
from rlhf.generation.slot_attention import Slots, attention_to_slots, takes_slots
from rlhf.generation.slot_cache import SlotCacheLayer
from rlhf.models.packed_attention import NAME
from rlhf.models.positions import takes_position_ids

# Prompts are admitted once a quarter of the slots are free, to share a prefill, whose kernels are launched one by one.
FREE_SHARE = 0.25
# With a mask, attention reads as many positions of each slot as the longest sequence has, rounded up to a multiple of
# WINDOW; each multiple has its own graph.
WINDOW = 256
PREFILL_TOKENS = 16384  # prompt tokens of one prefill pass, padding included


def supports_continuous_batching(lm: PreTrainedModel) -> bool:
    """True if a CUDA graph can capture a decoding step of `lm`.

    `lm` must be on one GPU, use plain attention, and have no data-dependent shapes.
    """
    layers = DynamicCache(config=lm.config).layers
    return (
        lm.device.type == "cuda"
        and getattr(lm, "_can_compile_fullgraph", False)
        and lm.config._attn_implementation in ("sdpa", NAME)  # which take the mask of `StaticBatch.step`
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
    on_finished: Callable[[int], object] = lambda n: None,
) -> list[list[int]]:
    """Continues each prompt by at most `length` tokens: the new ids, up to and including the first stop token.

    Every slot has room for the longest prompt that may come into it. So prompts that need less than half the room of
    the longest wait for slots of their own: one prompt of 8,000 tokens does not make all slots that long.

    Args:
        lm: a causal LM in evaluation mode that `supports_continuous_batching`; a CPU computes the same without graphs.
        prompts: admitted in this order, the longest first.
        choose: (logits [S, V], prompt indices [S], number of the new token [S]) -> ids [S].
        size: number of slots S.
        on_finished: called after each step with the number of responses that it finished.
    """
    responses: list[list[int]] = [[] for _ in prompts]
    # Graphs are captured on the current device, which is not the model's in processes other than the first.
    with torch.cuda.device(lm.device) if lm.device.type == "cuda" else nullcontext():
        for group in similar_rooms([len(prompt) + length for prompt in prompts]):
            _decode_group(lm, prompts, group, responses, choose, stop_ids, length, size, on_finished)
    return responses


def similar_rooms(rooms: list[int]) -> list[list[int]]:
    """Cuts 0, 1, ... into consecutive groups in which no number of `rooms` is less than half of the largest."""
    groups: list[list[int]] = []
    least = most = 0
    for i, room in enumerate(rooms):
        least, most = min(least, room), max(most, room)
        if groups and 2 * least >= most:
            groups[-1].append(i)
        else:
            groups.append([i])
            least = most = room
    return groups


def _decode_group(
    lm: PreTrainedModel,
    prompts: Sequence[list[int]],
    group: list[int],
    responses: list[list[int]],
    choose: Callable[[Tensor, Tensor, Tensor], Tensor],
    stop_ids: Sequence[int],
    length: int,
    size: int,
    on_finished: Callable[[int], object],
) -> None:
    """Fills in the responses to the prompts of `group`; see `decode_continuously`.

    The tokens of a step are read while the next step runs, so that a GPU does not wait for Python. A slot therefore
    decodes one token after its stop token, which is dropped.
    """
    batch = StaticBatch(lm, min(size, len(group)), max(len(prompts[i]) for i in group) + length, length, choose)
    step = with_cuda_graphs(batch.step) if lm.device.type == "cuda" else batch.step
    queue = deque(group)
    active: dict[int, int] = {}  # prompt of each slot that is not free
    steps = dict.fromkeys(group, 0)  # that were started for each prompt
    unread: tuple[dict[int, int], Callable[[], list[int]]] | None = None  # `active` in the step before, and its tokens
    while queue or active or unread:
        free = [slot for slot in range(batch.size) if slot not in active]
        if queue and len(free) >= FREE_SHARE * batch.size:
            admitted = {slot: queue.popleft() for slot in free[: len(queue)]}
            batch.admit(admitted, prompts)
            active |= admitted
        started = None
        if active:
            longest = max(len(prompts[i]) + steps[i] for i in active.values())
            step(batch.window(longest))
            started = active, start_reading(batch.ids)
            for prompt in active.values():
                steps[prompt] += 1
            active = {slot: prompt for slot, prompt in active.items() if steps[prompt] < length}
        if unread:
            finished = append_tokens(responses, unread[0], unread[1](), stop_ids, length)
            active = {slot: prompt for slot, prompt in active.items() if prompt not in finished}
            on_finished(len(finished))
        unread = started


def start_reading(ids: Tensor) -> Callable[[], list[int]]:
    """Starts to copy `ids` [S, 1] to the CPU, and returns a function that waits for the copy."""
    copy = ids.to("cpu", non_blocking=True, copy=True)  # from a GPU into pinned memory
    copied = torch.cuda.Event() if ids.is_cuda else None
    if copied:
        copied.record()

    def read() -> list[int]:
        if copied:
            copied.synchronize()
        return copy.flatten().tolist()

    return read


def append_tokens(
    responses: list[list[int]], prompt_of_slot: dict[int, int], ids: list[int], stop_ids: Sequence[int], length: int
) -> set[int]:
    """Appends the token of each slot to its response, unless that has ended; returns the prompts that end with it."""
    finished = set()
    for slot, prompt in prompt_of_slot.items():
        response = responses[prompt]
        if response and response[-1] in stop_ids:
            continue  # this step was started before the stop token was read
        response.append(ids[slot])
        if ids[slot] in stop_ids or len(response) == length:
            finished.add(prompt)
    return finished


class StaticBatch:
    """Static buffers of a decoding step. CUDA graphs require them to keep their addresses.

    Attributes:
        ids: [S, 1], input tokens of the next step; each step overwrites them with the tokens that it chose.
        positions: [S], positions of these tokens in their sequences.
        prompts: [S], index of the prompt in each slot.
        steps: [S], number of the new token that the next step chooses.
        reads_filled: attention reads the filled part of each slot alone. True until a step finds a layer that does not.
    """

    def __init__(self, lm: PreTrainedModel, size: int, capacity: int, length: int, choose: Callable):
        self.lm, self.choose, self.size, self.length = lm, choose, size, length
        self.capacity = round_up(capacity, 8)  # positions of a slot; attention kernels need a multiple of 8
        self.ids = torch.zeros(size, 1, dtype=torch.long, device=lm.device)
        self.positions, self.prompts, self.steps = torch.zeros(3, size, dtype=torch.long, device=lm.device)
        layers = DynamicCache(config=lm.config).layers
        self.layers = [SlotCacheLayer(self.positions, self.capacity) for _ in layers]
        self.cache = Cache(layers=[*self.layers])
        self.reads_filled = takes_slots(lm)

    def admit(self, admitted: dict[int, int], prompts: Sequence[list[int]]) -> None:
        """Puts prompts into slots, {slot: index of the prompt}. The next step takes the last token of each prompt.

        Prompts that are equal up to their last token are prefilled once.
        """
        prompt_ids = [prompts[i] for i in admitted.values()]
        slots = self.tensor(list(admitted))
        self.ids[slots, 0] = self.tensor([ids[-1] for ids in prompt_ids])
        self.positions[slots] = self.tensor([len(ids) - 1 for ids in prompt_ids])
        self.prompts[slots] = self.tensor(list(admitted.values()))
        self.steps[slots] = 0
        slots_of: dict[tuple[int, ...], list[int]] = {}
        for slot, ids in zip(admitted, prompt_ids, strict=True):
            if len(ids) > 1:
                slots_of.setdefault(tuple(ids[:-1]), []).append(slot)
        contexts = list(slots_of)
        rows = max(1, PREFILL_TOKENS // max(map(len, prompt_ids)))
        for start in range(0, len(contexts), rows):
            self.prefill({context: slots_of[context] for context in contexts[start : start + rows]})

    def prefill(self, slots_of: dict[tuple[int, ...], list[int]]) -> None:
        """Computes keys and values of prompts without their last tokens, {context: its slots}.

        Padding is on the right, where causal attention never looks. Later tokens overwrite its keys and values before
        they are visible.
        """
        width = max(map(len, slots_of))
        ids = self.tensor([[*context, *[0] * (width - len(context))] for context in slots_of])
        cache = DynamicCache(config=self.lm.config)
        getattr(self.lm, self.lm.base_model_prefix)(input_ids=ids, past_key_values=cache, use_cache=True)
        slots = self.tensor([slot for each in slots_of.values() for slot in each])
        rows = self.tensor([row for row, each in enumerate(slots_of.values()) for _ in each])
        prefilled_layers: list[Any] = cache.layers  # all DynamicLayer
        for layer, prefilled in zip(self.layers, prefilled_layers, strict=True):
            layer.fill(slots, prefilled.keys[rows], prefilled.values[rows])

    def window(self, filled: int) -> int:
        """Positions that the next step reads, if the longest slot has `filled` keys."""
        return self.capacity if self.reads_filled else min(self.capacity, round_up(filled, WINDOW))

    def step(self, window: int) -> None:
        """Decodes one token in each slot, with attention to the first `window` positions. Free slots are ignored."""
        for layer in self.layers:
            layer.window = window
        slots = Slots.of(self.positions, window)
        with attention_to_slots(self.lm) if self.reads_filled else nullcontext():
            logits = self.lm(
                input_ids=self.ids,
                position_ids=self.positions[:, None],
                attention_mask=slots.mask,
                past_key_values=self.cache,
                use_cache=True,
                logits_to_keep=1,
                **{"slots": slots} if self.reads_filled else {},
            ).logits[:, -1]
        self.reads_filled = self.reads_filled and slots.layers >= len(self.layers)
        self.ids.copy_(self.choose(logits, self.prompts, self.steps)[:, None])
        self.positions.add_(1).clamp_(max=self.capacity - 1)
        self.steps.add_(1).clamp_(max=self.length - 1)

    def tensor(self, values: list) -> Tensor:
        return torch.tensor(values, device=self.lm.device)


def round_up(number: int, multiple: int) -> int:
    return -(-number // multiple) * multiple
