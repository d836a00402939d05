"""Embedding rows for tokens that a model lacks, the pad token of its configuration, and its unembedding."""

from typing import cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase


def set_pad_token_id(model: PreTrainedModel, pad: int) -> None:
    """Sets the pad token of the model's configuration, or None if the model has no embedding for it."""
    known = pad if pad < cast(int, model.get_input_embeddings().num_embeddings) else None
    model.config.get_text_config().pad_token_id = model.config.pad_token_id = known
    if model.can_generate():
        model.generation_config.pad_token_id = known


def grow_embeddings(model: PreTrainedModel, rows: int) -> None:
    """Adds embedding rows up to `rows`, each the mean of the others, so that every stage gets the same base."""
    before = cast(int, model.get_input_embeddings().num_embeddings)
    if rows > before:
        model.resize_token_embeddings(rows, mean_resizing=False)  # mean_resizing would draw random rows
        with torch.no_grad():
            for embedding in filter(None, (model.get_input_embeddings(), model.get_output_embeddings())):
                weight = embedding.get_parameter("weight")
                weight[before:] = weight[:before].float().mean(0).to(weight.dtype)


def add_pad_row(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Gives the model an embedding for the pad token, for code that pads with it."""
    pad = cast(int, tokenizer.pad_token_id)
    grow_embeddings(model, pad + 1)
    set_pad_token_id(model, pad)


def unembed_contiguous_states(model: PreTrainedModel) -> None:
    """Makes the hidden states contiguous that enter the unembedding on a CPU.

    With `logits_to_keep` they are a slice [B, k, H] of all states. With frozen weights torch takes a batched product of
    a slice, which copies weights of 16 bits for each row: 64 rows and 49,152 x 576 took 8 seconds and 3.5 GB instead of
    0.03 seconds, and in float32 seven times as long as without the hook.
    """
    if (unembedding := model.get_output_embeddings()) is not None:
        unembedding.register_forward_pre_hook(contiguous_on_cpu)


def contiguous_on_cpu(module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """A forward pre-hook of a layer with one input."""
    return tuple(x.contiguous() if x.device.type == "cpu" else x for x in args)
