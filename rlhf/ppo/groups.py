"""A micro-batch in groups of rows of similar length, so that what the models compute is hardly ever padding."""

from dataclasses import dataclass

import torch
from torch import Tensor

# About so many tokens are in a group: enough for matrix products to run at full speed.
CPU_TOKENS, GPU_TOKENS = 512, 8192


@dataclass(frozen=True)
class Group:
    """Rows of a batch, without padding on the left.

    What is on the right no real token of a causal model sees, so the models need neither mask nor positions, and
    attention takes its fast path.
    """

    input_ids: Tensor  # [b, W]
    predicts: Tensor  # [b, W - 1] bool, True where the next token is one of the response
    last: Tensor  # [b], position of the last token


def grouped(
    input_ids: Tensor, attention_mask: Tensor, response_mask: Tensor, one: bool = False
) -> tuple[Tensor, list[Group]]:
    """The groups of a batch, and which of its rows they hold, one group after the other: [B].

    Args:
        input_ids, attention_mask: [B, P + T], each row [left padding | prompt | response | right padding].
        response_mask: [B, T] bool.
        one: all rows in one group.
    """
    lengths, responses, first = attention_mask.sum(1), response_mask.sum(1), attention_mask.argmax(1)
    order = lengths.argsort(descending=True, stable=True)
    tokens = CPU_TOKENS if input_ids.device.type == "cpu" else GPU_TOKENS
    groups = []
    for rows in order.split([len(order)] if one else group_sizes(lengths[order].tolist(), tokens)):
        position = torch.arange(int(lengths[rows[0]]), device=input_ids.device)  # [W]
        columns = (first[rows, None] + position).clamp(max=input_ids.shape[1] - 1)
        end, begin = lengths[rows, None], (lengths - responses)[rows, None]
        predicts = (position[1:] >= begin) & (position[1:] < end)
        groups.append(Group(input_ids[rows[:, None], columns], predicts, lengths[rows] - 1))
    return order, groups


def group_sizes(lengths: list[int], tokens: int) -> list[int]:
    """Rows in each group: as many as have `tokens` tokens when they are as long as the first, which is the longest."""
    sizes = []
    while (start := sum(sizes)) < len(lengths):
        sizes.append(min(-(-tokens // lengths[start]), len(lengths) - start))
    return sizes
