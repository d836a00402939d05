"""A model of two narrow layers with random weights: `rlhf check` runs the stages on it, in seconds.

`short_copy` makes one of a model whose own weights are not at hand, to try what depends on the architecture alone.
"""

import copy
from collections.abc import Callable
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
    model = _short(config, lambda short: AutoModelForCausalLM.from_config(short, dtype=torch.float32))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def short_copy(model: PreTrainedModel) -> PreTrainedModel:
    """Returns a short model of the class of `model`, in float32 on the CPU, the same in all processes.

    Its weights are whole where those of `model` are sharded. The random state stays as it is.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return _short(model.config, type(model))  # not from_config, which shards the weights under ZeRO-3


def _short(config: PreTrainedConfig, make: Callable[[PreTrainedConfig], PreTrainedModel]) -> PreTrainedModel:
    """Calls `make` with the configuration of a short model, a narrow one if it can be."""
    few_layers = _with_few_layers(config)
    try:
        model = make(_narrow(few_layers))
        model.base_model(input_ids=torch.tensor([[1, 2, 3]]))
    except Exception:  # the architecture has more sizes that depend on each other
        model = make(few_layers)
    return model


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
