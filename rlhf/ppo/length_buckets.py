"""A micro-batch as passes with little padding (rows of similar length together) or none (packed rows, on a GPU)."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import count
from typing import Any

import torch
from torch import Tensor

from rlhf.models.packed_attention import packed_row
from rlhf.models.pass_limits import CPU_LIMITS


@dataclass(frozen=True)
class Bucket:
    """The rows of one pass: padded on the right, [b, W], or packed into one row of all their tokens, [1, T].

    Causal attention never looks to the right, so padded rows need no attention mask or position ids, and attention runs
    its fast kernel. Tokens are given by their indices in the two dimensions of `input_ids`.
    """

    input_ids: Tensor  # [b, W] or [1, T]
    packed: dict[str, Any]  # the other arguments of a forward on a packed row
    predicts: tuple[Tensor, Tensor]  # [n] each: the tokens before the response tokens, row by row
    targets: Tensor  # [n], the response tokens
    last: tuple[Tensor, Tensor]  # [b] each: the last token of each row

    @property
    def context(self) -> Tensor:
        """The ids without the last column of padded rows, which predicts nothing."""
        return self.input_ids if self.packed else self.input_ids[:, :-1]


def bucket_by_length(
    input_ids: Tensor,
    attention_mask: Tensor,
    response_mask: Tensor,
    limits: tuple[int, int] = CPU_LIMITS,
    copies: int = 1,
    one: bool = False,
    packed: bool = False,
) -> tuple[Tensor, list[Bucket]]:
    """Cuts a batch into buckets. Returns order [B] and the buckets: row i of the buckets is row order[i] of the batch.

    Args:
        input_ids, attention_mask: [B, P + T], each row [left padding | prompt | response | right padding].
        response_mask: [B, T] bool.
        limits: returned by `pass_limits`.
        copies: number of adapters for which each row passes at once.
        one: True puts all rows into one bucket.
        packed: True packs the rows of a bucket into one.
    """
    sizes = torch.stack([attention_mask.sum(1), response_mask.sum(1), attention_mask.argmax(1)]).cpu()
    order = sizes[0].argsort(descending=True, stable=True)
    lengths = sizes[0, order]
    costs = (copies * lengths).tolist()
    groups = [len(costs)] if one else pack_sizes(costs, limits[0]) if packed else bucket_sizes(costs, *limits)
    sizes, order = sizes[:, order].to(input_ids.device), order.to(input_ids.device)
    buckets = []
    for rows, of_rows, on_host in zip(*(x.split(groups, -1) for x in (order, sizes, lengths)), strict=True):
        make = _pack if packed else _pad
        buckets.append(make(input_ids[rows], of_rows[0], of_rows[1], of_rows[2], on_host.tolist()))
    return order, buckets


def _pad(input_ids: Tensor, lengths: Tensor, responses: Tensor, first: Tensor, sizes: list[int]) -> Bucket:
    """Bucket of rows [b, P + T], the longest first, whose `lengths` [b] tokens begin at column `first` [b]."""
    position = torch.arange(sizes[0], device=input_ids.device)  # [W]
    ids = input_ids.gather(1, (first[:, None] + position).clamp(max=input_ids.shape[1] - 1))
    end, begin = lengths[:, None], (lengths - responses)[:, None]
    row, token = ((position >= begin) & (position < end)).nonzero(as_tuple=True)
    last = torch.arange(len(ids), device=ids.device), lengths - 1
    return Bucket(ids, {}, (row, token - 1), ids[row, token], last)


def _pack(input_ids: Tensor, lengths: Tensor, responses: Tensor, first: Tensor, sizes: list[int]) -> Bucket:
    """Bucket of the same rows, packed."""
    column = torch.arange(input_ids.shape[1], device=input_ids.device)
    end = (first + lengths)[:, None]
    chosen = (column >= first[:, None]) & (column < end)
    responding = chosen & (column >= end - responses[:, None])
    ids, token = input_ids[chosen], responding[chosen].nonzero().squeeze(1)
    last = lengths.cumsum(0) - 1
    row = packed_row(sizes, ids.device)
    return Bucket(ids[None], row, (torch.zeros_like(token), token - 1), ids[token], (torch.zeros_like(last), last))


def pack_sizes(lengths: Sequence[int], most: int) -> list[int]:
    """Numbers of rows of passes of similar size, each of at most `most` tokens unless it is a single row."""
    tokens, total = torch.tensor(lengths), sum(lengths)
    middles = tokens.cumsum(0) - tokens / 2
    for passes in count(-(-total // most)):
        rows = (middles * passes / total).long().bincount()
        sizes = rows[rows > 0].tolist()
        if all(len(part) == 1 or part.sum() <= most for part in tokens.split(sizes)):
            return sizes
    raise AssertionError("some number of passes puts each row into one of its own")


def bucket_sizes(lengths: list[int], most: int, per_pass: int) -> list[int]:
    """Numbers of rows of the buckets that cost least, by dynamic programming.

    A bucket costs `per_pass` tokens plus its rows, all padded to the length of its first.

    Args:
        lengths: tokens of each row, the longest first.
        most: largest number of tokens in a bucket, unless it holds a single row.
    """
    best, first = [0], [0]  # of the first j rows: the lowest cost, and where the last bucket of that division begins
    for end in range(1, len(lengths) + 1):
        begins = [b for b in range(end) if b == end - 1 or (end - b) * lengths[b] <= most]
        cost = [best[b] + per_pass + (end - b) * lengths[b] for b in begins]
        best.append(min(cost))
        first.append(begins[cost.index(best[-1])])
    sizes, end = [], len(lengths)
    while end:
        sizes.append(end - first[end])
        end = first[end]
    return sizes[::-1]
