"""What keeps a run from going wrong unnoticed: KL controller, target KL, scale of the scores, collapse.

Each has a history that belongs into a checkpoint: `state_dict` and `load_state_dict`.
"""

import logging
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from rlhf.ppo.advantages import moments
from rlhf.tensors import as_float64

logger = logging.getLogger(__name__)

TOLERANCE = 1.5  # of the target KL, as in OpenAI's baselines of PPO
LENGTH_COLLAPSE, ENTROPY_COLLAPSE = 0.25, 0.1  # of the first rollout's


class KLController:
    r"""beta, which with a target follows the KL from the reference (Ziegler et al. 2019, arXiv 1909.08593, sec. 2.2).

        e = clip(KL / target - 1, -0.2, 0.2)        beta <- beta (1 + e n / horizon)

    Args:
        coef: beta, in the beginning.
        target: KL of a response in nats; None leaves beta as it is.
        horizon: in episodes; n are those of a rollout. The paper's K_beta is n / horizon.
    """

    def __init__(self, coef: float, target: float | None, horizon: int):
        self.coef, self.target, self.horizon = coef, target, horizon

    def update(self, kl: float, episodes: int) -> None:
        if self.target is not None:
            error = min(max(kl / self.target - 1, -0.2), 0.2)
            self.coef *= 1 + error * episodes / self.horizon

    def state_dict(self) -> dict[str, Any]:
        return {"coef": self.coef}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if self.target is not None:  # else a resumed run may be given another beta
            self.coef = state["coef"]


class TargetKL:
    """Skips what is left of a rollout once the policy has moved too far from the one that sampled it.

    A minibatch whose approximate KL (`policy/approxkl`, from the old policy, per token) is above 1.5 x target is not
    stepped on, and neither are the rollout's remaining ones, in any of its epochs. They still count as Trainer steps,
    so that schedules, logs and checkpoints stay where they are. The first minibatch of a rollout is always stepped on.
    """

    def __init__(self, target: float | None):
        self.target = target
        self.stopped: int | None = None  # the rollout whose rest is skipped
        self.skipped = 0  # steps of that rollout

    def step(self, rollout: int, kl: float) -> bool:
        """Whether to take this optimizer step."""
        if self.stopped != rollout and kl > TOLERANCE * self.target:
            self.stopped, self.skipped = rollout, 0
        self.skipped += self.stopped == rollout
        return self.stopped != rollout

    def skipped_of(self, rollout: int) -> int:
        return self.skipped if self.stopped == rollout else 0

    def state_dict(self) -> dict[str, Any]:
        return {"stopped": self.stopped, "skipped": self.skipped}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.stopped, self.skipped = state["stopped"], state["skipped"]


class ScoreScale:
    """Running standard deviation of all scores so far, over all processes (Chan et al.'s update)."""

    def __init__(self):
        self.count = self.mean = self.squares = 0.0

    @property
    def std(self) -> float:
        """1 where it is not known yet, or zero."""
        variance = self.squares / (self.count - 1) if self.count > 1 else 0.0
        return variance**0.5 or 1.0

    def update(self, scores: Tensor, reduce: Callable[[Tensor], Tensor]) -> None:
        """`scores`: [N] of this process's episodes; `reduce` sums over the processes."""
        count = reduce(as_float64(scores.new_tensor(len(scores)))).item()
        mean, variance = (moment.item() for moment in moments(scores, reduce))
        change, total = mean - self.mean, self.count + count
        self.squares += variance * (count - 1) + change**2 * self.count * count / total
        self.mean += change * count / total
        self.count = total

    def state_dict(self) -> dict[str, Any]:
        return {"count": self.count, "mean": self.mean, "squares": self.squares}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.count, self.mean, self.squares = state["count"], state["mean"], state["squares"]


class CollapseWatch:
    """Compares each rollout's response length and entropy per token with those of the first."""

    def __init__(self):
        self.first: dict[str, float] = {}
        self.flags: dict[str, float] = {}

    def update(self, means: dict[str, float], step: int) -> dict[str, float]:
        """1.0 for what has collapsed, as metrics; a warning when it does.

        Args:
            means: of `rlhf.ppo.metrics.episode_means`.
        """
        length = means["rollout/length"]
        now = {"length": length, "entropy": means["objective/entropy"] / length}
        self.first = self.first or now
        limits = {"length": LENGTH_COLLAPSE, "entropy": ENTROPY_COLLAPSE}
        for name, limit in limits.items():
            collapsed = now[name] < limit * self.first[name]
            if collapsed and not self.flags.get(name):
                unit = "tokens per response" if name == "length" else "nats per token"
                logger.warning(
                    "step %d: %s collapse: %.3g %s, %.3g in the first rollout. Read samples.jsonl; a larger kl_coef or "
                    "smaller learning rates hold the policy back.",
                    step, name, now[name], unit, self.first[name],
                )  # fmt: skip
            self.flags[name] = float(collapsed)
        return {f"guard/{name}_collapse": self.flags[name] for name in limits}

    def state_dict(self) -> dict[str, Any]:
        return {"first": self.first, "flags": self.flags}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.first, self.flags = state["first"], state["flags"]


def gradients_finite(parameters: Iterable[nn.Parameter]) -> bool:
    """Whether all gradients on this process are finite; one number leaves the device, however many there are."""
    gradients = [p.grad.to_local() if hasattr(p.grad, "to_local") else p.grad for p in parameters if p.grad is not None]
    return not gradients or bool(torch.isfinite(torch.nn.utils.get_total_norm(gradients)))
