"""Comparison of systems on the same prompts: means, shares, win rates and gains by the verdicts of one judge.

A system is a model and its decoding: `sft` samples at the policy's temperature, `sft_greedy` decodes greedily, and
`sft_best` is the best of n samples of `sft` by a reward model. A row is one answer, and a line of completions.jsonl:

    prompt_id   position in the evaluation set
    key         equal for equal prompts: the cluster of the intervals
    category    None without categories
    prompt      text, or messages
    system      see above
    response    text of the answer
    ended       False if the answer was cut off at the length limit
    tokens      length of the answer; None if nobody counted
    kl          KL from SFT, in nats; None where it is not measured

and after judging, with a key for each judge:

    scores      {judge: score, higher is better; None: not judged}
    likert      {judge: 1 to 7, or None}
    flags       {judge: {flag: True, False, or None where it does not apply}}
    preferences {judge of pairs: 1 if the answer is better than the baseline's, 0.5 for a tie, 0; None: not judged}
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from rlhf.statistics import Estimate, cluster_difference, cluster_mean, cluster_share, share_difference, win_rate

AnswerRow = dict[str, Any]
Score = Callable[[AnswerRow], float | None]


@dataclass(frozen=True)
class Axis:
    """One flag of a judge.

    Attributes:
        label: name of the property, for tables.
        wanted: True if good answers have it.
        fault: name of the fault, for answers that have it and should not, or the reverse.
    """

    label: str
    wanted: bool
    fault: str


# After Table 3 of the paper.
AXES = {
    "follows_instruction": Axis("follows the instruction", True, "misses the instruction"),
    "satisfies_constraint": Axis("satisfies the constraint", True, "breaks the constraint"),
    "complete": Axis("is complete", True, "incomplete"),
    "hallucination": Axis("makes things up", False, "made up"),
    "rude": Axis("is rude", False, "rude"),
    "harmful": Axis("helps to do harm", False, "harmful"),
    "padded": Axis("is padded", False, "padded"),
    "repeats": Axis("repeats itself", False, "repeats itself"),
}


def score_of(judge: str) -> Score:
    """Returns the score that reads the verdict of a judge; None where it has not judged."""
    return lambda row: row["scores"].get(judge)


def likert_of(judge: str) -> Score:
    """Returns the score that reads a judge's Likert rating, 1 to 7."""
    return lambda row: row["likert"].get(judge)


def flag_of(judge: str, flag: str) -> Score:
    """Returns the score that is 1 if a judge has raised the flag, else 0; None where the flag does not apply."""

    def score(row: AnswerRow) -> float | None:
        value = (row["flags"].get(judge) or {}).get(flag)
        return None if value is None else float(value)

    return score


def systems_of(rows: Iterable[AnswerRow]) -> list[str]:
    """Returns the systems that have answered, in the order of their first rows."""
    return list(dict.fromkeys(row["system"] for row in rows))


def mean_score(rows: list[AnswerRow], system: str, score: Score) -> Estimate | None:
    """Returns the mean of `score` over the answers of one system; None if it applies to none of them."""
    return _mean(rows, system, score, cluster_mean)


def share(rows: list[AnswerRow], system: str, score: Score) -> Estimate | None:
    """Returns the mean of a score of 0 and 1, as `mean_score` does, with the interval of a share."""
    return _mean(rows, system, score, cluster_share)


def _mean(rows: list[AnswerRow], system: str, score: Score, statistic: Callable[..., Estimate]) -> Estimate | None:
    scored = [(value, row["key"]) for row in rows if row["system"] == system and (value := score(row)) is not None]
    return statistic(*zip(*scored, strict=True)) if scored else None


def paired(rows: list[AnswerRow], a: str, b: str, score: Score) -> tuple[list[float], list[float], list[str]]:
    """Returns the scores of systems `a` and `b` on the prompts that both answered, and the keys of the prompts."""
    other = {row["prompt_id"]: value for row in rows if row["system"] == b and (value := score(row)) is not None}
    pairs = [
        (value, other[row["prompt_id"]], row["key"])
        for row in rows
        if row["system"] == a and row["prompt_id"] in other and (value := score(row)) is not None
    ]
    return [x for x, _, _ in pairs], [y for _, y, _ in pairs], [key for _, _, key in pairs]


def compare(rows: list[AnswerRow], a: str, b: str, score: Score) -> Estimate | None:
    """Returns the win rate of system `a` over system `b` on the same prompts; None if they share none."""
    scores_a, scores_b, keys = paired(rows, a, b, score)
    return win_rate(scores_a, scores_b, keys) if keys else None


def gain(rows: list[AnswerRow], a: str, b: str, score: Score) -> Estimate | None:
    """Returns the mean of `score` of `a` minus that of `b` on the same prompts; None if they share none."""
    scores_a, scores_b, keys = paired(rows, a, b, score)
    return cluster_difference(scores_a, scores_b, keys) if keys else None


def share_gain(rows: list[AnswerRow], a: str, b: str, score: Score) -> Estimate | None:
    """Returns the difference of two means of a score of 0 and 1, as `gain` does, with the interval of shares."""
    scores_a, scores_b, keys = paired(rows, a, b, score)
    return share_difference(scores_a, scores_b, keys, keys) if keys else None


def accuracy_by(rows: list[AnswerRow], a: str, b: str, judge: str, truth: str) -> Estimate | None:
    """Returns how often `judge` prefers the same one of two systems' answers as `truth`; None if nothing is decided.

    Ties of `truth` are left out, as in the accuracy on labelers' pairs. A tie of `judge` counts half. With two
    decodings of the SFT model as systems, this is the accuracy on the distribution from which PPO starts.
    """
    truth_a, truth_b, keys = paired(rows, a, b, score_of(truth))
    judge_a, judge_b, judge_keys = paired(rows, a, b, score_of(judge))
    if keys != judge_keys:
        return None
    decided = [
        (sign * x, sign * y, key)
        for g, h, x, y, key in zip(truth_a, truth_b, judge_a, judge_b, keys, strict=True)
        if (sign := (g > h) - (g < h))
    ]
    return win_rate(*zip(*decided, strict=True)) if decided else None


def by_category(rows: list[AnswerRow]) -> dict[str, list[AnswerRow]]:
    """Returns the rows of each category, the largest category first. Rows without a category are in `all`."""
    categories: dict[str, list[AnswerRow]] = {}
    for row in rows:
        categories.setdefault(row["category"] or "all", []).append(row)
    return dict(sorted(categories.items(), key=lambda item: (-len(item[1]), item[0])))


def showcase(rows: list[AnswerRow], count: int = 12) -> list[int]:
    """Returns the `prompt_id`s that the report shows: the first of each category, then the second of each, and so on.

    They depend on the prompts alone: no answer is picked because it looks good.
    """
    queues: dict[str, list[int]] = {}
    for prompt_id, category in sorted({(row["prompt_id"], row["category"] or "all") for row in rows}):
        queues.setdefault(category, []).append(prompt_id)
    order = sorted(queues, key=lambda category: (-len(queues[category]), category))
    depth = max(map(len, queues.values()), default=0)
    chosen = [queues[category][i] for i in range(depth) for category in order if i < len(queues[category])]
    return chosen[:count]
