"""Episodes: their prompts, and micro-batches that carry their masks.

Prompts and random numbers (rlhf/generation/random_numbers.py) are functions of (seed, rollout, episode). So an episode
is the same on 1 and on 8 processes and in large and small batches, and a rollout can be repeated.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from datasets import Dataset
from torch import Tensor
from transformers import PreTrainedConfig

from rlhf.data.encode import encode_prompt
from rlhf.errors import InputError
from rlhf.generation.random_numbers import random_generator
from rlhf.models.loading import context_length
from rlhf.ppo.prompts import QUERY, tokenized_prompts
from rlhf.tensors import pad_left


def encode_prompts(
    dataset: Dataset,
    tokenizer,
    max_length: int | None,
    num_proc: int | None = None,
    name: str = "train",
    collate: Callable | None = None,
) -> Dataset:
    """Adds `input_ids` from `prompt` (text or messages), or takes tokenized prompts as in TRL's scripts.

    Args:
        collate: data collator that makes `input_ids` from a list of one row.

    Raises:
        InputError: no such column, no rows, or a prompt that is empty or longer than `max_length` tokens.
    """
    if len(dataset) == 0:
        raise InputError(f"the {name} prompts are empty; give at least one row.")
    if collate is not None or not {"input_ids", QUERY}.isdisjoint(dataset.column_names):
        dataset = tokenized_prompts(dataset, tokenizer, name, collate)
    else:
        if "prompt" not in dataset.column_names:
            raise InputError(f"the {name} prompts have the columns {dataset.column_names}; `prompt` is missing.")
        dataset = dataset.map(
            lambda row: {"input_ids": encode_prompt(tokenizer, row["prompt"])},
            num_proc=num_proc,
            desc=f"Tokenizing {name} prompts",
        )
    for i, ids in enumerate(dataset["input_ids"]):
        if len(ids) == 0:
            raise InputError(f"row {i} of the {name} prompts has no tokens; remove it.")
        if max_length is not None and len(ids) > max_length:
            raise InputError(
                f"row {i} of the {name} prompts has {len(ids)} tokens, more than max_prompt_length {max_length}; "
                "remove it, or raise max_prompt_length."
            )
    return dataset


def longest_prompt(
    config: PreTrainedConfig, max_prompt_length: int | None, response_length: int, option: str = "response_length"
) -> int | None:
    """Returns `max_prompt_length`, or the model's context length less `response_length`, the value of `option`."""
    context = context_length(config)
    if context is None:
        return max_prompt_length
    if max_prompt_length is None and response_length >= context:
        raise InputError(
            f"{option} {response_length} leaves no room for a prompt in the model's context of {context} tokens; "
            "lower it."
        )
    if (max_prompt_length or 0) + response_length > context:
        raise InputError(
            f"max_prompt_length {max_prompt_length} + {option} {response_length} = "
            f"{(max_prompt_length or 0) + response_length} exceeds the model's context of {context} tokens; lower one."
        )
    return max_prompt_length or context - response_length


def prompt_rows(rollout: int, size: int, num_prompts: int, seed: int) -> list[int]:
    """Rows of the `rollout`-th `size` prompts in an endless stream of permutations of the dataset.

    Rollouts continue across the end of the data, so all have the same size, even if it is larger than the dataset.
    """
    rows = []
    position, end = rollout * size, (rollout + 1) * size
    while position < end:
        epoch, offset = divmod(position, num_prompts)
        order = torch.randperm(num_prompts, generator=random_generator("prompts", seed, epoch)).tolist()
        rows += order[offset : offset + end - position]
        position = rollout * size + len(rows)
    return rows


LATER: Any = None  # default of a field that a later step of the rollout sets


