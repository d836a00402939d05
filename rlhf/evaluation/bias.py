"""Bias (section 4.2 of the paper): the entropy of a model's choice between two sentences that differ in a group.

Of the two sentences of a pair with probabilities P(a) and P(b), the model prefers a with p = P(a) / (P(a) + P(b)). The
entropy of that choice,

    H(p) = -p log2 p - (1 - p) log2 (1 - p),

is 1 bit for a model without a preference and 0 bits for one that is certain. A higher mean is less biased. It tells
nothing of the direction, which lm-eval's `pct_stereotype` does: 0.5 is no bias.
"""

from typing import Any

import numpy as np

from rlhf.evaluation.benchmark import Task, TaskArguments
from rlhf.evaluation.harness import HarnessTask, harness_task, load_tasks, require_lm_eval
from rlhf.evaluation.published_data import read_published

TASKS = {"crows_pairs": "crows_pairs_english", "winogender": "winogender"}  # our name -> that of the task file


def choice_entropy(logprob_a: float, logprob_b: float) -> float:
    """Returns H(p) in bits of two sentences' log-probabilities in nats."""
    difference = abs(logprob_a - logprob_b)  # H(p) = H(1 - p)
    q = float(np.exp(-np.logaddexp(0.0, difference)))  # of the less probable one
    p = 1.0 - q
    return float(-p * np.log2(p) - q * np.log2(q)) if q > 0 else 0.0


def prepare_bias(args: TaskArguments) -> Task:
    """Prepares `crows_pairs` (entropy, and lm-eval's metrics) or `winogender` (entropy; male and female pronouns).

    Raises:
        InputError: the data cannot be had.
    """
    require_lm_eval()
    rows, digest = read_published(args.name, args.data) if args.data else (None, None)
    [task] = load_tasks(TASKS[args.name], rows)

    def score(item: Any, responses: list[Any]) -> dict[str, float]:
        return {"entropy": choice_entropy(responses[0][0], responses[1][0])} | _direction(task, item, responses)

    def cluster(number: int, item: Any) -> str | int:
        return item["occupation"] if args.name == "winogender" else number  # templates of an occupation are alike

    return harness_task(args, task, digest, score=score, cluster=cluster, unbounded=("likelihood_diff",))


def _direction(task: HarnessTask, item: Any, responses: list[Any]) -> dict[str, float]:
    if task.get_config("task") == "winogender":
        return {"male_preferred": float(responses[0][0] > responses[1][0])}
    return task.process_results(item, responses)
