"""The loss of supervised fine-tuning with the chunked log-probabilities of `rlhf.models.logprobs`.

TRL's `chunked_nll` unembeds 256 tokens at a time, with a copy of the unembedding in float32 for each chunk, and all of
it again in backward: 6 V H FLOPs for a predicted token. Below a frozen unembedding it takes 4 V H, without copies.
"""

import types
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.modeling_outputs import CausalLMOutputWithPast
from trl import SFTConfig

from rlhf.errors import InputError
from rlhf.models.logprobs import Unembed, chunked_statistics, find_unembedding

IGNORED = -100  # label of tokens without a loss


@dataclass
class LossOutput(CausalLMOutputWithPast):
    """The fields that TRL's SFTTrainer reads with `loss_type="chunked_nll"`: sums over the predicted tokens."""

    num_correct_tokens: Tensor | None = None
    entropy_sum: Tensor | None = None  # nats
    num_valid_tokens: Tensor | None = None


def check_loss(args: SFTConfig, loss_function: Callable | None) -> None:
    """Raises InputError for what the Trainer computes from logits, if the loss has none or is another.

    Args:
        loss_function: `compute_loss_func` of the trainer; the one of `loss_type="dft"` is TRL's.
    """
    smoothed, own = args.label_smoothing_factor != 0, loss_function is not None and args.loss_type == "chunked_nll"
    if args.loss_type != "nll" and (smoothed or own):
        name = f"label_smoothing_factor is {args.label_smoothing_factor}" if smoothed else "compute_loss_func is given"
        raise InputError(
            f"{name}, which needs the logits of the plain loss, and loss_type is {args.loss_type}. Set loss_type to "
            "nll, or leave it out."
        )


def next_token_loss(
    lm: PreTrainedModel, unembed: Unembed, hidden: Tensor, labels: Tensor, num_items_in_batch: Tensor | int | None
) -> LossOutput:
    """Cross-entropy of the tokens that follow, divided by `num_items_in_batch`, or their number if it is None.

    Args:
        hidden: [B, T, H], last hidden states.
        labels: [B, T], IGNORED where a token has no loss.
        num_items_in_batch: predicted tokens of the optimizer step, of all processes.
    """
    predicted = labels[:, 1:] != IGNORED  # [B, T - 1]
    vocabulary = lm.config.get_text_config().vocab_size
    logprobs, entropies, correct = chunked_statistics(
        partial(unembed, lm), hidden[:, :-1][predicted], labels[:, 1:][predicted], vocabulary
    )
    number = predicted.sum()
    return LossOutput(
        loss=-logprobs.sum() / (number.clamp(min=1) if num_items_in_batch is None else num_items_in_batch),
        num_correct_tokens=correct.sum(),
        entropy_sum=entropies.sum(),
        num_valid_tokens=number,
    )


def replace_chunked_loss(lm: PreTrainedModel) -> None:
    """Replaces the loss in the forward that TRL has given to `lm` for `loss_type="chunked_nll"`.

    TRL's forward still computes other losses: shifted labels, and the auxiliary loss of experts. It also stays if the
    logits need more than the last hidden states. Without labels, the forward is that of the model's class.
    """
    training = lm.training
    two = torch.tensor([[0, 1]], device=lm.device)  # one of them is no padding, whose embedding may be zero
    unembed = find_unembedding(lm.eval(), two)
    lm.train(training)
    if unembed is None:
        return
    trl_forward: Any = lm.forward

    def forward(self, *args, labels=None, num_items_in_batch=None, **kwargs):
        if (
            labels is None and "shift_labels" not in kwargs and not hasattr(self, "_hf_hook")
        ):  # of Accelerate's device_map
            return type(self).forward(self, *args, **kwargs)  # TRL's calls the model of which this one may be a copy
        experts = getattr(self.config.get_text_config(), "output_router_logits", False)
        if labels is None or kwargs.keys() & {"shift_labels", "output_router_logits"} or experts:
            return trl_forward.__func__(self, *args, labels=labels, num_items_in_batch=num_items_in_batch, **kwargs)
        hidden = self.base_model(*args, **kwargs | {"use_cache": False}).last_hidden_state
        return next_token_loss(self, unembed, hidden, labels, num_items_in_batch)

    setattr(forward, "__signature__", trl_forward.__func__.__signature__)  # noqa: B010  # the model's, for `generate`
    lm.forward = types.MethodType(forward, lm)
