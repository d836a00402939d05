"""A base of two narrow layers with random weights: what `rlhf check` runs the stages on, in seconds."""

import copy
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel

from rlhf.models.loading import load_config, load_tokenizer

LAYERS = HEADS = 2


def save_short_base(name: str, revision: str, folder: str | Path) -> None:
    """Writes a model of the same architecture and head size, with the base's own tokenizer, into `folder`.

    Raises:
        InputError: there is no such model or tokenizer.
    """
    config, tokenizer = load_config(name, revision), load_tokenizer(name, revision)
    few_layers = _with_few_layers(config)
    try:
        model = _random_model(_narrow(few_layers))
        model(input_ids=torch.tensor([[1, 2, 3]]))
    except Exception:  # the architecture has more sizes that depend on each other
        model = _random_model(few_layers)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _random_model(config: PreTrainedConfig) -> PreTrainedModel:
    return AutoModelForCausalLM.from_config(config, dtype=torch.float32)


def _with_few_layers(config: PreTrainedConfig) -> PreTrainedConfig:
    """Shortens the number of layers, and the lists with an entry for each layer."""
    config = copy.deepcopy(config)
    text = config.get_text_config()
    layers = text.num_hidden_layers
    for name, value in vars(text).items():
        if isinstance(value, list) and len(value) == layers:
            setattr(text, name, value[:LAYERS])
    text.num_hidden_layers = min(LAYERS, layers)
    return config


def _narrow(config: PreTrainedConfig) -> PreTrainedConfig:
    """Leaves two attention heads of the size that they have, which rotary embeddings depend on."""
    config = copy.deepcopy(config)
    text = config.get_text_config()
    hidden = text.hidden_size
    head = getattr(text, "head_dim", None) or hidden // text.num_attention_heads
    text.num_attention_heads, text.hidden_size = HEADS, HEADS * head
    for name, size in {"num_key_value_heads": HEADS, "intermediate_size": 2 * HEADS * head}.items():
        if isinstance(getattr(text, name, None), int):
            setattr(text, name, size)
    if getattr(text, "word_embed_proj_dim", None) == hidden:  # OPT
        text.word_embed_proj_dim = text.hidden_size
    return config
