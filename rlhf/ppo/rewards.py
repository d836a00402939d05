"""Rewards: scores of reward models and functions, what the options make of them, and the reward of each token."""

import copy
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from rlhf.data.encode import Prompt, encode_prompt_and_completions
from rlhf.errors import InputError
from rlhf.generation.score_options import with_missing_eos
from rlhf.models.loading import context_length
from rlhf.models.stop_tokens import add_stop_ids, eos_ids
from rlhf.ppo.networks import classifier_token_scores, freeze_reward

logger = logging.getLogger(__name__)

RewardFunction = Callable[..., Sequence[float]]


class TextRewardModel:
    """A reward model that reads decoded text, because it has its own tokenizer.

    Prompt and response are encoded as in its training: with its chat template if prompts are messages, and with what
    ends an answer there, up to its stop token, if the response ended by itself.

    Args:
        model: sequence classifier with one label; it is frozen.
        tokenizer: the reward model's.
    """

    def __init__(self, model: PreTrainedModel | PeftModel, tokenizer: PreTrainedTokenizerBase):
        self.model, self.tokenizer = freeze_reward(model).eval(), copy.copy(tokenizer)
        self.tokenizer.init_kwargs = dict(tokenizer.init_kwargs)  # the policy's, if that is its tokenizer, stay
        add_stop_ids(self.tokenizer, eos_ids(model.config))
        self.context = context_length(model.config)
        self.warned = False

    @torch.no_grad()
    def __call__(self, prompts: list[Prompt], completions: list[str], ended: Sequence[bool]) -> list[float]:
        rows = [self.encode(*row) for row in zip(prompts, completions, ended, strict=True)]
        device = next(self.model.parameters()).device
        ids = pad_sequence([torch.tensor(row, device=device) for row in rows], batch_first=True)  # [B, T]
        last = torch.tensor([[len(row) - 1] for row in rows], device=device)
        return classifier_token_scores(self.model, ids).gather(1, last).squeeze(1).tolist()

    def encode(self, prompt: Prompt, completion: str, ended: bool) -> list[int]:
        prompt_ids, [answer] = encode_prompt_and_completions(self.tokenizer, prompt, [completion], [ended])
        ids = prompt_ids + answer
        if self.context is None or len(ids) <= self.context:
            return ids
        if not self.warned:
            self.warned = True
            logger.warning(
                "a prompt and response of %d tokens exceed a reward model's context of %d; it reads only their end.",
                len(ids), self.context,
            )  # fmt: skip
        return ids[-self.context :]


def function_scores(
    functions: list[RewardFunction | TextRewardModel],
    weights: list[float] | None,
    prompts: list[Any],
    completions: list[str],
    ended: Sequence[bool] = (),
    **columns: list[Any],
) -> Tensor:
    """Weighted sum of reward functions and of reward models that read text.

    Args:
        functions: each function is called as `f(prompts=..., completions=..., **columns)` and returns one float per
            completion.
        weights: one per function; None: all 1.
        prompts: text or messages, as in the dataset.
        completions: decoded responses without special tokens.
        ended: True for each response that ended by itself; models need it, functions do not.
        columns: the dataset's other columns for these rows.

    Returns:
        [len(completions)] float32.
    """
    total = torch.zeros(len(completions))
    for function, weight in zip(functions, weights or [1.0] * len(functions), strict=True):
        if isinstance(function, TextRewardModel):
            scores = function(prompts, completions, ended)
        else:
            scores = function(prompts=prompts, completions=completions, **columns)
        if len(scores) != len(completions):
            name = getattr(function, "__name__", type(function).__name__)
            raise InputError(
                f"reward function {name} gave {len(scores)} scores for {len(completions)} completions; "
                "return one for each."
            )
        total += weight * torch.tensor([float(score) for score in scores])
    return total


