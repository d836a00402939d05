"""Attention of a decoding step to the filled part of each slot.

FlashAttention takes the number of keys of each slot from the device. It reads no key beyond, so that one CUDA graph
serves all lengths, and heads of queries that share a head of keys read it once. It needs a GPU and a 16-bit dtype.

A layer uses the kernel only if it attends with the step's own mask and asks for nothing else; then the kernel computes
what sdpa computes with this mask. The kernel is tried first, on made-up keys in the shape of the layer.
"""

import functools
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from rlhf.errors import first_line
from rlhf.generation.cuda_graphs import with_cuda_graphs
from rlhf.models.packed_attention import attention_obstacle
from rlhf.models.precision import SIXTEEN_BITS

logger = logging.getLogger(__name__)

NAME = "sdpa_slots"  # of `slot_attention` in transformers
OTHERS = ("softcap", "s_aux", "position_bias", "sliding_window")  # of a layer's arguments; the kernel has none of them


@dataclass
class Slots:
    """Argument `slots` of a forward for `slot_attention`.

    Attributes:
        mask: [S, 1, 1, capacity] bool, the forward's `attention_mask`.
        lengths: [S] int32, keys that each slot attends to, at least 1.
        query_starts, key_starts: [S + 1] int32: 0, 1, ..., S, and the same times the capacity.
        layers: number of layers in which the kernel ran.
    """

    mask: Tensor
    lengths: Tensor
    query_starts: Tensor
    key_starts: Tensor
    layers: int = 0

    @classmethod
    def of(cls, positions: Tensor, capacity: int) -> "Slots":
        """Returns the slots whose tokens at `positions` [S] see all keys up to their own."""
        starts = torch.arange(len(positions) + 1, dtype=torch.int32, device=positions.device)
        visible = torch.arange(capacity, device=positions.device) <= positions[:, None]
        return cls(visible[:, None, None], (positions + 1).int(), starts, starts * capacity)


def slot_attention(
    module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    slots: Slots | None = None,
    **kw,
) -> tuple[Tensor, None]:
    """Attention to the filled part of each slot, or the sdpa attention of transformers; see the head of this module.

    Args:
        query: [S, heads, 1, d].
        key, value: [S, key heads, capacity, d], of `SlotCacheLayer`.

    Returns:
        [S, 1, heads, d], None
    """
    plain = not kw.get("dropout") and all(kw.get(name) is None for name in OTHERS) and key.shape == value.shape
    shape = key.device, key.dtype, query.shape[1], key.shape[1], key.shape[3]
    if slots is not None and attention_mask is slots.mask and plain and kernel_works(*shape):
        slots.layers += 1
        out = flash(query[:, :, 0].to(key.dtype), key.transpose(1, 2), value.transpose(1, 2), slots, scaling)
        return out[:, None], None
    return sdpa_attention_forward(module, query, key, value, attention_mask, scaling=scaling, **kw)


def flash(query: Tensor, keys: Tensor, values: Tensor, slots: Slots, scale: float | None) -> Tensor:
    """Runs the kernel: query [S, heads, d], keys and values [S, capacity, key heads, d] -> [S, heads, d].

    `torch.nn.attention.varlen.varlen_attn` before torch 2.12 has no `seqused_k`; the operator beneath it has.
    """
    return torch.ops.aten._flash_attention_forward(
        query, keys.flatten(0, 1), values.flatten(0, 1), slots.query_starts, slots.key_starts, 1, keys.shape[1],
        0.0, False, False, scale=scale, seqused_k=slots.lengths,
    )[0]  # fmt: skip


AttentionInterface.register(NAME, slot_attention)
AttentionMaskInterface.register(NAME, sdpa_mask)


def takes_slots(lm: PreTrainedModel) -> bool:
    """True if the forward of `lm` takes `slots`, though some of its layers may not use them."""
    return attention_obstacle(lm) is None and not lm.config.get_text_config().sub_configs


@contextmanager
def attention_to_slots(lm: PreTrainedModel) -> Iterator[None]:
    """Context in which the layers of `lm` attend by `slot_attention`."""
    config = lm.config.get_text_config()
    before = config._attn_implementation
    config._attn_implementation = NAME
    try:
        yield
    finally:
        config._attn_implementation = before


# ---- Trial of the kernel


@functools.cache
def kernel_works(device: torch.device, dtype: torch.dtype, heads: int, key_heads: int, size: int) -> bool:
    """True if `flash` computes what sdpa computes; if a GPU fails, one line in the log says how."""
    if not has_kernel(device, dtype):
        return False
    fault = kernel_fault(device, dtype, heads, key_heads, size)
    if fault:
        logger.warning("decoding reads all keys with a mask, because %s", fault)
    return fault is None


def has_kernel(device: torch.device, dtype: torch.dtype) -> bool:
    """True if torch has the kernel for such a device and dtype, as far as its documentation says."""
    return device.type == "cuda" and dtype in SIXTEEN_BITS


@torch.no_grad()
def kernel_fault(device: torch.device, dtype: torch.dtype, heads: int, key_heads: int, size: int) -> str | None:
    """Tries `flash` on made-up keys; returns None, or how it fails in this torch on this GPU.

    A GPU runs it, captures it in a CUDA graph, and replays the graph with other lengths. At these lengths, one key too
    many or too few changes the attention of a slot by a twentieth; 16 bits by less than a hundredth.

    Args:
        heads, key_heads: of queries, and of keys and values.
        size: of a head.
    """
    fills = [[1, 7, 64, 257, 320], [320, 2, 129, 63, 256], [5, 300, 1, 128, 65]]
    slots, capacity, scale = len(fills[0]), max(fills[0]), 0.1  # the scale is not 1 / sqrt(size)
    generator = torch.Generator().manual_seed(0)
    query = torch.randn(slots, heads, 1, size, generator=generator).to(dtype)
    key, value = torch.randn(2, slots, capacity, key_heads, size, generator=generator).to(dtype)
    groups = heads // key_heads
    k, v = (x.transpose(1, 2).repeat_interleave(groups, 1).float() for x in (key, value))
    inputs = [query.to(device), *(x.to(device).transpose(1, 2) for x in (key, value))]
    positions = torch.zeros(slots, dtype=torch.long, device=device)
    result = torch.zeros(slots, heads, size, dtype=dtype, device=device)

    def attend(_: int) -> None:
        of = Slots.of(positions, capacity)
        query, key, value = inputs
        result.copy_(flash(query[:, :, 0], key.transpose(1, 2), value.transpose(1, 2), of, scale))

    try:
        run = with_cuda_graphs(attend) if device.type == "cuda" else attend
        for fill in fills:
            lengths = torch.tensor(fill)
            positions.copy_(lengths - 1)
            run(0)
            visible = (torch.arange(capacity) < lengths[:, None])[:, None, None]
            right = scaled_dot_product_attention(query.float(), k, v, attn_mask=visible, scale=scale)[:, :, 0]
            errors = (result.cpu().float() - right).norm(dim=(1, 2)) / right.norm(dim=(1, 2))
            if not bool((errors < 0.02).all()):  # NaN is not below
                return f"attention to filled slots is wrong in torch {torch.__version__}"
    except (AttributeError, RuntimeError, TypeError, ValueError) as error:
        return f"torch {torch.__version__} cannot compute attention to filled slots: {first_line(error)}"
    return None
