"""Small helpers that several packages share: padding, batches of similar length, precision."""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

# Stands wherever a mask is 0. What stands there is never read, but it is embedded, and every model has an embedding for
# this id. The pad token of a tokenizer may have none: scripts often add one without resizing the embeddings.
PADDING_ID = 0


def pad_left(sequences: Sequence[list[int]], pad_id: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Returns ids and attention mask, both [B, T] int64, with padding on the left."""
    rows = [torch.tensor(ids) for ids in sequences]
    ids = pad_sequence(rows, batch_first=True, padding_value=pad_id, padding_side="left")
    mask = pad_sequence([torch.ones_like(row) for row in rows], batch_first=True, padding_side="left")
    return ids.to(device), mask.to(device)


def pad_right(
    sequences: list[list[int]], pad_token_id: int, pad_to_multiple_of: int | None = None
) -> dict[str, Tensor]:
    """Returns `input_ids` and `attention_mask` [N, T] and `last_token` [N] of N lists of ids, int64."""
    lengths = torch.tensor([len(ids) for ids in sequences])
    multiple = pad_to_multiple_of or 1
    width = -(-int(lengths.max()) // multiple) * multiple
    input_ids = torch.full((len(sequences), width), pad_token_id)
    for row, ids in zip(input_ids, sequences, strict=True):
        row[: len(ids)] = torch.tensor(ids)
    attention_mask = (torch.arange(width) < lengths[:, None]).long()
    return {"input_ids": input_ids, "attention_mask": attention_mask, "last_token": lengths - 1}


def length_batches(lengths: Sequence[int], batch_size: int, rows: Sequence[int] | None = None) -> Iterator[list[int]]:
    """Yields `rows` (None: all) in batches of similar length, shortest first; equal lengths keep their order."""
    order = sorted(range(len(lengths)) if rows is None else rows, key=lengths.__getitem__)
    for start in range(0, len(order), batch_size):
        yield order[start : start + batch_size]


def as_float64(tensor: Tensor) -> Tensor:
    """Casts to float64, or to float32 on MPS, which lacks float64."""
    return tensor.float() if tensor.device.type == "mps" else tensor.double()
