"""Comparison of arms: win rates, mean gold scores and the axes of the paper's Table 3, overall and by category.

An arm is a model and its decoding: `sft` samples at the policy's temperature, `sft_greedy` decodes greedily, and
`sft_best` is the best of n samples of `sft` by the reward model. A row is one judged answer, and a line of
completions.jsonl:

    prompt_id   position in the evaluation set
    key         equal for equal prompts: the cluster of the intervals
    category    None without categories
    prompt      text, or messages
    arm         see above
    response    text of the answer
    ended       False if the answer was cut off at the length limit
    tokens      length of the answer
    rm_score    score of the reward model; None without one
    reward      the same as PPO counts it, with the term for a missing EOS
    gold        verdict of the gold judge; None without one
    kl          KL from SFT, in nats; samples of `ppo` only
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from rlhf.statistics import Estimate, cluster_difference, cluster_mean, cluster_share, share_difference, win_rate

AnswerRow = dict[str, Any]
Score = Callable[[AnswerRow], float | None]

NAMES = {"base": "Base", "sft": "SFT", "sft_best": "SFT, best of n", "ppo": "RLHF"}  # for readers
MODELS = tuple(NAMES)
ARMS = (*MODELS, *(f"{model}_greedy" for model in MODELS if model != "sft_best"))


@dataclass(frozen=True)
class Axis:
    """One boolean of the gold judge.

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


def gold(name: str) -> Score:
    """Returns the score that reads a verdict of the gold judge: `overall` in [0, 1], `likert` 1..7, or an axis, 0 or 1.

    The score is None without a gold judge, and for an axis that does not apply, such as a constraint that was not set.
    """

    def score(row: AnswerRow) -> float | None:
        verdict = row["gold"].get(name) if row["gold"] else None
        return None if verdict is None else float(verdict)

    return score


def reward(row: AnswerRow) -> float | None:
    """Returns the reward model's calibrated score, with the term for a missing EOS that PPO was trained with."""
    return row["reward"]


def rm_score(row: AnswerRow) -> float | None:
    """Returns the reward model's calibrated score alone."""
    return row.get("rm_score", row["reward"])


def arms_of(rows: Iterable[AnswerRow]) -> list[str]:
    """Returns the arms that were evaluated, in the order of ARMS."""
    present = {row["arm"] for row in rows}
    return [arm for arm in ARMS if arm in present]


def mean_score(rows: list[AnswerRow], arm: str, score: Score) -> Estimate | None:
    """Returns the mean of `score` over the answers of one arm; None if it applies to none of them."""
    return _mean(rows, arm, score, cluster_mean)


def share(rows: list[AnswerRow], arm: str, score: Score) -> Estimate | None:
    """Returns the mean of a score of 0 and 1, as `mean_score` does, with the interval of a share."""
    return _mean(rows, arm, score, cluster_share)


def _mean(rows: list[AnswerRow], arm: str, score: Score, statistic: Callable[..., Estimate]) -> Estimate | None:
    scored = [(value, row["key"]) for row in rows if row["arm"] == arm and (value := score(row)) is not None]
    return statistic(*zip(*scored, strict=True)) if scored else None


def paired(rows: list[AnswerRow], a: str, b: str, score: Score) -> tuple[list[float], list[float], list[str]]:
    """Returns the scores of arms `a` and `b` on the prompts that both answered, and the keys of the prompts."""
    other = {row["prompt_id"]: value for row in rows if row["arm"] == b and (value := score(row)) is not None}
    pairs = [
        (value, other[row["prompt_id"]], row["key"])
        for row in rows
        if row["arm"] == a and row["prompt_id"] in other and (value := score(row)) is not None
    ]
    return [x for x, _, _ in pairs], [y for _, y, _ in pairs], [key for _, _, key in pairs]


def compare(rows: list[AnswerRow], a: str, b: str, score: Score) -> Estimate | None:
    """Returns the win rate of arm `a` over arm `b` on the same prompts; None if they share none."""
    scores_a, scores_b, keys = paired(rows, a, b, score)
    return win_rate(scores_a, scores_b, keys) if keys else None


def gain(rows: list[AnswerRow], a: str, b: str, score: Score) -> Estimate | None:
    """Returns the mean of `score` of arm `a` minus that of arm `b` on the same prompts; None if they share none."""
    scores_a, scores_b, keys = paired(rows, a, b, score)
    return cluster_difference(scores_a, scores_b, keys) if keys else None


def share_gain(rows: list[AnswerRow], a: str, b: str, score: Score) -> Estimate | None:
    """Returns the difference of two means of a score of 0 and 1, as `gain` does, with the interval of shares."""
    scores_a, scores_b, keys = paired(rows, a, b, score)
    return share_difference(scores_a, scores_b, keys, keys) if keys else None


def gold_accuracy(rows: list[AnswerRow], a: str, b: str) -> Estimate | None:
    """Returns how often the reward model prefers the same one of two arms' answers as gold; None if nothing is decided.

    Gold's ties are left out, as in the accuracy on labelers' pairs. A tie of the reward model counts half. With two
    decodings of the SFT model as arms, this is the accuracy on the distribution from which PPO starts.
    """
    gold_a, gold_b, keys = paired(rows, a, b, gold("overall"))
    reward_a, reward_b, reward_keys = paired(rows, a, b, rm_score)
    if keys != reward_keys:
        return None
    decided = [
        (sign * x, sign * y, key)
        for g, h, x, y, key in zip(gold_a, gold_b, reward_a, reward_b, keys, strict=True)
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
