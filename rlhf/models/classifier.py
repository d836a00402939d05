"""Sequence classifiers of all causal language models: of transformers where it has one, else backbone and linear head.

A stranger needs no more than transformers to read a reward model on such a base (docs/reward-model.md).
"""

from functools import cache

import torch
from torch import Tensor
from transformers import AutoModelForSequenceClassification, PreTrainedConfig, PreTrainedModel
from transformers.modeling_layers import GenericForSequenceClassification
from transformers.modeling_outputs import SequenceClassifierOutput
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING,
)


def classifier_class(config: PreTrainedConfig) -> type:
    """Returns the class whose `from_pretrained` loads a sequence classifier for `config`.

    Granite, Cohere, LFM2 and 70 others have a causal LM and no classifier in transformers. Theirs is made as
    transformers makes that of Llama: the backbone, whose weights have the names of the causal LM, and the head `score`.
    """
    if type(config) in MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING or type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        return AutoModelForSequenceClassification
    return generic_classifier(MODEL_FOR_CAUSAL_LM_MAPPING[type(config)])


@cache
def generic_classifier(causal: type[PreTrainedModel]) -> type[PreTrainedModel]:
    """Returns the class `<Architecture>ForSequenceClassification` of a causal LM's architecture."""
    pretrained = next(base for base in causal.__mro__ if base.__name__.endswith("PreTrainedModel"))
    name = pretrained.__name__.removesuffix("PreTrainedModel") + "ForSequenceClassification"
    members = {"base_model_prefix": causal.base_model_prefix, "__module__": __name__}
    return type(name, (BackboneClassifier, pretrained), members)


class BackboneClassifier(GenericForSequenceClassification):
    """The classifier of transformers, with a forward that no backbone refuses: Mamba's has other outputs."""

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None, **kwargs) -> SequenceClassifierOutput:
        """Returns the scores [B, num_labels] at the last token of each row that is not the pad token."""
        kwargs = {name: value for name, value in kwargs.items() if value is not None}
        backbone = getattr(self, self.base_model_prefix)
        hidden = backbone(input_ids=input_ids, attention_mask=attention_mask, **kwargs).last_hidden_state
        position = torch.arange(input_ids.shape[1], device=hidden.device)
        last = (position * (input_ids != self.config.get_text_config().pad_token_id)).argmax(-1)
        logits = self.score(hidden[torch.arange(len(hidden), device=hidden.device), last])
        return SequenceClassifierOutput(logits=logits)
