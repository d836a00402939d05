"""Systems whose weights are loaded here: what they are made of, checked before any model is loaded."""

from collections.abc import Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase
from trl import ModelConfig

from rlhf.data.encode import Prompt, encode_prompt, prompt_text
from rlhf.data.prompt_style import as_messages, resolve_style
from rlhf.data.text_rewards import is_adapter
from rlhf.errors import InputError
from rlhf.evaluation.reward_judge import check_reward
from rlhf.evaluation.systems import STAGES, System
from rlhf.generation.score_options import DEFAULTS, PolicyOptions, policy_options
from rlhf.models.adapter_files import (
    adapter_config_digest,
    adapter_digest,
    adapter_folder,
    base_model_name,
    check_adapter,
)
from rlhf.models.contracts import tokenizer_digests, with_revision_of
from rlhf.models.loading import load_config, load_tokenizer, resolve_model_name
from rlhf.models.stages import load_adapter_tokenizer, load_stage_tokenizer, merged_style, trained_style
from rlhf.models.stop_tokens import add_stop_ids, saved_stop_tokens, stop_token_texts, token_ids
from rlhf.runs.digests import base_identity


@dataclass(frozen=True)
class Run:
    """The stages that systems are named after.

    Attributes:
        model_args: options of loading; names the base of the stages if they have one.
        stages: sft, ppo, reward -> folder or Hub id of the adapter.
        tokenizer: of the stages; None without stages and without a base.
        options: under which PPO trained the policy.
    """

    model_args: ModelConfig
    stages: Mapping[str, str]
    tokenizer: PreTrainedTokenizerBase | None
    options: PolicyOptions = DEFAULTS

    @property
    def style(self) -> str | None:
        return trained_style(self.stages.values())


@dataclass(frozen=True)
class LocalSystem:
    """The parts of a system, which are checked and not loaded.

    Attributes:
        system: with all decoding options.
        model_args: of its base.
        adapter: folder; None is the bare base.
        tokenizer: of the system.
        style: form of prompts that are text; None: as they are.
        prefix: text before each prompt.
        reward: folder of the run's reward adapter, if it chooses the best of n. Any other reward model
            (`system.reward`) reads text, with its own base and tokenizer.
    """

    system: System
    model_args: ModelConfig
    adapter: Path | None
    tokenizer: PreTrainedTokenizerBase
    style: str | None
    prefix: str | None
    reward: Path | None

    @property
    def base(self) -> tuple[str | None, ...]:
        """Returns what tells the base from others: the digests of its files, or its name and revision."""
        found = _identity(self.model_args)
        if found["weights"]:
            return found["digest"], found["weights"]
        return found["name"], self.model_args.model_revision

    def asked(self, prompt: Prompt) -> Prompt:
        """Returns a prompt in the form in which this system is asked."""
        return self.in_style(prompt) if self.prefix is None else self.prefix + prompt_text(prompt)

    def in_style(self, prompt: Prompt) -> Prompt:
        """Returns a prompt in the form that the system was trained on, without the prefix."""
        return as_messages(prompt) if isinstance(prompt, str) and self.style == "chat" else prompt

    def encode(self, prompts: Sequence[Prompt]) -> list[list[int]]:
        """Returns the ids of each prompt."""
        return [encode_prompt(self.tokenizer, self.asked(prompt)) for prompt in prompts]

    def identity(self, options: PolicyOptions) -> dict[str, Any]:
        """Returns all that the answers depend on but prompts and seed; `options` count for the best of n."""
        system = self.system
        identity: dict[str, Any] = {
            name: getattr(system, name) for name in ("temperature", "max_new_tokens", "best_of")
        } | {
            "stop": list(system.stop),
            "base": {key: value for key, value in _identity(self.model_args).items() if key != "name"},
            "adapter": adapter_digest(self.adapter) if self.adapter else None,
            "adapter_config": adapter_config_digest(self.adapter) if self.adapter else None,
            "tokenizer": tokenizer_digests(self.tokenizer) | {"stop_tokens": stop_token_texts(self.tokenizer)},
            "prompt_style": self.style,
            "prefix": system.prefix_digest,
            "precision": [str(self.model_args.dtype), self.model_args.load_in_4bit, self.model_args.load_in_8bit],
        }
        if not identity["base"]["weights"]:
            identity["base"]["name"] = self.model_args.model_name_or_path
        if system.reward:
            identity["reward"] = check_reward(system.reward)[0]
            identity["missing_eos"] = [options.missing_eos_penalty, options.missing_eos_reward]
        return identity


