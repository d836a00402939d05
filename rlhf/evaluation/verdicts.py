"""Two kinds of judges: those that score one answer, and those that prefer one of two.

Prompts are text or messages, and all lists of a call have one length. A judge loads its model when it is first asked
something new. Its verdicts are kept on disk by content, so a new system costs only the verdicts on its own answers.
"""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from tqdm.auto import tqdm

from rlhf.data.encode import Prompt, prompt_key
from rlhf.errors import InputError
from rlhf.evaluation.kept import KeptResults, content_key
from rlhf.runs.artifacts import is_first_process
from rlhf.runs.processes import map_across_processes

CHUNK = 256  # verdicts that a killed run loses at most


@dataclass(frozen=True)
class Verdict:
    """A judge's opinion of one answer.

    Attributes:
        score: higher is better.
        likert: overall quality from 1 to 7, as in section 3.6; None if the judge has no such scale.
        flags: the properties of the paper's Table 3; None for a property that does not apply to the prompt.
    """

    score: float
    likert: float | None = None
    flags: dict[str, bool | None] = field(default_factory=dict)


class ScoringJudge:
    """A judge of single answers. A subclass implements `judge`.

    Args:
        name: of the judge in tables and files.
        about: a sentence for the report.
        identity: JSON value that says on what else but the answer a verdict depends, such as a digest of the weights.
        folder: of the file `<name>.jsonl` with the verdicts. None keeps them in memory.
        optimized: True if a system was trained against this judge, or its answers were chosen by it.
    """

    def __init__(
        self,
        name: str,
        about: str,
        identity: object = None,
        folder: str | Path | None = None,
        optimized: bool = False,
    ):
        self.name, self.about, self.identity, self.optimized = name, about, identity, optimized
        self.kept = KeptResults(Path(folder) / f"{name}.jsonl" if folder else None)

    def judge(self, prompts: list[Prompt], responses: list[str], ended: list[bool]) -> list[Verdict | None]:
        """Returns a verdict for each answer; None for one that the judge cannot judge."""
        raise NotImplementedError

    def score(self, prompts: Sequence[Prompt], responses: Sequence[str], ended: Sequence[bool]) -> list[Verdict | None]:
        """Returns the verdicts on all answers; asks `judge` only for those that are new, and for equal ones once.

        All processes of a launch must call this; each judges a share.

        Args:
            ended: False for an answer that was cut off at the length limit.

        Raises:
            InputError: a score is not finite.
        """
        rows = list(zip(prompts, responses, map(bool, ended), strict=True))
        keys = [content_key(self.identity, prompt_key(prompt), *answer) for prompt, *answer in rows]
        new = list({key: i for i, key in enumerate(keys) if key not in self.kept}.values())
        hide = not new or not is_first_process()
        with tqdm(total=len(new), desc=f"judge {self.name}", unit="answer", leave=False, disable=hide or None) as bar:
            for start in range(0, len(new), CHUNK):
                chunk = new[start : start + CHUNK]
                verdicts = self._verdicts([rows[i] for i in chunk])
                for i, verdict in zip(chunk, verdicts, strict=True):
                    if verdict is not None and not math.isfinite(verdict.score):
                        raise InputError(
                            f"Judge {self.name} gave the score {verdict.score} to the answer {responses[i]!r:.60}. "
                            "Choose another judge, or load it in float32."
                        )
                    self.kept.add(keys[i], {"verdict": None if verdict is None else asdict(verdict)})
                bar.update(len(chunk))
        kept = [self.kept[key]["verdict"] for key in keys]
        return [None if values is None else Verdict(**values) for values in kept]

    def _verdicts(self, rows: list[tuple[Prompt, str, bool]]) -> list[Verdict | None]:
        def judge(numbers: list[int]) -> list[Verdict | None]:
            own = [rows[i] for i in numbers]
            return self.judge([row[0] for row in own], [row[1] for row in own], [row[2] for row in own])

        return map_across_processes(len(rows), judge)


class PairwiseJudge:
    """A judge of pairs of answers to one prompt. A subclass implements `prefer`.

    Args:
        name: of the judge in tables and files.
        about: a sentence for the report.
    """

    optimized = False

    def __init__(self, name: str, about: str):
        self.name, self.about = name, about

    def prefer(
        self, prompts: Sequence[Prompt], responses_a: Sequence[str], responses_b: Sequence[str]
    ) -> list[float | None]:
        """Returns 1.0 if a is better, 0.5 for a tie, 0.0 if b is better, or a mean of these; None if not judged.

        Called in the first process of a launch only.
        """
        raise NotImplementedError

    def consistency(
        self, prompts: Sequence[Prompt], responses_a: Sequence[str], responses_b: Sequence[str]
    ) -> list[float | None]:
        """Returns 1.0 for each pair judged alike in both orders, 0.0 if not; None if it was not judged in both.

        Asks nobody: it is known after `prefer`.
        """
        return [None] * len(prompts)


Judge = ScoringJudge | PairwiseJudge


def preference(a: Verdict | None, b: Verdict | None) -> float | None:
    """Returns 1.0 if a's score is higher, 0.5 for a tie, 0.0 if b's is higher; None if one of them is missing.

    Equal to nine decimals is a tie, since scores are sums of floats.
    """
    if a is None or b is None:
        return None
    difference = round(a.score - b.score, 9)
    return ((difference > 0) - (difference < 0) + 1) / 2
