"""What alignment costs: language modelling of held-out text and few-shot tasks (the "alignment tax", section 4.2)."""

from collections import defaultdict
from collections.abc import Sequence

import torch
from transformers import PreTrainedTokenizerBase

from rlhf.generation.completions import completion_logprobs, sample_completions
from rlhf.models.shared_base import SharedBase
from rlhf.statistics import Estimate, cluster_mean, cluster_share


@torch.no_grad()
def text_loss(
    shared: SharedBase, adapter: str | None, tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]
) -> Estimate:
    """Mean negative log-likelihood in nats per token of held-out documents, each read from its first token to EOS.

    Args:
        adapter: None is the bare base.
        texts: no longer than the model's context. The first token of each is given and not predicted.
    """
    ids = [[*tokenizer(text)["input_ids"], tokenizer.eos_token_id] for text in texts]
    logprobs = completion_logprobs(shared, adapter, [row[:1] for row in ids], [row[1:] for row in ids])
    lengths = [len(row) - 1 for row in ids]
    values = [-logprob / length for logprob, length in zip(logprobs, lengths, strict=True)]
    return _token_mean(values, lengths)


def _token_mean(values: Sequence[float], weights: Sequence[int]) -> Estimate:
    """Returns the mean over tokens, with an interval that counts documents."""
    repeated = [value for value, weight in zip(values, weights, strict=True) for _ in range(weight)]
    documents = [number for number, weight in enumerate(weights) for _ in range(weight)]
    return cluster_mean(repeated, documents)


def few_shot_accuracy(
    shared: SharedBase,
    adapter: str | None,
    tokenizer: PreTrainedTokenizerBase,
    items: Sequence[tuple[str, str, str]],
    batch_size: int = 128,
) -> dict[str, Estimate]:
    """Share of (task, prompt, answer) whose greedy continuation begins with the answer: each task's, and `all`."""
    prompts = [tokenizer(prompt)["input_ids"] for _, prompt, _ in items]
    longest = max(len(tokenizer(" " + answer)["input_ids"]) for _, _, answer in items)
    completions = sample_completions(
        shared, adapter, prompts, tokenizer,
        max_new_tokens=longest, temperature=0.0, batch_size=batch_size, progress=False,
    )  # fmt: skip
    right: dict[str, list[float]] = defaultdict(list)
    for (task, _, answer), completion in zip(items, completions, strict=True):
        for name in (task, "all"):
            right[name].append(float(completion.text.startswith(answer)))
    return {name: cluster_share(values, range(len(values))) for name, values in right.items()}
