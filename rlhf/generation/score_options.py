"""The options under which PPO trained a policy, for what is compared with it: best of n, choice, evaluation."""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path

import torch
import yaml
from torch import Tensor

from rlhf.generation.completions import Completion
from rlhf.models.adapter_files import adapter_folder
from rlhf.runs.contract import read_contract


@dataclass(frozen=True)
class PolicyOptions:
    """Options of `PPOConfig` that say how a policy samples and what a missing EOS costs it."""

    temperature: float = 1.0
    missing_eos_penalty: float | None = None
    missing_eos_reward: float | None = None


DEFAULTS = PolicyOptions()


def policy_options(policy: str | Path | None) -> PolicyOptions:
    """Returns the options of the PPO run that wrote an adapter, from contract.json or config.yaml beside it.

    Without a policy, or for one of another library, they are the defaults.
    """
    if policy is None:
        return PolicyOptions()
    folder = adapter_folder(policy)
    contract, config = read_contract(folder), folder / "config.yaml"
    options = contract.options if contract is not None else {}
    if config.exists():
        options = (yaml.safe_load(config.read_text(encoding="utf-8")) or {}) | options
    names = [field.name for field in fields(PolicyOptions)]
    return PolicyOptions(**{name: options[name] for name in names if options.get(name) is not None})


def with_missing_eos(scores: Tensor, ended: Tensor, penalty: float | None, reward: float | None) -> Tensor:
    """Corrects scores [B] where the response did not end by itself (`ended` [B] bool is False).

    Args:
        penalty: subtracted from the score; None: nothing.
        reward: replaces the score; None: its own.
    """
    if penalty is not None:
        scores = torch.where(ended, scores, scores - penalty)
    if reward is not None:
        scores = torch.where(ended, scores, torch.full_like(scores, reward))
    return scores


def shaped_rewards(rewards: Sequence[float], completions: Sequence[Completion], options: PolicyOptions) -> list[float]:
    """Returns the rewards of completions as PPO counts them: with the term for a missing EOS."""
    ended = torch.tensor([completion.ended for completion in completions], dtype=torch.bool)
    scores = torch.tensor(rewards, dtype=torch.float64)
    return with_missing_eos(scores, ended, options.missing_eos_penalty, options.missing_eos_reward).tolist()
