"""Completions of a model, their log-probabilities and rewards, all on the token ids as sampled.

In a launch of several processes, all of them must call each function. Each process computes its share of the rows, and
every process gets all results.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from transformers import PreTrainedTokenizerBase
from trl.trainer.utils import selective_log_softmax

from rlhf.errors import InputError
from rlhf.generation.random_numbers import sampling_uniforms
from rlhf.generation.sampler import sample, stop_tokens
from rlhf.models.chat_template import answer_text
from rlhf.models.loading import context_length
from rlhf.models.positions import forward_inputs
from rlhf.models.shared_base import SharedBase
from rlhf.runs.artifacts import is_first_process
from rlhf.runs.processes import map_across_processes
from rlhf.tensors import PADDING_ID, length_batches, pad_left

LOGIT_TOKENS = 4096  # positions whose logits over the vocabulary are in memory at a time


@dataclass(frozen=True)
class Completion:
    """One answer.

    Attributes:
        ids: token ids as sampled, with the stop token if there is one.
        text: decoded without special tokens, stripped.
        ended: True if a stop token came within `max_new_tokens`.
    """

    ids: list[int]
    text: str
    ended: bool


@torch.no_grad()
def sample_completions(
    shared: SharedBase,
    adapter: str | None,
    prompt_ids: Sequence[list[int]],
    tokenizer: PreTrainedTokenizerBase,
    *,
    max_new_tokens: int,
    temperature: float = 1.0,
    seed: int = 0,
    batch_size: int = 64,
    description: str | None = None,
    progress: bool = True,
    numbers: Sequence[int] | None = None,
) -> list[Completion]:
    """Samples one answer to each prompt, in the order of the prompts. Only the temperature shapes the distribution.

    The same seed and prompts give the same answers on the same machine.

    Args:
        adapter: name of the adapter that answers; None is the bare base.
        prompt_ids: of `rlhf.data.encode.encode_prompt`.
        temperature: 0 is greedy decoding.
        description: label of the progress bar.
        progress: False hides the progress bar.
        numbers: number of each prompt, which alone decides on its random numbers; None counts from 0.

    Raises:
        InputError: a prompt and `max_new_tokens` do not fit into the model's context.
    """
    check_context(shared, prompt_ids, max_new_tokens)
    stop_ids = stop_tokens(shared.lm, tokenizer)
    numbers = list(range(len(prompt_ids))) if numbers is None else list(numbers)
    uniforms = sampling_uniforms(max(numbers, default=-1) + 1, max_new_tokens, "completions", seed)[numbers]

    def sample_rows(rows: list[int]) -> list[list[int]]:
        with shared.use(adapter):
            return sample(
                shared.lm,
                [prompt_ids[i] for i in rows],
                uniforms[rows],
                temperature=temperature,
                stop_ids=stop_ids,
                pad_id=PADDING_ID,
                batch_size=batch_size,
                progress=(description or "sampling") if progress and is_first_process() else None,
            )

    responses = map_across_processes(len(prompt_ids), sample_rows)
    return [
        Completion(ids, answer_text(tokenizer, prompt, ids).strip(), ids[-1] in stop_ids)
        for prompt, ids in zip(prompt_ids, responses, strict=True)
    ]


@torch.no_grad()
def completion_logprobs(
    shared: SharedBase,
    adapter: str | None,
    prompt_ids: Sequence[list[int]],
    completion_ids: Sequence[list[int]],
    temperature: float = 1.0,
) -> list[float]:
    """Returns log pi(completion | prompt) at a temperature for each pair: the sum over the completion's tokens.

    Logits are computed for completions only, in batches of at most LOGIT_TOKENS positions.
    """
    lengths = [len(ids) for ids in completion_ids]

    def sum_rows(rows: list[int]) -> list[float]:
        sums = {}
        for batch in length_batches(lengths, max(1, LOGIT_TOKENS // (max(lengths, default=0) + 1)), rows):
            # Padding is on the left, so that the completions are the last positions, as logits_to_keep needs.
            ids, mask = pad_left(
                [prompt_ids[i] + completion_ids[i] for i in batch], PADDING_ID, shared.device
            )  # [B, T]
            longest = max(lengths[i] for i in batch)  # C
            inputs = forward_inputs(shared.lm, ids, mask)
            with shared.use(adapter):
                logits = shared.lm(**inputs, logits_to_keep=longest + 1).logits[:, :-1]
            logprobs = selective_log_softmax(logits.float() / temperature, ids[:, ids.shape[1] - longest :])  # [B, C]
            sums |= {i: row[longest - lengths[i] :].sum().item() for i, row in zip(batch, logprobs, strict=True)}
        return [sums[i] for i in rows]

    return map_across_processes(len(prompt_ids), sum_rows)


@torch.no_grad()
def completion_rewards(
    shared: SharedBase,
    adapter: str,
    prompt_ids: Sequence[list[int]],
    completion_ids: Sequence[list[int]],
    batch_size: int = 64,
) -> list[float]:
    """Returns the calibrated score of the reward adapter at the last token of each completion."""
    sequences = [prompt + completion for prompt, completion in zip(prompt_ids, completion_ids, strict=True)]

    def score_rows(rows: list[int]) -> list[float]:
        scores = {}
        for batch in length_batches([len(ids) for ids in sequences], batch_size, rows):
            ids, mask = pad_left([sequences[i] for i in batch], PADDING_ID, shared.device)
            last = shared.token_scores(adapter, ids, mask)[:, -1]  # [B]
            scores |= dict(zip(batch, last.tolist(), strict=True))
        return [scores[i] for i in rows]

    return map_across_processes(len(prompt_ids), score_rows)


def check_context(shared: SharedBase, prompt_ids: Sequence[list[int]], max_new_tokens: int) -> None:
    """Checks that prompts leave room for an answer.

    Raises:
        InputError: the longest prompt and `max_new_tokens` exceed the model's context.
    """
    context = context_length(shared.config)
    longest = max(range(len(prompt_ids)), key=lambda i: len(prompt_ids[i]), default=None)
    if context is None or longest is None or len(prompt_ids[longest]) + max_new_tokens <= context:
        return
    raise InputError(
        f"Prompt {longest} has {len(prompt_ids[longest])} tokens, and with max_new_tokens {max_new_tokens} exceeds the "
        f"model's context of {context}. Lower max_new_tokens or remove long prompts."
    )
