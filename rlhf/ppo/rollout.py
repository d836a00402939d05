"""Episodes: which prompts, and micro-batches with carried masks.

Prompts, and the random numbers to sample with (rlhf/generation/random_numbers.py), are functions of (seed, rollout,
episode). An episode is the same on one process and on eight, in large batches and in small ones, and a rollout can
be made again.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from datasets import Dataset
from torch import Tensor
from transformers import PreTrainedConfig

from rlhf.data.encode import encode_prompt
from rlhf.errors import InputError
from rlhf.generation.random_numbers import random_generator
from rlhf.models.loading import context_length
from rlhf.tensors import pad_left


def encode_prompts(
    dataset: Dataset, tokenizer, max_length: int | None, num_proc: int | None = None, name: str = "train"
) -> Dataset:
    """Adds `input_ids` from `prompt` (text or messages); a dataset that has `input_ids`, as TRL's, is only checked.

    Raises:
        InputError: no such column, no rows, or a prompt that is empty or longer than `max_length` tokens.
    """
    if len(dataset) == 0:
        raise InputError(f"the {name} prompts are empty; give at least one row.")
    if "input_ids" not in dataset.column_names:
        if "prompt" not in dataset.column_names:
            raise InputError(f"the {name} prompts have the columns {dataset.column_names}; `prompt` is missing.")
        dataset = dataset.map(
            lambda row: {"input_ids": encode_prompt(tokenizer, row["prompt"])},
            num_proc=num_proc,
            desc=f"Tokenising {name} prompts",
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


def longest_prompt(config: PreTrainedConfig, max_prompt_length: int | None, response_length: int) -> int | None:
    """`max_prompt_length`, or what the model's context leaves beside the response."""
    context = context_length(config)
    if context is None:
        return max_prompt_length
    if (max_prompt_length or 1) + response_length > context:
        raise InputError(
            f"max_prompt_length {max_prompt_length or 1} + response_length {response_length} = "
            f"{(max_prompt_length or 1) + response_length} exceeds the model's context of {context} tokens."
        )
    return max_prompt_length or context - response_length


def prompt_rows(rollout: int, size: int, num_prompts: int, seed: int) -> list[int]:
    """Rows of the `rollout`-th `size` prompts in an endless stream of permutations of the dataset.

    Rollouts run across the ends of the data, so all have the same size, even one larger than the dataset.
    """
    rows = []
    position, end = rollout * size, (rollout + 1) * size
    while position < end:
        epoch, offset = divmod(position, num_prompts)
        order = torch.randperm(num_prompts, generator=random_generator("prompts", seed, epoch)).tolist()
        rows += order[offset : offset + end - position]
        position = rollout * size + len(rows)
    return rows


@dataclass
class MicroBatch:
    """Episodes that pass the models together, trimmed to the longest prompt (P) and response (T) among them."""

    rows: list[int]  # which of this process's episodes of the rollout
    input_ids: Tensor  # [B, P + T]
    attention_mask: Tensor  # [B, P + T]
    response_mask: Tensor  # [B, T] bool, the EOS included
    ended: Tensor  # [B] bool, whether the response stopped by itself
    tokens: Tensor | None = None  # response tokens in the minibatch, over micro-batches and processes
    logprobs: Tensor | None = None  # [B, T], under the policy that sampled
    ref_logprobs: Tensor | None = None  # [B, T]
    values: Tensor | None = None  # [B, T], of the value model at the time of sampling
    scores: Tensor | None = None  # [B], as the reward model and reward functions gave them
    shaped_scores: Tensor | None = None  # [B], clipped, with the missing-EOS terms
    rewards: Tensor | None = None  # [B, T]
    advantages: Tensor | None = None  # [B, T]
    returns: Tensor | None = None  # [B, T]

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
    """[left padding | prompt | response | right padding] of the episodes `rows`, and the masks that say so."""
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
    """One process's part of a rollout.

    `minibatches[m]` holds the micro-batches of minibatch m. Episode i is in minibatch i mod num_mini_batches: prompts
    come in random order, so that is a random partition, and the same one for any number of processes.
    """

    index: int
    minibatches: list[list[MicroBatch]] = field(default_factory=list)

    def micro_batches(self) -> Iterator[MicroBatch]:
        for minibatch in self.minibatches:
            yield from minibatch

    def at(self, micro_step: int, seed: int) -> MicroBatch:
        """The micro-batch of a micro-step; each PPO epoch visits the minibatches in an order of its own."""
        accumulation = len(self.minibatches[0])
        epoch, micro_step = divmod(micro_step, len(self.minibatches) * accumulation)
        step, micro_step = divmod(micro_step, accumulation)
        order = minibatch_order(len(self.minibatches), seed, self.index, epoch)
        return self.minibatches[order[step]][micro_step]


def minibatch_order(num_mini_batches: int, seed: int, rollout: int, epoch: int) -> list[int]:
    """In which order a PPO epoch visits the minibatches."""
    return torch.randperm(num_mini_batches, generator=random_generator("order", seed, rollout, epoch)).tolist()


def split(lengths: list[int], num_mini_batches: int, micro_batch_size: int) -> list[list[list[int]]]:
    """Episodes -> minibatches -> micro-batches, sorted by length within each minibatch so that little is padding.

    Not across minibatches: one of only short responses would be a biased step.
    """
    minibatches = []
    for m in range(num_mini_batches):
        rows = sorted(range(m, len(lengths), num_mini_batches), key=lambda i: lengths[i])
        minibatches.append([rows[i : i + micro_batch_size] for i in range(0, len(rows), micro_batch_size)])
    return minibatches
