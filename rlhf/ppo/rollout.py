"""Episodes: which prompts, which random numbers, sampling, and micro-batches with carried masks.

Prompts and random numbers are functions of (seed, rollout, episode) alone. An episode is the same on one process and on
eight, in large batches and in small ones, and a rollout can be made again.
"""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from datasets import Dataset
from torch import Tensor
from tqdm.auto import tqdm
from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from rlhf.data.encode import encode_prompt
from rlhf.errors import InputError
from rlhf.ppo.actor_critic import ActorCritic
from rlhf.ppo.decode import decode
from rlhf.ppo.returns import precise


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


def stop_tokens(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, stop_token_id: int | None) -> list[int]:
    """Every id that ends a response: the model's, the tokenizer's and the configuration's."""
    own = (model.generation_config or model.config).eos_token_id
    ids = {*(own if isinstance(own, list) else [own]), tokenizer.eos_token_id, stop_token_id} - {None}
    if not ids:
        raise InputError("neither model nor tokenizer has an EOS token; set stop_token_id.")
    return sorted(ids)


def longest_prompt(config: PreTrainedConfig, max_prompt_length: int | None, response_length: int) -> int | None:
    """`max_prompt_length`, or what the model's context leaves beside the response."""
    context = getattr(config.get_text_config(), "max_position_embeddings", None)
    if context is None:
        return max_prompt_length
    if (max_prompt_length or 1) + response_length > context:
        raise InputError(
            f"max_prompt_length {max_prompt_length or 1} + response_length {response_length} = "
            f"{(max_prompt_length or 1) + response_length} exceeds the model's context of {context} tokens."
        )
    return max_prompt_length or context - response_length


def random_generator(*key: int | str) -> torch.Generator:
    """A generator of its own for each key, e.g. ("prompts", seed, epoch)."""
    digest = hashlib.sha256(repr(key).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)


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


def sampling_noise(size: int, length: int, *key: int | str) -> Tensor:
    """[size, length] float64, uniform in [0, 1): one number for each token that may be sampled."""
    return torch.rand(size, length, generator=random_generator("noise", *key), dtype=torch.float64)


def inverse_cdf(logits: Tensor, noise: Tensor, temperature: float) -> Tensor:
    """Samples from softmax(logits / temperature): the first i with cdf_i > u.

    Unlike with torch.multinomial, what an episode gets does not depend on which others are in its batch.

    Args:
        logits: [B, V].
        noise: [B] float64, the u.

    Returns:
        ids [B].
    """
    cdf = torch.softmax(precise(logits) / temperature, dim=-1).cumsum(-1)
    choice = torch.searchsorted(cdf, noise[:, None] * cdf[:, -1:], right=True)
    return choice.squeeze(1).clamp(max=logits.shape[-1] - 1)


@torch.no_grad()
def sample(
    model: ActorCritic,
    prompts: list[list[int]],
    noise: Tensor,
    *,
    stop_ids: list[int],
    pad_id: int,
    temperature: float,
    batch_size: int,
    device: torch.device,
    progress: str | None = None,
) -> list[list[int]]:
    """Samples a response of at most `noise.shape[1]` tokens to each prompt: ids up to and with the first stop token."""
    length = noise.shape[1]
    noise = noise.float() if device.type == "mps" else noise  # see `precise`
    responses: list[list[int]] = [[]] * len(prompts)
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    was_training = model.training
    model.eval()  # in training mode activation checkpointing would switch the key-value cache off
    bar = tqdm(total=len(prompts), desc=progress, leave=False, disable=not progress)
    with model.acting("policy") as lm, bar:
        for chunk in (order[i : i + batch_size] for i in range(0, len(order), batch_size)):
            drawn = noise[chunk].to(device)

            def choose(logits: Tensor, rows: Tensor, step: int, drawn: Tensor = drawn) -> Tensor:
                return inverse_cdf(logits, drawn[rows, step], temperature)

            batch = pad_left([prompts[i] for i in chunk], pad_id, device)
            for i, response in zip(
                chunk, decode(lm, **batch, choose=choose, stop_ids=stop_ids, length=length), strict=True
            ):
                responses[i] = response
            bar.update(len(chunk))
    model.train(was_training)
    return responses


def pad_left(prompts: list[list[int]], pad_id: int, device: torch.device) -> dict[str, Tensor]:
    width = max(map(len, prompts))
    ids = torch.tensor([[pad_id] * (width - len(p)) + p for p in prompts], device=device)
    mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts], device=device)
    return {"input_ids": ids, "attention_mask": mask}


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
    batch = pad_left(prompts, pad_id, device)
    ids = torch.tensor([r + [pad_id] * (width - len(r)) for r in responses], device=device)
    mask = torch.tensor([[True] * len(r) + [False] * (width - len(r)) for r in responses], device=device)
    return MicroBatch(
        rows=rows,
        input_ids=torch.cat((batch["input_ids"], ids), dim=1),
        attention_mask=torch.cat((batch["attention_mask"], mask.long()), dim=1),
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
        order = torch.randperm(len(self.minibatches), generator=random_generator("order", seed, self.index, epoch))
        return self.minibatches[order[step]][micro_step]


def split(lengths: list[int], num_mini_batches: int, micro_batch_size: int) -> list[list[list[int]]]:
    """Episodes -> minibatches -> micro-batches, sorted by length within each minibatch so that little is padding.

    Not across minibatches: one of only short responses would be a biased step.
    """
    minibatches = []
    for m in range(num_mini_batches):
        rows = sorted(range(m, len(lengths), num_mini_batches), key=lambda i: lengths[i])
        minibatches.append([rows[i : i + micro_batch_size] for i in range(0, len(rows), micro_batch_size)])
    return minibatches
