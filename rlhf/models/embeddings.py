"""Embedding rows for tokens that a model lacks, and the pad token of its configuration."""

from typing import cast

import torch
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
