"""Rewards: scores of reward models and functions, what the options make of them, and the reward of each token."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from peft import PeftModel
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from rlhf.data.text_rewards import TextRewardModel, load_text_reward, own_tokenizer
from rlhf.errors import InputError
from rlhf.generation.score_options import with_missing_eos
from rlhf.ppo.reward_functions import RewardFunction, function_scores, is_async

__all__ = ["RewardFunction", "RewardSources", "TextRewardModel", "function_scores", "reward_sources", "shape_scores"]

RewardSource = RewardFunction | PreTrainedModel | str


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
    reward_funcs: RewardSource | Sequence[RewardSource] | None,
    weights: Sequence[float] | None,
    policy_tokenizer: PreTrainedTokenizerBase,
    reward_tokenizer: PreTrainedTokenizerBase | None = None,
    function_tokenizers: PreTrainedTokenizerBase | Sequence[PreTrainedTokenizerBase | None] | None = None,
) -> RewardSources:
    """Sorts the reward arguments of `PPOTrainer` into models that read ids and sources that read text.

    Raises:
        InputError: the numbers of weights or tokenizers and of reward_funcs differ.
    """
    functions = [reward_funcs] if isinstance(reward_funcs, str) or callable(reward_funcs) else list(reward_funcs or [])
    if isinstance(function_tokenizers, PreTrainedTokenizerBase):
        function_tokenizers = [function_tokenizers]
    tokenizers = [None] * len(functions) if function_tokenizers is None else list(function_tokenizers)
    weights = [1.0] * len(functions) if weights is None else list(weights)
    for name, given in (("reward_weights", weights), ("reward_processing_classes", tokenizers)):
        if len(given) != len(functions):
            raise InputError(f"{len(given)} {name} for {len(functions)} reward_funcs; give one for each.")
    functions = [
        text_source(function, tokenizer, policy_tokenizer)
        for function, tokenizer in zip(functions, tokenizers, strict=True)
    ]
    if reward_model is None or reward_tokenizer is None or reads_alike(reward_tokenizer, policy_tokenizer):
        return RewardSources(reward_model, functions, weights)
    functions.append(TextRewardModel(reward_model, reward_tokenizer))
    return RewardSources(None, functions, [*weights, 1.0], model_reads_text=True)


def text_source(
    source: RewardSource, tokenizer: PreTrainedTokenizerBase | None, policy_tokenizer: PreTrainedTokenizerBase
) -> RewardFunction | TextRewardModel:
    """Returns a function as it is, and a model, or the name of one, as a reward model that reads text."""
    if isinstance(source, str):
        return load_text_reward(source, tokenizer)
    if not isinstance(source, torch.nn.Module):
        if not callable(source) and not is_async(source):
            raise InputError(f"{source!r} is no reward function: pass a function, a sequence classifier or its name.")
        return source
    if tokenizer is None:
        tokenizer = own_tokenizer(source)  # pyright: ignore[reportArgumentType]
    if tokenizer is None or tokenizer.get_vocab() == policy_tokenizer.get_vocab():
        tokenizer = policy_tokenizer if tokenizer is None or tokenizer.chat_template is None else tokenizer
    return TextRewardModel(source, tokenizer)  # pyright: ignore[reportArgumentType]


def reads_alike(a: PreTrainedTokenizerBase, b: PreTrainedTokenizerBase) -> bool:
    """True if a model with tokenizer `a` can read the ids of tokenizer `b`: same vocabulary, and same chat template.

    A tokenizer without a template leaves open how its model reads messages.
    """
    templates = [tokenizer.chat_template for tokenizer in (a, b) if tokenizer.chat_template is not None]
    return a.get_vocab() == b.get_vocab() and all(template == templates[0] for template in templates)


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
