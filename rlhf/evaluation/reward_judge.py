"""A reward model as a judge: an adapter of this library or of TRL, or a sequence classifier, with its own base.

It reads decoded text with its own tokenizer. If a system was trained against it, or chose answers by it, its scores of
that system measure the optimization too and are no evidence of quality (Gao et al. 2022, arXiv 2210.10760).
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from rlhf.data.encode import Prompt, prompt_text
from rlhf.data.text_rewards import TextRewardModel, is_adapter, load_text_reward
from rlhf.errors import InputError
from rlhf.evaluation.verdicts import ScoringJudge, Verdict
from rlhf.generation.score_options import DEFAULTS, PolicyOptions, with_missing_eos
from rlhf.models.adapter_files import (
    CALIBRATION,
    adapter_config_digest,
    adapter_digest,
    adapter_folder,
    base_model_name,
    check_reward_adapter,
    read_calibration,
)
from rlhf.models.contracts import check_style
from rlhf.models.loading import load_config
from rlhf.runs.contract import read_contract
from rlhf.runs.digests import base_identity, weights_digest
from rlhf.runs.processes import process_state

DTYPES = ("float32", "bfloat16", "float16")


@dataclass(frozen=True)
class Trained:
    """How the systems of an evaluation may have been optimized against a reward model.

    Attributes:
        adapters: system -> folder or Hub id of its adapter, whose contract names what it was trained against.
        chosen_by: system -> reward model that chooses its answers, for best of n.
    """

    adapters: Mapping[str, str | Path]
    chosen_by: Mapping[str, str | Path]


class RewardJudge(ScoringJudge):
    """Scores answers with a reward model, which is loaded when the first new answer comes.

    Args:
        model: folder or Hub id. It is checked here, before anything is loaded.
        name: of the judge.
        folder: of the file with the verdicts.
        trained: what may have been optimized against it.
        options: the term for a missing EOS, which PPO's own reward model has in its scores, as in training. Other
            reward models score without it.
        dtype: of the weights.
        style: "chat" or "text", the form of the prompts; None if it is not known.

    Raises:
        InputError: no such model, or it is no reward model, or it was trained on prompts of another form.
    """

    def __init__(
        self,
        model: str | Path,
        name: str = "reward",
        folder: str | Path | None = None,
        trained: Trained = Trained({}, {}),
        options: PolicyOptions = DEFAULTS,
        dtype: str = "float32",
        style: str | None = None,
    ):
        if dtype not in DTYPES:
            raise InputError(f"Judge {name} has dtype={dtype}. Choose from {', '.join(DTYPES)}.")
        self.source, self.dtype = str(model), dtype
        identity, digests = check_reward(self.source, style)
        by_training, by_choice = optimized_systems(self.source, digests, trained)
        self.options = options if by_training else DEFAULTS
        super().__init__(
            name,
            _about(self.source, by_training, by_choice),
            [identity, dtype],
            folder,
            optimized=bool(by_training or by_choice),
        )

    @cached_property
    def model(self) -> TextRewardModel:
        """The reward model, on this process's device."""
        reward = load_text_reward(self.source, dtype=self.dtype)
        reward.model.to(process_state().device)  # pyright: ignore[reportArgumentType]
        return reward

    def judge(self, prompts: list[Prompt], responses: list[str], ended: list[bool]) -> list[Verdict | None]:
        """Returns raw scores: calibrated, and without the term for a missing EOS."""
        # The rows of a batch are then of like length.
        order = sorted(range(len(prompts)), key=lambda i: len(prompt_text(prompts[i])) + len(responses[i]))
        scores = self.model([prompts[i] for i in order], [responses[i] for i in order], [ended[i] for i in order])
        by_row = dict(zip(order, scores, strict=True))
        return [Verdict(by_row[i]) for i in range(len(prompts))]

    def score(self, prompts: Sequence[Prompt], responses: Sequence[str], ended: Sequence[bool]) -> list[Verdict | None]:
        """Returns the scores, with the term for a missing EOS if PPO had it."""
        raw = [verdict.score for verdict in super().score(prompts, responses, ended) if verdict]  # it judges all
        penalty, reward = self.options.missing_eos_penalty, self.options.missing_eos_reward
        whole = torch.tensor(list(ended), dtype=torch.bool)
        scores = with_missing_eos(torch.tensor(raw, dtype=torch.float64), whole, penalty, reward)
        return list(map(Verdict, scores.tolist()))


def check_reward(model: str, style: str | None = None) -> tuple[Any, set[str]]:
    """Checks a reward model without loading it.

    Returns:
        A JSON value that tells it from others, and the digests that contracts know it by.

    Raises:
        InputError: see `RewardJudge`.
    """
    if is_adapter(model):
        folder = adapter_folder(model)
        config = check_reward_adapter(model)
        base = base_model_name(config, model)
        contract = read_contract(folder)
        check_style(folder, contract, style, "the evaluation")
        digest = adapter_digest(folder)
        bias = read_calibration(folder) if (folder / CALIBRATION).exists() else 0.0
        revision = contract.base.get("revision") if contract else None
        return [digest, adapter_config_digest(folder), base_identity(base, revision), bias], {digest}
    config = load_config(model)
    names = config.architectures or ["no architecture"]
    if config.num_labels != 1 or not any("Classification" in name for name in names):
        raise InputError(
            f"Judge {model} is no reward model: its configuration names {', '.join(names)} with {config.num_labels} "
            "labels. Pass a reward adapter, or a sequence classifier with one label."
        )
    weights = weights_digest(Path(model).expanduser()) if Path(model).expanduser().is_dir() else None
    return [model, getattr(config, "_commit_hash", None), weights], {weights} if weights else set()


def optimized_systems(model: str, digests: Collection[str], trained: Trained) -> tuple[list[str], list[str]]:
    """Returns the systems that were trained against a reward model, and those whose answers it chooses.

    A system without a contract, such as one of another library, is in neither list: nobody can tell.
    """
    by_training = []
    for system, adapter in trained.adapters.items():
        contract = read_contract(adapter_folder(adapter))
        if contract is None or contract.stage != "ppo":
            continue
        named = {str(name) for name in contract.options.get("reward_funcs") or ()}
        if model in named or set(digests) & set(contract.parents.values()):
            by_training.append(system)
    by_choice = [system for system, reward in trained.chosen_by.items() if _is_same(str(reward), model, digests)]
    return by_training, by_choice


def _is_same(other: str, model: str, digests: Collection[str]) -> bool:
    return other == model or bool(set(digests) & check_reward(other)[1])


def _about(model: str, by_training: list[str], by_choice: list[str]) -> str:
    facts = []
    if by_training:
        facts.append(f"{_joined(by_training)} {'was' if len(by_training) == 1 else 'were'} trained against it")
    if by_choice:
        facts.append(f"it chooses the answers of {_joined(by_choice)}")
    if not facts:
        return f"The reward model {model}, against which no system is known to be trained."
    return f"The reward model {model}: {' and '.join(facts)}, so its scores of these are no evidence of quality."


def _joined(names: list[str]) -> str:
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)