def load_run(model_args: ModelConfig, stages: Mapping[str, str]) -> Run:
    """Returns the stages of a run and their tokenizer, checked.

    Raises:
        InputError: see `rlhf.models.stages.load_stage_tokenizer`.
    """
    if not stages and not model_args.model_name_or_path:
        return Run(model_args, {}, None)
    model_args, tokenizer = load_stage_tokenizer(model_args, stages)
    return Run(model_args, dict(stages), tokenizer, policy_options(stages.get("ppo")))


def local_system(system: System, run: Run, prompt_style: str | None = None) -> LocalSystem:
    """Checks a system and returns its parts.

    Args:
        system: of `rlhf.evaluation.systems.resolve`.
        prompt_style: of the options; None: as the adapter was trained.

    Raises:
        InputError: a stage that the run does not have, or a missing or unfit model, adapter, file or reward model.
    """
    with _naming(system):
        prefix = Path(system.prefix).expanduser().read_text(encoding="utf-8") if system.prefix else None
        if system.source in STAGES:
            model_args, adapter = _stage(system, run), run.stages.get(system.source)
            assert run.tokenizer is not None
            tokenizer, style = run.tokenizer, prompt_style or run.style
            folder = adapter_folder(adapter) if adapter else None
        else:
            model_args, folder = _weights(system, run)
            tokenizer, style = _tokenizer(model_args, folder, run), None
            trained = trained_style([folder]) if folder else merged_style(str(model_args.model_name_or_path))
            style = resolve_style(prompt_style, trained, tokenizer)
        reward = None
        if system.reward:
            check_reward(system.reward)
            if (
                tokenizer is run.tokenizer
                and prefix is None
                and not system.stop
                and system.reward in run.stages.values()
            ):
                reward = adapter_folder(system.reward)  # it can read the ids as sampled
        return LocalSystem(system, model_args, folder, tokenizer, style, prefix, reward)


def _stage(system: System, run: Run) -> ModelConfig:
    if system.base:
        raise InputError("a stage of the run has the run's base. Leave base out.")
    if run.tokenizer is None or (system.source != "base" and system.source not in run.stages):
        option = "model_name_or_path" if system.source == "base" else f"{system.source}_model_path"
        raise InputError(f"the run has no {system.source}. Set {option}, or write ./{system.source} for a folder.")
    return run.model_args


def _weights(system: System, run: Run) -> tuple[ModelConfig, Path | None]:
    """Returns the options of the base, and the folder of the adapter or None."""
    if not is_adapter(system.source):
        if system.base:
            raise InputError(f"{system.source} is no adapter, so it has no base. Leave base out.")
        resolve_model_name(system.source)
        load_config(system.source)
        return replace(run.model_args, model_name_or_path=system.source, model_revision="main"), None
    folder = adapter_folder(system.source)
    config = check_adapter(folder)
    if run.model_args.model_name_or_path and not system.base:
        try:
            base = resolve_model_name(run.model_args.model_name_or_path)
            check_adapter(folder, base, run.model_args.model_revision)
            return run.model_args, folder
        except InputError:  # of another base
            pass
    name = resolve_model_name(system.base) if system.base else base_model_name(config, folder)
    model_args = with_revision_of(replace(run.model_args, model_name_or_path=name, model_revision="main"), folder)
    check_adapter(folder, name, model_args.model_revision)
    load_config(name, model_args.model_revision)
    return model_args, folder


def _tokenizer(model_args: ModelConfig, folder: Path | None, run: Run) -> PreTrainedTokenizerBase:
    """Returns the tokenizer of a base or an adapter, with PPO's stop tokens; the run's where it is the same."""
    if folder is None:
        tokenizer = load_tokenizer(str(model_args.model_name_or_path), model_args.model_revision)
    else:
        tokenizer = load_adapter_tokenizer(model_args, folder)
        add_stop_ids(tokenizer, token_ids(tokenizer, saved_stop_tokens(folder)))
    if "ppo" in run.stages:
        stop_tokens = saved_stop_tokens(adapter_folder(run.stages["ppo"]))
        add_stop_ids(tokenizer, token_ids(tokenizer, stop_tokens))
    ours = run.tokenizer
    if ours is not None and tokenizer_digests(ours) == tokenizer_digests(tokenizer):
        return ours if stop_token_texts(ours) == stop_token_texts(tokenizer) else tokenizer
    return tokenizer


def _identity(model_args: ModelConfig) -> dict[str, str | None]:
    return base_identity(resolve_model_name(model_args.model_name_or_path), model_args.model_revision)


@contextmanager
def _naming(system: System):
    """Begins the message of an InputError with the system's name."""
    try:
        yield
    except InputError as error:
        raise InputError(f"System {system.name}: {error}") from error
