"""One forward of a sequence classifier that pools where it is told to."""

import types

import torch
from transformers import PreTrainedModel
from transformers.modeling_outputs import SequenceClassifierOutput


def pool_at_last_token(model: PreTrainedModel) -> None:
    """Lets `model(..., last_token=positions)` return the score at those positions.

    The classifiers of transformers look for the last token that is not the pad token, which is the wrong one where a
    response ends in a sampled pad token. The forward is replaced on the instance, as TRL's SFTTrainer does for its
    chunked loss, so that the pass still goes through every wrapper around the model (PEFT, DDP, FSDP). Without
    `last_token` the model is unchanged.

    Args:
        model: a decoder with a linear head called `score`, any wrapper of PEFT removed.
    """
    original_forward = model.forward

    def forward(self, input_ids=None, attention_mask=None, last_token=None, **kwargs):
        if last_token is None:
            return original_forward(input_ids=input_ids, attention_mask=attention_mask, **kwargs)
        kwargs = {key: value for key, value in kwargs.items() if value is not None}
        hidden = self.base_model(input_ids=input_ids, attention_mask=attention_mask, **kwargs).last_hidden_state
        last_hidden = hidden[torch.arange(len(hidden), device=hidden.device), last_token]  # [N, H]
        # The head is one dot product: in full precision it costs nothing, and bfloat16 would round the margins.
        with torch.autocast(hidden.device.type, enabled=False):
            scores = self.score(last_hidden.to(next(self.score.parameters()).dtype))
        return SequenceClassifierOutput(logits=scores.float())  # [N, 1]

    model.forward = types.MethodType(forward, model)
