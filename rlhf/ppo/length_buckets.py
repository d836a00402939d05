"""Length buckets: a micro-batch as several passes of rows of similar length, so that little padding is computed."""

from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedModel

# Tokens at which a CPU's matmuls reach full speed, and the fixed cost of one forward pass expressed in tokens.
CPU_LIMITS = 512, 64
CPU_LAYER = 1e6  # weights of a layer; a smaller layer needs CPU_LIMITS tokens per thread to keep all threads busy
GPU_TOKENS = 16384
# FLOPs of a GPU in the time that Python takes to start the kernels of one layer: one or two milliseconds.
GPU_LAYER_FLOPS = 5e11


@dataclass(frozen=True)
class Bucket:
    """Rows of a batch, padded on the right.

    Causal attention never looks to the right, so no attention mask or position ids are needed, and attention runs its
    fast kernel.
    """

    input_ids: Tensor  # [b, W]
    predicts: Tensor  # [b, W - 1] bool, True where the next token is a response token
    last: Tensor  # [b], position of the last token


def pass_limits(lm: PreTrainedModel, device: torch.device) -> tuple[int, int]:
    """Returns the largest number of tokens in a pass of `lm`, and the cost of one more pass in tokens."""
    layers = lm.config.get_text_config().num_hidden_layers
    embeddings = {lm.get_input_embeddings(), lm.get_output_embeddings()} - {None}
    others = sum(p.numel() for p in lm.parameters()) - sum(e.weight.numel() for e in embeddings)
    weights = max(others, 1) / layers
    if device.type != "cpu":
        return GPU_TOKENS, int(GPU_LAYER_FLOPS / (2 * weights))
    (tokens, per_pass), threads = CPU_LIMITS, torch.get_num_threads()
    times = min(threads, max(1, int(threads * CPU_LAYER / weights)))
    return times * tokens, times * per_pass


def bucket_by_length(
    input_ids: Tensor,
    attention_mask: Tensor,
    response_mask: Tensor,
    limits: tuple[int, int] = CPU_LIMITS,
    copies: int = 1,
    one: bool = False,
) -> tuple[Tensor, list[Bucket]]:
    """Cuts a batch into buckets. Returns order [B] and the buckets: row i of the buckets is row order[i] of the batch.

    Args:
        input_ids, attention_mask: [B, P + T], each row [left padding | prompt | response | right padding].
        response_mask: [B, T] bool.
        limits: returned by `pass_limits`.
        copies: number of adapters for which each row passes at once.
        one: True puts all rows into one bucket.
    """
    lengths, responses, first = attention_mask.sum(1), response_mask.sum(1), attention_mask.argmax(1)
    order = lengths.argsort(descending=True, stable=True)
    costs = [copies * length for length in lengths[order].tolist()]
    buckets = []
    for rows in order.split([len(order)] if one else bucket_sizes(costs, *limits)):
        position = torch.arange(int(lengths[rows[0]]), device=input_ids.device)  # [W]
        columns = (first[rows, None] + position).clamp(max=input_ids.shape[1] - 1)
        end, begin = lengths[rows, None], (lengths - responses)[rows, None]
        predicts = (position[1:] >= begin) & (position[1:] < end)
        buckets.append(Bucket(input_ids[rows[:, None], columns], predicts, lengths[rows] - 1))
    return order, buckets


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
