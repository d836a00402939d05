"""Alignment tax (section 4.2): public NLP tasks, loss on held-out text, few-shot tasks of the sandbox."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedTokenizerBase

from rlhf.data.encode import encode_document, encode_prompt
from rlhf.evaluation.benchmark import Task, TaskArguments
from rlhf.evaluation.harness import harness_task, load_tasks, require_lm_eval
from rlhf.evaluation.published_data import read_published
from rlhf.generation.completions import completion_logprobs, sample_completions
from rlhf.models.shared_base import SharedBase
from rlhf.runs.digests import json_digest
from rlhf.statistics import Estimate, cluster_mean, cluster_share

# Figures 28 and 29 of the paper. lm-eval has the first five, rlhf/evaluation/tasks the others.
TASKS = ("drop", "hellaswag", "rte", "sst2", "wsc", "quac", "squadv2", "wmt15_fr-en", "cnn_dailymail", "tldr")
PASSAGES = ("passage", "context")  # columns of a text with several questions, which are alike


def prepare_regressions(args: TaskArguments) -> list[Task]:
    """Prepares one of TASKS, or any task, group or tag of lm-eval.

    Raises:
        InputError: the data cannot be had, or a group is to read local files.
    """
    require_lm_eval()
    rows, digest = read_published(args.name, args.data) if args.data else (None, None)
    tasks = load_tasks(args.name, rows, args.num_fewshot)
    names = [str(task.get_config("task")) if len(tasks) > 1 else args.name for task in tasks]
    return [
        harness_task(replace(args, name=name), task, digest, cluster=_cluster)
        for name, task in zip(names, tasks, strict=True)
    ]


def _cluster(number: int, item: Any) -> str | int:
    """Returns the passage that an item asks about, shortened; without one, each item is a cluster."""
    passage = next((str(item[column]) for column in PASSAGES if item.get(column)), None)
    return number if passage is None else json_digest(passage)


@torch.no_grad()
def text_loss(
    shared: SharedBase, adapter: str | None, tokenizer: PreTrainedTokenizerBase, texts: Sequence[str | Sequence[str]]
) -> Estimate:
    """Returns the mean negative log-likelihood of held-out documents in nats per token, up to and including EOS.

    Args:
        adapter: name of the adapter; None is the base.
        texts: documents, or lists of documents that follow one another, no longer than the model's context. The first
            token of each is given, not predicted.
    """
    ids = [encode_document(tokenizer, text) for text in texts]
    logprobs = completion_logprobs(shared, adapter, [row[:1] for row in ids], [row[1:] for row in ids])
    lengths = [len(row) - 1 for row in ids]
    token_losses = [-logprob / length for logprob, length in zip(logprobs, lengths, strict=True)]
    # Each document is a cluster. Its mean replaces the loss of each token, because only sums over clusters matter.
    return cluster_mean(np.repeat(token_losses, lengths), np.repeat(np.arange(len(lengths)), lengths))


def few_shot_accuracy(
    shared: SharedBase,
    adapter: str | None,
    tokenizer: PreTrainedTokenizerBase,
    items: Sequence[tuple[str, str, str]],
    batch_size: int = 128,
) -> dict[str, Estimate]:
    """Returns the share of items whose greedy continuation starts with the answer, for each task and for `all`.

    Args:
        adapter: name of the adapter; None is the base.
        items: (task, prompt, answer) each.
    """
    prompts = [encode_prompt(tokenizer, prompt) for _, prompt, _ in items]
    longest = max(len(tokenizer(" " + answer)["input_ids"]) for _, _, answer in items)
    completions = sample_completions(
        shared, adapter, prompts, tokenizer,
        max_new_tokens=longest, temperature=0.0, batch_size=batch_size, progress=False,
    )  # fmt: skip
    correct: dict[str, list[float]] = defaultdict(list)
    for (task, _, answer), completion in zip(items, completions, strict=True):
        for name in (task, "all"):
            correct[name].append(float(completion.text.startswith(answer)))
    return {name: cluster_share(values, range(len(values))) for name, values in correct.items()}
