"""Gold judge of the sandbox, for evaluation only, and the upper limits that the labelers' noise sets."""

from collections.abc import Callable
from typing import Any

Judge = Callable[..., dict[str, Any]]  # (prompt, response, ended=...) -> overall, likert and the axes of Table 3


def gold_judge(dataset_name: str) -> Judge | None:
    """Returns the judge of the sandbox; None for other data, whose true quality is unknown."""
    if dataset_name != "sandbox":
        return None
    from rlhf.sandbox.judge import GoldJudge  # real data does not need the sandbox

    return GoldJudge().score


def labeler_limits(dataset_name: str, seed: int = 0) -> dict[str, float | None]:
    """Returns the limits of accuracy on the sandbox's rankings; for other data both are None.

    Returns:
        `labeler_agreement`: agreement between two labelers on the same pairs. `attainable_accuracy`: accuracy of an
        oracle of the gold quality on the validation rankings of the training labelers, whose noise keeps it below 1.
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