@dataclass
class MicroBatch:
    """Episodes that pass the models together, trimmed to their longest prompt (P) and response (T).

    The steps of `PPOTrainer.make_rollout` set the fields from `tokens` on, and each reads only what came before it.
    """

    rows: list[int]  # indices into this process's episodes of the rollout
    input_ids: Tensor  # [B, P + T]
    attention_mask: Tensor  # [B, P + T]
    response_mask: Tensor  # [B, T] bool, the EOS included
    ended: Tensor  # [B] bool, True if the response ended by itself
    tokens: Tensor = LATER  # scalar: response tokens in the minibatch, over micro-batches and processes
    logprobs: Tensor = LATER  # [B, T], under the policy that sampled
    ref_logprobs: Tensor = LATER  # [B, T]
    values: Tensor = LATER  # [B, T], of the value model before the update
    scores: Tensor = LATER  # [B], of the reward model and reward functions
    shaped_scores: Tensor = LATER  # [B], scaled, clipped, with the missing-EOS terms
    rewards: Tensor = LATER  # [B, T]
    advantages: Tensor = LATER  # [B, T]
    returns: Tensor = LATER  # [B, T]

    def inputs(self) -> dict[str, Tensor]:
        names = ("input_ids", "attention_mask", "response_mask")
        return {name: getattr(self, name) for name in names}


def micro_batch(
    rows: list[int],
    prompts: list[list[int]],
    responses: list[list[int]],
    stop_ids: list[int],
    pad_id: int,
    device: torch.device,
) -> MicroBatch:
    """Builds [left padding | prompt | response | right padding] of the episodes `rows`, and its masks."""
    prompts, responses = [prompts[i] for i in rows], [responses[i] for i in rows]
    width = max(map(len, responses))
    prompt_ids, prompt_mask = pad_left(prompts, pad_id, device)
    ids = torch.tensor([r + [pad_id] * (width - len(r)) for r in responses], device=device)
    mask = torch.tensor([[True] * len(r) + [False] * (width - len(r)) for r in responses], device=device)
    return MicroBatch(
        rows=rows,
        input_ids=torch.cat((prompt_ids, ids), dim=1),
        attention_mask=torch.cat((prompt_mask, mask.long()), dim=1),
        response_mask=mask,
        ended=torch.tensor([response[-1] in stop_ids for response in responses], device=device),
    )


@dataclass
class Rollout:
    """One process's episodes of a rollout.

    `minibatches[m]` holds the micro-batches of minibatch m. Episode i is in minibatch i mod num_mini_batches: prompts
    come in random order, so this is a random partition, and it is the same for any number of processes.
    """

    index: int
    minibatches: list[list[MicroBatch]] = field(default_factory=list)

    def micro_batches(self) -> Iterator[MicroBatch]:
        for minibatch in self.minibatches:
            yield from minibatch

    def at(self, micro_step: int, seed: int) -> MicroBatch:
        """The micro-batch of a micro-step; each PPO epoch visits the minibatches in its own order."""
        accumulation = len(self.minibatches[0])
        epoch, micro_step = divmod(micro_step, len(self.minibatches) * accumulation)
        step, micro_step = divmod(micro_step, accumulation)
        order = minibatch_order(len(self.minibatches), seed, self.index, epoch)
        return self.minibatches[order[step]][micro_step]


def minibatch_order(num_mini_batches: int, seed: int, rollout: int, epoch: int) -> list[int]:
    """Order in which a PPO epoch visits the minibatches."""
    return torch.randperm(num_mini_batches, generator=random_generator("order", seed, rollout, epoch)).tolist()


def split(lengths: list[int], num_mini_batches: int, micro_batch_size: int) -> list[list[list[int]]]:
    """Cuts episodes into minibatches and these into micro-batches, sorted by length so that little is padding.

    Sorted within a minibatch only: a minibatch of short responses alone would give a biased step.
    """
    minibatches = []
    for m in range(num_mini_batches):
        rows = sorted(range(m, len(lengths), num_mini_batches), key=lambda i: lengths[i])
        minibatches.append([rows[i : i + micro_batch_size] for i in range(0, len(rows), micro_batch_size)])
    return minibatches
