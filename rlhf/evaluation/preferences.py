"""Who answers better: win rates, mean gold scores and the axes of the paper's Table 3, overall and by category.

A row is one judged answer, a line of completions.jsonl:
`prompt_id` (position in the evaluation set), `key` (equal for equal prompts: the cluster), `category`, `prompt`, `arm`,
`response`, `ended`, `tokens`, `reward` (None without a reward model), `gold` (None without a gold judge), and for PPO's
samples `kl`. An arm is a model and its decoding: `sft` samples at temperature 1, `sft_greedy` decodes greedily,
`sft_best` is the best of n samples of `sft` by the reward model.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from rlhf.statistics import Estimate, cluster_difference, cluster_mean, cluster_share, share_difference, win_rate

Row = dict[str, Any]
Score = Callable[[Row], float | None]

NAMES = {"base": "Base", "sft": "SFT", "sft_best": "SFT, best of n", "ppo": "RLHF"}  # for readers
MODELS = tuple(NAMES)
ARMS = (*MODELS, *(f"{model}_greedy" for model in MODELS if model != "sft_best"))


@dataclass(frozen=True)
class Axis:
    """One boolean of the gold judge.

    Attributes:
        label: what it says of an answer; wanted: whether that is good; fault: what is wrong where it is not good.
    """

    label: str
    wanted: bool
    fault: str


# Table 3 of the paper in miniature.
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
    """One of the gold judge's verdicts as a number: `overall` in [0, 1], `likert` 1..7, or an axis as 0 or 1.

    None where it does not apply: no constraint was asked for, or there is no gold judge.
    """

    def score(row: Row) -> float | None:
        verdict = row["gold"].get(name) if row["gold"] else None
        return None if verdict is None else float(verdict)

    return score


def reward(row: Row) -> float | None:
    """The reward model's calibrated score."""
    return row["reward"]


def arms_of(rows: Iterable[Row]) -> list[str]:
    """The arms that were evaluated, in the order of ARMS."""
    present = {row["arm"] for row in rows}
    return [arm for arm in ARMS if arm in present]


def mean_score(rows: list[Row], arm: str, score: Score) -> Estimate | None:
    """Returns the mean of `score` over the answers of one arm; None if it applies to none of them."""
    return _mean(rows, arm, score, cluster_mean)


def share(rows: list[Row], arm: str, score: Score) -> Estimate | None:
    """Returns the mean of a score of 0 and 1, as `mean_score` does, with the interval of a share."""
    return _mean(rows, arm, score, cluster_share)


def _mean(rows: list[Row], arm: str, score: Score, statistic: Callable[..., Estimate]) -> Estimate | None:
    scored = [(value, row["key"]) for row in rows if row["arm"] == arm and (value := score(row)) is not None]
    return statistic(*zip(*scored, strict=True)) if scored else None


def paired(rows: list[Row], a: str, b: str, score: Score) -> tuple[list[float], list[float], list[str]]:
    """Scores of arms `a` and `b` on the prompts that both answered, and the prompts' keys."""
    other = {row["prompt_id"]: score(row) for row in rows if row["arm"] == b}
    pairs = [
        (value, other[row["prompt_id"]], row["key"])
        for row in rows
        if row["arm"] == a and (value := score(row)) is not None and other.get(row["prompt_id"]) is not None
    ]
    return tuple(map(list, zip(*pairs, strict=True))) if pairs else ([], [], [])


def compare(rows: list[Row], a: str, b: str, score: Score) -> Estimate | None:
    """Win rate of arm `a` over arm `b` on the same prompts; None if they share none."""
    scores_a, scores_b, keys = paired(rows, a, b, score)
    return win_rate(scores_a, scores_b, keys) if keys else None


def gain(rows: list[Row], a: str, b: str, score: Score) -> Estimate | None:
    """Mean of `score` of arm `a` minus that of arm `b` on the same prompts; None if they share none."""
    scores_a, scores_b, keys = paired(rows, a, b, score)
    return cluster_difference(scores_a, scores_b, keys) if keys else None


def share_gain(rows: list[Row], a: str, b: str, score: Score) -> Estimate | None:
    """Returns the difference of two means of a score of 0 and 1, as `gain` does, with the interval of shares."""
    scores_a, scores_b, keys = paired(rows, a, b, score)
    return share_difference(scores_a, scores_b, keys, keys) if keys else None


def agreement(rows: list[Row], a: str, b: str) -> Estimate | None:
    """How often the reward model prefers, of the two arms' answers to a prompt, the one that gold prefers.

    Gold's ties are left out, as in the accuracy on labelers' pairs; a tie of the reward model counts half. With `a` and
    `b` two decodings of the SFT model it is the accuracy on the distribution in which PPO starts.
    """
    gold_a, gold_b, keys = paired(rows, a, b, gold("overall"))
    reward_a, reward_b, reward_keys = paired(rows, a, b, reward)
    if keys != reward_keys:
        return None
    decided = [
        (sign * x, sign * y, key)
        for g, h, x, y, key in zip(gold_a, gold_b, reward_a, reward_b, keys, strict=True)
        if (sign := (g > h) - (g < h))
    ]
    return win_rate(*zip(*decided, strict=True)) if decided else None


def by_category(rows: list[Row]) -> dict[str, list[Row]]:
    """The rows of each category, the largest category first."""
    groups: dict[str, list[Row]] = {}
    for row in rows:
        groups.setdefault(row["category"] or "all", []).append(row)
    return dict(sorted(groups.items(), key=lambda item: (-len(item[1]), item[0])))


def showcase(rows: list[Row], count: int = 12) -> list[int]:
    """`prompt_id`s of the prompts shown side by side: the first of each category, then the second of each, and so on.

    They follow from the prompts alone, so no answer can have been picked because it looks good.
    """
    queues: dict[str, list[int]] = {}
    for prompt_id, category in sorted({(row["prompt_id"], row["category"] or "all") for row in rows}):
        queues.setdefault(category, []).append(prompt_id)
    order = sorted(queues, key=lambda category: (-len(queues[category]), category))
    depth = max(map(len, queues.values()), default=0)
    chosen = [queues[category][i] for i in range(depth) for category in order if i < len(queues[category])]
    return chosen[:count]
