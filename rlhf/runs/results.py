"""The number that stands for a finished stage in lists of runs, with its 95 % interval where the stage measured one."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rlhf.runs.system_names import GREEDY, label, rival


@dataclass(frozen=True)
class Result:
    """A number of a run.

    Attributes:
        name: what was measured, and on which data.
        mean: the number; a share is between 0 and 1.
        low, high: ends of the interval; None where the stage measured none.
        share: True for a share, which is written in percent.
        digits: decimals of its text.
    """

    name: str
    mean: float
    low: float | None = None
    high: float | None = None
    share: bool = False
    digits: int = 2

    def text(self) -> str:
        """Returns the number with its interval and name: `held-out reward 0.84 (0.81 to 0.87)`."""
        numbers = [f"{100 * x:.1f}" if self.share else f"{x:.{self.digits}f}" for x in self.ends()]
        unit = " %" if self.share else ""
        return f"{self.name} {numbers[0]}{unit}" + (f" ({numbers[1]} to {numbers[2]})" if len(numbers) == 3 else "")

    def ends(self) -> list[float]:
        """Returns mean, low and high, or the mean alone."""
        return [self.mean] if self.low is None or self.high is None else [self.mean, self.low, self.high]


def result_of(stage: str, result: Mapping[str, Any], summary: Mapping[str, Any] | None = None) -> Result | None:
    """Returns the number of a stage.

    Args:
        stage: "sft", "reward", "ppo", "pretrain" or "evaluate".
        result: its result.json.
        summary: summary.json of the run, if it was evaluated. Of a PPO run without an interval of its own, the mean
            reward of its answers in the evaluation is taken, which has one.
    """
    if stage == "evaluate":
        return _wins(summary or {})
    if stage == "reward" and _is_number(result.get("accuracy")):
        return Result("accuracy", result["accuracy"], result.get("low"), result.get("high"), share=True)
    if stage == "sft":
        return _chosen(result)
    if stage == "pretrain":
        return _mean(result, "validation_loss", "validation loss")
    if stage == "ppo":
        held_out = _mean(result, "eval_objective/score", "held-out reward")
        own = held_out or _mean(result, "objective/score", "reward in training")
        return own if own and own.low is not None else _evaluated_reward(summary or {}) or own
    return None


def judges_of(summary: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the judges of summary.json: first those that no system was trained to please."""
    return dict(sorted((summary.get("judges") or {}).items(), key=lambda item: bool(item[1].get("optimized"))))


def headline_system(summary: Mapping[str, Any]) -> str | None:
    """Returns the system that a report's first sentence is about: RLHF, or else the last that was compared."""
    compared = [name for judge in judges_of(summary).values() for name in judge.get("win_rate") or {}]
    sampled = [name for name in compared if not name.endswith(GREEDY)] or compared
    return "ppo" if "ppo" in compared else sampled[-1] if sampled else None


def _wins(summary: Mapping[str, Any]) -> Result | None:
    system, baseline = headline_system(summary), summary.get("baseline") or ""
    for name, judge in judges_of(summary).items():
        estimate = (judge.get("win_rate") or {}).get(system)
        if system is not None and estimate:
            by = f"{name} (optimized)" if judge.get("optimized") else name
            other = rival(system, baseline, summary.get("systems") or [baseline])
            title = f"{label(system)} over {label(other) if other else 'the baseline'}, {by}:"
            return Result(title, estimate["mean"], estimate["low"], estimate["high"], share=True)
    return None


def _evaluated_reward(summary: Mapping[str, Any]) -> Result | None:
    trained_on = [judge for judge in judges_of(summary).values() if judge.get("optimized")]
    estimate = (trained_on[0].get("mean") or {}).get("ppo") if len(trained_on) == 1 else None
    return Result("test reward", estimate["mean"], estimate["low"], estimate["high"]) if estimate else None


def _chosen(result: Mapping[str, Any]) -> Result | None:
    """Returns the number that chose the epoch: the reward model's score, or the validation loss."""
    rows: Sequence[Mapping[str, Any]] = result.get("epochs") or []
    row = next((row for row in rows if row.get("checkpoint") == result.get("chosen")), None)
    if row is None:
        return None
    if _is_number(row.get("rm_score")):
        mean, error = row["rm_score"], row.get("rm_score_se")
        ends = (None, None) if error is None else (mean - 1.96 * error, mean + 1.96 * error)
        return Result("reward of the chosen epoch", mean, *ends)
    return _mean(row, "eval_loss", "validation loss")


def _mean(numbers: Mapping[str, Any], key: str, name: str) -> Result | None:
    mean: Any = numbers.get(key)
    if not _is_number(mean):
        return None
    digits = 3 if "loss" in name else 2
    return Result(name, mean, numbers.get(f"{key}_low"), numbers.get(f"{key}_high"), digits=digits)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
