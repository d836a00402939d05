"""A sequence classifier as a reward model: with one label, frozen, and with a score at every position."""

from typing import Any, TypeVar

import torch
from peft import PeftModel
from torch import Tensor
from transformers import PreTrainedModel

from rlhf.errors import InputError
from rlhf.models.peft_layers import unwrap_peft
from rlhf.models.precision import float_head

M = TypeVar("M", bound=PreTrainedModel | PeftModel | None)


def check_classifier(model: PreTrainedModel | PeftModel, role: str) -> None:
    """Raises InputError unless the model is a sequence classifier with one label."""
    base = unwrap_peft(model)
    if not hasattr(base, "score") or base.config.num_labels != 1:
        raise InputError(
            f"the {role} model, a {type(base).__name__}, has no `score` head with one label; load it with "
            "AutoModelForSequenceClassification and num_labels=1."
        )


def freeze_reward(model: M) -> M:
    """Returns the reward model, checked, without gradients, and with its head in float32."""
    if model is not None:
        check_classifier(model, "reward")
        model.requires_grad_(False)
        float_head(unwrap_peft(model))
    return model


def classifier_token_scores(model: PreTrainedModel | PeftModel, input_ids: Tensor, **packed: Any) -> Tensor:
    """Scores [b, W] float32 of a sequence classifier at every position, not at the last token alone.

    `packed`: arguments of a packed row (`rlhf.models.packed_attention`).

    Tokens that the policy has and the classifier lacks, such as a pad token for which only the policy was resized, are
    read as its last token.
    """
    model = unwrap_peft(model)
    input_ids = input_ids.clamp(max=model.config.get_text_config().vocab_size - 1)
    backbone = getattr(model, model.base_model_prefix)
    hidden = backbone(input_ids=input_ids, use_cache=False, **packed).last_hidden_state
    with torch.autocast(hidden.device.type, enabled=False):  # one dot product: float32 costs nothing
        return model.get_submodule("score")(hidden).squeeze(-1).float()
