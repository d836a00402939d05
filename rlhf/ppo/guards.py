"""Controllers and guards of a run: KL controller, target KL, scale of the scores, collapse, values that are not finite.

Classes have a `state_dict` and a `load_state_dict`, because their history belongs in a checkpoint.
"""

import json
import logging
import math
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from rlhf.errors import NotFiniteError
from rlhf.ppo.advantages import moments
from rlhf.ppo.checkpointing import save_rollout
from rlhf.ppo.config import PPOConfig
from rlhf.ppo.rollout import Rollout
from rlhf.tensors import as_float64

logger = logging.getLogger(__name__)

TOLERANCE = 1.5  # of the target KL, as in OpenAI's baselines of PPO
LENGTH_COLLAPSE, ENTROPY_COLLAPSE = 0.25, 0.1  # of the first rollout's


class KLController:
    r"""Adapts beta to reach a target KL from the reference (Ziegler et al. 2019, arXiv 1909.08593, section 2.2).

        e = clip(KL / target - 1, -0.2, 0.2)        beta <- beta (1 + e n / horizon)

    Args:
        coef: initial beta.
        target: KL of a response in nats; None keeps beta constant.
        horizon: in episodes; n is the number of episodes of a rollout. The paper's K_beta is n / horizon.
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
        if self.target is not None:  # without a target, a resumed run may set another beta
            self.coef = state["coef"]


class TargetKL:
    """Skips the rest of a rollout once the policy has moved too far from the policy that sampled it.

    If the approximate KL of a minibatch (`policy/approxkl`, from the old policy, per token) is above 1.5 x target, its
    optimizer step is skipped, and so are the rollout's remaining steps in all epochs. Skipped steps still count as
    Trainer steps, so that schedules, logs and checkpoints do not shift. The first step of a rollout has KL 0 and is
    always taken.
    """

    def __init__(self, target: float | None):
        self.limit = math.inf if target is None else TOLERANCE * target
        self.stopped: int | None = None  # index of the rollout whose rest is skipped
        self.skipped = 0  # skipped steps of that rollout

    def step(self, rollout: int, kl: float) -> bool:
        """True if this optimizer step is to be taken."""
        if self.stopped != rollout and kl > self.limit:
            self.stopped, self.skipped = rollout, 0
        if self.stopped == rollout:
            self.skipped += 1
        return self.stopped != rollout

    def skipped_of(self, rollout: int) -> int:
        return self.skipped if self.stopped == rollout else 0

    def state_dict(self) -> dict[str, Any]:
        return {"stopped": self.stopped, "skipped": self.skipped}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.stopped, self.skipped = state["stopped"], state["skipped"]


class ScoreScale:
    """Running standard deviation of all scores, over all processes (Chan et al.'s update)."""

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
        """Returns metrics that are 1.0 for what has collapsed; warns when it collapses.

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
    """True if all gradients on this process are finite; costs one transfer from the device."""
    gradients = [p.grad.to_local() if isinstance(p.grad, DTensor) else p.grad for p in parameters if p.grad is not None]
    return not gradients or bool(torch.isfinite(torch.nn.utils.get_total_norm(gradients)))


def stop_non_finite(what: str, rollout: Rollout, args: PPOConfig, step: int) -> NoReturn:
    """Ends the run; the episodes of `rollout`, in which a value is not finite, stay on disk."""
    path = Path(args.output_dir) / f"non_finite-step_{step}-process_{args.process_index}.safetensors"
    path.parent.mkdir(parents=True, exist_ok=True)
    save_rollout(path, rollout)
    remedy = "Start again with a smaller learning_rate or value_learning_rate."
    if step == 0:  # no weight has changed
        remedy = "The base or an adapter gives such numbers: run its stage again, or load it with --dtype float32."
    raise NotFiniteError(
        f"{what} at step {step}; the episodes are in {path} (see rlhf.ppo.checkpointing.load_rollout). {remedy}"
    )


def stop_non_finite_text(loss: Tensor, blocks: list[list[int]], args: PPOConfig, step: int) -> NoReturn:
    """Ends the run; the token ids of this process's blocks of pretraining text stay on disk."""
    path = Path(args.output_dir) / f"non_finite_text-step_{step}-process_{args.process_index}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(blocks), encoding="utf-8")
    raise NotFiniteError(
        f"the loss on pretraining text is {loss} at step {step}; the ids of its blocks are in {path}. Start again "
        "with a smaller learning_rate."
    )