@dataclass
class RewardSources:
    """Sources of a response's score.

    Attributes:
        model: the reward model that reads the sampled ids, beside the policy; None if there is none.
        functions: reward functions, and reward models that read the decoded text.
        weights: one for each of `functions`.
        model_reads_text: True if the trainer's `reward_model` has another tokenizer or template and is one of
            `functions` instead.
    """

    model: PreTrainedModel | PeftModel | None
    functions: list[RewardFunction | TextRewardModel]
    weights: list[float]
    model_reads_text: bool = False

    def to(self, device: torch.device) -> None:
        for function in self.functions:
            if isinstance(function, TextRewardModel):
                function.model.to(device)  # pyright: ignore[reportArgumentType]


def reward_sources(
    reward_model: PreTrainedModel | PeftModel | None,
    reward_funcs: RewardFunction | PreTrainedModel | Sequence[RewardFunction | PreTrainedModel] | None,
    weights: Sequence[float] | None,
    policy_tokenizer: PreTrainedTokenizerBase,
    reward_tokenizer: PreTrainedTokenizerBase | None = None,
    function_tokenizers: Sequence[PreTrainedTokenizerBase | None] | None = None,
) -> RewardSources:
    """Sorts the reward arguments of `PPOTrainer` into models that read ids and sources that read text.

    Raises:
        InputError: the numbers of weights or tokenizers and of reward_funcs differ.
    """
    functions = [reward_funcs] if callable(reward_funcs) else list(reward_funcs or [])
    tokenizers = [None] * len(functions) if function_tokenizers is None else list(function_tokenizers)
    weights = [1.0] * len(functions) if weights is None else list(weights)
    for name, given in (("reward_weights", weights), ("reward_processing_classes", tokenizers)):
        if len(given) != len(functions):
            raise InputError(f"{len(given)} {name} for {len(functions)} reward_funcs; give one for each.")
    functions = [
        TextRewardModel(function, tokenizer or policy_tokenizer)  # pyright: ignore[reportArgumentType]
        if isinstance(function, torch.nn.Module)
        else function
        for function, tokenizer in zip(functions, tokenizers, strict=True)
    ]
    if reward_model is None or reward_tokenizer is None or reads_alike(reward_tokenizer, policy_tokenizer):
        return RewardSources(reward_model, functions, weights)
    functions.append(TextRewardModel(reward_model, reward_tokenizer))
    return RewardSources(None, functions, [*weights, 1.0], model_reads_text=True)


def reads_alike(a: PreTrainedTokenizerBase, b: PreTrainedTokenizerBase) -> bool:
    """True if a model with tokenizer `a` can read the ids of tokenizer `b`: same vocabulary, and same chat template.

    A tokenizer without a template leaves open how its model reads messages.
    """
    templates = {a.chat_template, b.chat_template} - {None}
    return a.get_vocab() == b.get_vocab() and len(templates) < 2


def shape_scores(
    scores: Tensor,
    ended: Tensor,
    scale: float = 1.0,
    clip: float | None = None,
    missing_eos_penalty: float | None = None,
    missing_eos_reward: float | None = None,
) -> Tensor:
    """Applies the score options of `PPOConfig`; PPO maximizes the result less the KL penalty.

    In this order, scores [B] are divided by `scale`, clipped, and corrected where the response did not end by itself
    (`ended` [B] bool is False). The correction is therefore in units of scaled scores.
    """
    scores = scores / scale
    if clip is not None:
        scores = scores.clamp(-clip, clip)
    return with_missing_eos(scores, ended, missing_eos_penalty, missing_eos_reward)


def token_rewards(scores: Tensor, logprobs: Tensor, ref_logprobs: Tensor, mask: Tensor, kl_coef: float) -> Tensor:
    r"""The reward of each response token (arXiv 2203.02155, eq. 2, per token as in section 3.5).

        r_t = -beta (log pi(y_t) - log pi_ref(y_t)) + [t is the last response token] score

    Args:
        scores: [B] score of the whole response.
        logprobs, ref_logprobs: [B, T] log-probabilities of the sampled tokens under policy and reference.
        mask: [B, T] bool, True on response tokens, which are contiguous from position 0.
        kl_coef: beta.

    Returns:
        [B, T], zero outside the mask.
    """
    rewards = -kl_coef * (logprobs - ref_logprobs) * mask
    rewards[torch.arange(len(scores)), mask.sum(1) - 1] += scores
    return rewards
