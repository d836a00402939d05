"""Simulated labelers, who agree on most things, have their own tastes and are not always attentive.

A labeler ranks completions by the gold judge's quality with her own weights on the faults, plus noise. With this noise
two labelers agree on about 73 % of the pairs that neither ties, as in the paper (section 3.4: 72.6 +- 1.5 % among
training labelers, 77.3 +- 1.3 % among held-out ones).
"""

import random
from dataclasses import dataclass
from itertools import combinations, pairwise

from rlhf.sandbox.judge import judge
from rlhf.sandbox.responses import completions_to_rank
from rlhf.sandbox.tasks import Task, sample_task, task_of

NOISE = 0.23  # standard deviation of the noise on a quality in [0, 1]
TIE = 0.03  # completions whose qualities differ by less are tied


@dataclass(frozen=True)
class Labeler:
    """One person. A taste multiplies the quality of a completion with that fault; below 1, she minds the fault more."""

    name: str
    padded: float = 1.0
    rude: float = 1.0
    hallucination: float = 1.0


TRAINING = (
    Labeler("ann"),
    Labeler("ben", padded=0.8),
    Labeler("cleo", rude=0.7),
    Labeler("dan", padded=1.2, hallucination=0.8),
    Labeler("eve", rude=1.2, hallucination=0.7),
)
HELDOUT = (
    Labeler("fay", padded=0.7),
    Labeler("gus", rude=0.8, hallucination=0.8),
    Labeler("hal", padded=1.1, rude=0.7),
)


def team(group: str) -> tuple[Labeler, ...]:
    """Labelers of a group: "training", who rank for the reward model, or "heldout", who produce none of its data."""
    return {"training": TRAINING, "heldout": HELDOUT}[group]


def rank(labeler: Labeler, task: Task, completions: list[str], rng: random.Random, seed: int = 0) -> list[int]:
    """Ranks `completions`: 0 = best, equal = tie."""
    qualities = [_quality(labeler, task, completion, seed) + rng.gauss(0, NOISE) for completion in completions]
    ranks, place = [0] * len(qualities), 0
    order = sorted(range(len(qualities)), key=lambda i: -qualities[i])
    for better, worse in pairwise(order):
        place += qualities[better] - qualities[worse] >= TIE
        ranks[worse] = place
    return ranks


def _quality(labeler: Labeler, task: Task, completion: str, seed: int) -> float:
    verdict = judge(task, completion, seed=seed)
    quality = verdict["overall"]
    for fault in ("padded", "rude", "hallucination"):
        quality *= getattr(labeler, fault) if verdict[fault] else 1.0
    return min(quality, 1.0)


def labeler_agreement(seed: int = 0, size: int = 1000, group: str | None = None) -> float:
    """Share of the pairs tied by neither that two labelers (of `group`, or of both) order the same way."""
    rng = random.Random(f"agreement-{seed}")
    same = total = 0
    for _ in range(size):
        task = sample_task(rng, "train")
        completions = completions_to_rank(task, rng)
        people = team(group) if group else TRAINING + HELDOUT
        first, second = (rank(person, task, completions, rng) for person in rng.sample(people, 2))
        for i, j in combinations(range(len(completions)), 2):
            if first[i] != first[j] and second[i] != second[j]:
                total += 1
                same += (first[i] < first[j]) == (second[i] < second[j])
    return same / total


def attainable_accuracy(comparisons, seed: int = 0) -> float:
    """Accuracy of the gold quality on ranked `comparisons`, the best that the labelers' noise allows.

    Gold ties count half. Rows are those of `rlhf.sandbox.datasets.comparisons`.
    """
    right = total = 0.0
    for row in comparisons:
        task = task_of(row["prompt"][-1]["content"])
        assert task is not None, "not a row of the sandbox"
        gold = [judge(task, completion, seed=seed)["overall"] for completion in row["completions"]]
        for i, j in combinations(range(len(gold)), 2):
            if row["ranks"][i] != row["ranks"][j]:
                total += 1
                better, worse = (i, j) if row["ranks"][i] < row["ranks"][j] else (j, i)
                right += 0.5 if gold[i] == gold[j] else gold[better] > gold[worse]
    return right / total
