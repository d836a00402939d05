"""What a model answers, and how probable its answers are: batches sorted by length, ids kept as sampled."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch.nn.utils.rnn import pad_sequence
from tqdm.auto import tqdm
from transformers import GenerationConfig, PreTrainedTokenizerBase
from trl.trainer.utils import selective_log_softmax

from rlhf.adapters import SharedBase
from rlhf.errors import InputError
from rlhf.models import context_length

LOGIT_TOKENS = 4096  # response positions whose logits over the vocabulary exist at one time


@dataclass(frozen=True)
class Completion:
    """One answer.

    Attributes:
        ids: token ids as sampled, with the end-of-text token if the answer came to its end.
        text: decoded without special tokens, stripped.
        ended: whether it came to its end before `max_new_tokens`.
    """

    ids: list[int]
    text: str
    ended: bool


def stop_ids(shared: SharedBase, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Every id that ends an answer: the tokenizer's EOS and those of the model's own generation config."""
    own = getattr(shared.generation_config, "eos_token_id", None)
    own = own if isinstance(own, list) else [own]
    return sorted({tokenizer.eos_token_id, *own} - {None})


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
) -> list[Completion]:
    """One answer to each prompt, in the order of the prompts; nothing but temperature shapes the distribution.

    The same seed, prompts and batch size give the same answers on the same machine.

    Args:
        adapter: name of the adapter that answers; None is the bare base.
        prompt_ids: of `rlhf.data.encode.encode_prompt`.
        temperature: 0 is greedy decoding.
        description: label of the progress bar, which `progress` switches off.

    Raises:
        InputError: a prompt and `max_new_tokens` do not fit into the model's context.
    """
    check_context(shared, prompt_ids, max_new_tokens)
    config = GenerationConfig(
        max_new_tokens=max_new_tokens,
        do_sample=temperature > 0,
        temperature=temperature or None,
        top_k=0 if temperature > 0 else None,
        eos_token_id=stop_ids(shared, tokenizer),
        pad_token_id=tokenizer.pad_token_id,
    )
    completions: list[Completion | None] = [None] * len(prompt_ids)
    devices = [shared.device] if shared.device.type == "cuda" else []
    # Longest first: a prompt length that does not fit into memory shows at once.
    batches = list(length_batches([-len(ids) for ids in prompt_ids], batch_size))
    with (
        plain_generation(shared),
        torch.random.fork_rng(devices),
        tqdm(total=len(prompt_ids), desc=description, unit="answer", disable=not progress) as bar,
    ):
        torch.manual_seed(seed)
        for batch in batches:
            ids, mask = pad_left([prompt_ids[i] for i in batch], tokenizer.pad_token_id, shared.device)
            output = shared.generate(adapter, input_ids=ids, attention_mask=mask, generation_config=config)
            for i, row in zip(batch, output[:, ids.shape[1] :].tolist(), strict=True):
                completions[i] = _completion(row, set(config.eos_token_id), tokenizer)
            bar.update(len(batch))
    return completions


@torch.no_grad()
def completion_logprobs(
    shared: SharedBase, adapter: str | None, prompt_ids: Sequence[list[int]], completion_ids: Sequence[list[int]]
) -> list[float]:
    """Sum over the answer's tokens of log pi(token | what came before), at temperature 1, for each prompt and answer.

    Only the logits of answers are computed, in batches of at most LOGIT_TOKENS positions.
    """
    sums = [0.0] * len(prompt_ids)
    lengths = [len(ids) for ids in completion_ids]
    for batch in length_batches(lengths, max(1, LOGIT_TOKENS // (max(lengths, default=0) + 1))):
        # Left-padded, so that the answers are the last positions of the rows and logits_to_keep can cut there.
        sequences = [prompt_ids[i] + completion_ids[i] for i in batch]
        ids, mask = pad_left(sequences, 0, shared.device)  # [B, T]
        longest = max(lengths[i] for i in batch)  # C
        logits = shared.logits(adapter, ids, mask, logits_to_keep=longest + 1)[:, :-1]
        logprobs = selective_log_softmax(logits.float(), ids[:, ids.shape[1] - longest :])  # [B, C]
        for i, row in zip(batch, logprobs, strict=True):
            sums[i] = row[longest - lengths[i] :].sum().item()
    return sums


@torch.no_grad()
def completion_rewards(
    shared: SharedBase,
    adapter: str,
    prompt_ids: Sequence[list[int]],
    completion_ids: Sequence[list[int]],
    batch_size: int = 64,
) -> list[float]:
    """The calibrated score of the reward adapter at the last token of each answer, on the ids as sampled."""
    scores = [0.0] * len(prompt_ids)
    sequences = [prompt + completion for prompt, completion in zip(prompt_ids, completion_ids, strict=True)]
    for batch in length_batches([len(ids) for ids in sequences], batch_size):
        ids, mask = pad_left([sequences[i] for i in batch], 0, shared.device)
        last = shared.scalars(adapter, ids, mask)[:, -1]  # [B]
        for i, score in zip(batch, last.tolist(), strict=True):
            scores[i] = score
    return scores


@contextmanager
def plain_generation(shared: SharedBase) -> Iterator[None]:
    """Sets the model's own generation config aside: `generate` fills every gap in ours from it (penalties, top-p)."""
    own, shared.lm.generation_config = shared.lm.generation_config, GenerationConfig()
    try:
        yield
    finally:
        shared.lm.generation_config = own


def check_context(shared: SharedBase, prompt_ids: Sequence[list[int]], max_new_tokens: int) -> None:
    """Refuses prompts that leave no room for the answer."""
    context = context_length(shared.config)
    longest = max(range(len(prompt_ids)), key=lambda i: len(prompt_ids[i]), default=None)
    if context is None or longest is None or len(prompt_ids[longest]) + max_new_tokens <= context:
        return
    raise InputError(
        f"prompt {longest} has {len(prompt_ids[longest])} tokens, which with max_new_tokens {max_new_tokens} exceeds "
        f"the model's context of {context}; lower max_new_tokens or leave such prompts out."
    )


def length_batches(lengths: Sequence[int], batch_size: int) -> Iterator[list[int]]:
    """Positions in batches of similar length, shortest first; equal lengths keep their order."""
    order = sorted(range(len(lengths)), key=lengths.__getitem__)
    for start in range(0, len(order), batch_size):
        yield order[start : start + batch_size]


def pad_left(sequences: list[list[int]], pad_id: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids and attention mask, both [B, T] int64; rows end at the last column."""
    rows = [torch.tensor(ids) for ids in sequences]
    ids = pad_sequence(rows, batch_first=True, padding_value=pad_id, padding_side="left")
    mask = pad_sequence([torch.ones_like(row) for row in rows], batch_first=True, padding_side="left")
    return ids.to(device), mask.to(device)


def _completion(row: list[int], eos: set[int], tokenizer: PreTrainedTokenizerBase) -> Completion:
    """Cuts a generated row after its first end-of-text token; what follows is padding."""
    end = next((i for i, token in enumerate(row) if token in eos), None)
    ids = row if end is None else row[: end + 1]
    return Completion(ids, tokenizer.decode(ids, skip_special_tokens=True).strip(), end is not None)
