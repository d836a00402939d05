"""Gold judge of the sandbox, for evaluation only, and the upper limits that the labelers' noise sets."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from rlhf.data.encode import Prompt
from rlhf.evaluation.verdicts import ScoringJudge, Verdict
from rlhf.runs.digests import file_digest

Judge = Callable[..., dict[str, Any]]  # (prompt, response, ended=...) -> overall, likert and the axes of Table 3


def gold_judge(dataset_name: str) -> Judge | None:
    """Returns the judge of the sandbox; None for other data, whose true quality is unknown."""
    if dataset_name != "sandbox":
        return None
    from rlhf.sandbox.judge import GoldJudge  # real data does not need the sandbox

    return GoldJudge().score


class Gold(ScoringJudge):
    """The sandbox's judge, on the axes of the paper's Table 3.

    Args:
        name: of the judge.
        folder: of the file with the verdicts.
    """

    def __init__(self, name: str = "gold", folder: str | Path | None = None):
        from rlhf.sandbox import grammar, judge, tasks, world

        self.gold = judge.GoldJudge()
        sources = [file_digest(Path(str(module.__file__))) for module in (grammar, judge, tasks, world)]
        about = "The sandbox's gold judge, which knows the true quality of an answer; nothing was trained against it."
        super().__init__(name, about, sources, folder)

    def judge(self, prompts: list[Prompt], responses: list[str], ended: list[bool]) -> list[Verdict | None]:
        """Returns `overall` in [0, 1] as the score; None for a prompt that is not the sandbox's."""
        return [self._verdict(*row) for row in zip(prompts, responses, ended, strict=True)]

    def _verdict(self, prompt: Any, response: str, ended: bool) -> Verdict | None:
        try:
            gold = self.gold.score(prompt, response, ended=ended)
        except ValueError:
            return None
        flags = {name: value for name, value in gold.items() if value is None or isinstance(value, bool)}
        return Verdict(gold["overall"], gold["likert"], flags)


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
