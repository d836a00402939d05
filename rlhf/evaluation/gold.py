"""The sandbox's truth, for evaluation alone: the gold judge, and what labelers can agree on at best."""

from collections.abc import Callable
from typing import Any

Judge = Callable[..., dict[str, Any]]  # (prompt, response, ended=...) -> "overall", "likert" and the axes of Table 3


def gold_judge(dataset_name: str) -> Judge | None:
    """The judge of the sandbox; None for all other data, whose truth nobody has."""
    if dataset_name != "sandbox":
        return None
    from rlhf.sandbox.judge import GoldJudge  # imported here so that evaluating real data does not load the sandbox

    return GoldJudge().score


def labeler_limits(dataset_name: str, seed: int = 0) -> dict[str, float | None]:
    """`labeler_agreement` between two labelers; `attainable_accuracy` of one who knows the gold quality on the
    validation rankings of the training labelers, whose noise keeps it below 1.

    Both are None outside of the sandbox, where nobody has ranked the same answers twice.
    """
    if dataset_name != "sandbox":
        return {"labeler_agreement": None, "attainable_accuracy": None}
    from rlhf.sandbox import datasets, labelers

    rankings = datasets.comparisons("validation", seed=seed)
    rankings = rankings.filter(lambda group: group == "training", input_columns="labeler_group")
    return {
        "labeler_agreement": labelers.labeler_agreement(seed),
        "attainable_accuracy": labelers.attainable_accuracy(rankings),
    }
