"""The GPU's kernels for packed rows and for slots, in plain torch: what tests put in their place on a CPU."""

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention


def reference_varlen(q, k, v, cu_q, cu_k, max_q, max_k, *, scale=None, window_size=(-1, -1)) -> Tensor:
    """Computes `torch.nn.attention.varlen.varlen_attn` sequence by sequence; the last query sees all keys."""
    left, right = window_size
    assert right == 0 and max_q >= cu_q.diff().max() and max_k >= cu_k.diff().max()
    k, v = (x.repeat_interleave(q.shape[1] // k.shape[1], 1) for x in (k, v))
    outs = []
    for a, b, c, d in zip(cu_q, cu_q[1:], cu_k, cu_k[1:], strict=False):
        distance = torch.arange(d - c - (b - a), d - c)[:, None] - torch.arange(d - c)
        seen = (distance >= 0) & (distance <= (left if left >= 0 else len(k)))
        parts = [x.transpose(0, 1) for x in (q[a:b], k[c:d], v[c:d])]  # [heads, tokens, size]
        outs.append(scaled_dot_product_attention(*parts, attn_mask=seen, scale=scale).transpose(0, 1))
    return torch.cat(outs)


def reference_flash(query, keys, values, slots, scale) -> Tensor:
    """Computes `rlhf.generation.slot_attention.flash` slot by slot, and reads no key beyond a slot's length."""
    assert query.dtype == keys.dtype == values.dtype
    keys, values = (x.repeat_interleave(query.shape[1] // x.shape[2], 2) for x in (keys, values))
    outs = []
    for q, k, v, n in zip(query, keys, values, slots.lengths, strict=True):
        parts = [x.transpose(0, 1) for x in (q[None], k[:n], v[:n])]  # [heads, tokens, size]
        outs.append(scaled_dot_product_attention(*parts, scale=scale).squeeze(1))
    return torch.stack(outs)
