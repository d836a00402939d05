"""Sequence classifiers of all causal LMs: that of transformers where it has one, else backbone and linear head."""

from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForSequenceClassification, PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import SequenceClassifierOutput
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING,
    MODEL_MAPPING,
)


def classifier_class(config: PreTrainedConfig) -> type:
    """Returns the class whose `from_pretrained` loads a sequence classifier for `config`.

    Granite, Cohere, LFM2 and 70 others have a causal LM and no classifier in transformers. Theirs is made as
    transformers makes that of Llama: the backbone, whose weights have the names of the causal LM, and the head `score`.
    """
    if type(config) in MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING or type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        return AutoModelForSequenceClassification
    return backbone_classifier(MODEL_FOR_CAUSAL_LM_MAPPING[type(config)])


@cache
def backbone_classifier(causal: type[PreTrainedModel]) -> type:
    """Returns the class `<Architecture>ForSequenceClassification` of a causal LM's architecture."""
    pretrained: Any = next(base for base in causal.__mro__ if base.__name__.endswith("PreTrainedModel"))

    class BackboneClassifier(pretrained):
        base_model_prefix = causal.base_model_prefix

        def __init__(self, config: Any):
            super().__init__(config)
            self.num_labels = config.num_labels
            backbone: Any = MODEL_MAPPING[type(config)]
            setattr(self, self.base_model_prefix, backbone(config))
            self.score = nn.Linear(config.get_text_config().hidden_size, config.num_labels, bias=False)
            self.post_init()

        def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None, **kwargs):
            """Returns the scores [B, num_labels] at the last token of each row that is not the pad token."""
            kwargs = {name: value for name, value in kwargs.items() if value is not None}
            backbone = getattr(self, self.base_model_prefix)
            hidden = backbone(input_ids=input_ids, attention_mask=attention_mask, **kwargs).last_hidden_state
            position = torch.arange(input_ids.shape[1], device=hidden.device)
            last = (position * (input_ids != self.config.get_text_config().pad_token_id)).argmax(-1)
            rows = torch.arange(len(hidden), device=hidden.device)
            return SequenceClassifierOutput(logits=self.score(hidden[rows, last]))

    BackboneClassifier.__name__ = pretrained.__name__.removesuffix("PreTrainedModel") + "ForSequenceClassification"
    # transformers leaves buffers of classes outside of its own modules uninitialized when it loads a model.
    BackboneClassifier.__module__ = pretrained.__module__
    return BackboneClassifier
