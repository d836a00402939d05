"""Collates rows with K tokenized completions each into one right-padded batch of all completions."""

from dataclasses import dataclass
from typing import Any

import torch

from rlhf.tensors import pad_right

PER_PROMPT = ("prompt_length", "prompt_id", "labeler_group_id")


@dataclass
class KWiseCollator:
    """Flattens the K completions of each prompt, so that every completion passes the model once.

        prompt a, K = 3:  a1 a2 a3
        prompt b, K = 2:  b1 b2        ->   rows a1 a2 a3 b1 b2,  completions_per_prompt [3, 2]

    Rows have `completions_ids` (K lists of token ids, prompt and completion), `ranks` (K integers) and the integers
    `prompt_length` (tokens), `prompt_id` and `labeler_group_id`. B rows with N completions in all, the longest of T
    tokens, become a batch of int64 tensors:

    - `input_ids`, `attention_mask`: [N, T], padded on the right.
    - `last_token`: [N], position of the last token of each row. No token id marks it: a sampled response may end in
      a pad token.
    - `ranks`: [N]; `completions_per_prompt`, `prompt_length`, `prompt_id`, `labeler_group_id`: [B].

    Args:
        pad_token_id: id to pad with.
        pad_to_multiple_of: if set, T is rounded up to a multiple of it.
    """

    pad_token_id: int
    pad_to_multiple_of: int | None = None

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        sequences = [ids for row in rows for ids in row["completions_ids"]]
        return pad_right(sequences, self.pad_token_id, self.pad_to_multiple_of) | {
            "ranks": torch.tensor([rank for row in rows for rank in row["ranks"]]),
            "completions_per_prompt": torch.tensor([len(row["completions_ids"]) for row in rows]),
            **{name: torch.tensor([row[name] for row in rows]) for name in PER_PROMPT},
        }
