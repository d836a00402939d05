"""The model that a recipe is for: its size, context, template and the layers that LoRA adapts. No weights are read."""

from dataclasses import dataclass
from pathlib import Path

from transformers import PreTrainedConfig, PreTrainedTokenizerBase

from rlhf.data.prompt_style import brings_template
from rlhf.errors import InputError
from rlhf.models.loading import (
    LoraModelConfig,
    check_lora,
    context_length,
    load_config,
    load_tokenizer,
    resolve_model_name,
)
from rlhf.models.lora_targets import linear_layers
from rlhf.models.model_sizes import Shape, shape_of


@dataclass(frozen=True)
class Model:
    """A base model.

    Attributes:
        name: folder or Hub id, as it was given.
        parameters: of the base.
        shape: its sizes, for the formulas of rlhf/models/memory.py; those of `similar_shape` for a form without one.
        context: tokens; None if the model does not say.
        layers: last parts of the names of the layers that LoRA adapts.
        stored_as_gguf: cannot be loaded in 4 bits.
        brings_template: True if the tokenizer has a chat template of its own.
    """

    name: str
    parameters: int
    shape: Shape
    context: int | None
    layers: tuple[str, ...]
    stored_as_gguf: bool
    brings_template: bool


def look_at_model(name: str) -> tuple[Model, PreTrainedTokenizerBase]:
    """Returns a model, and its tokenizer as the stages load it.

    Raises:
        InputError: no such model or tokenizer, or LoRA cannot adapt it.
    """
    config, tokenizer = load_config(name), load_tokenizer(name)
    adapted = check_lora(LoraModelConfig(model_name_or_path=name))
    base = adapted.get_base_model()
    parameters = sum(p.numel() for path, p in base.named_parameters() if "lora_" not in path)
    layers = dict.fromkeys(path.rpartition(".")[2] for path in linear_layers(base))  # pyright: ignore[reportArgumentType]
    try:
        shape = shape_of(config)
    except InputError:
        shape = similar_shape(config, parameters)
    folder = Path(resolve_model_name(name))
    gguf = not (folder / "config.json").exists() and any(folder.glob("*.gguf"))
    context, own = context_length(config), brings_template(tokenizer)
    return Model(name, parameters, shape, context, tuple(layers), gguf, own), tokenizer


def similar_shape(config: PreTrainedConfig, parameters: int) -> Shape:
    """Returns sizes of Llama's form for another decoder: the width of the MLP is such that the parameters agree.

    With the letters of rlhf/models/memory.py: I = ((parameters - V H) / L - 2 H Q - 2 H K) / 3 H.
    """
    text = config.get_text_config()
    hidden, heads, layers = text.hidden_size, text.num_attention_heads, text.num_hidden_layers
    key_heads = getattr(text, "num_key_value_heads", None) or heads
    head_size = getattr(text, "head_dim", None) or hidden // heads
    attention = 2 * hidden * head_size * (heads + key_heads)
    tied = bool(getattr(text, "tie_word_embeddings", True))
    embeddings = text.vocab_size * hidden * (1 if tied else 2)
    intermediate = ((parameters - embeddings) // layers - attention) // (3 * hidden)
    return Shape(layers, hidden, max(intermediate, hidden), heads, key_heads, head_size, text.vocab_size, tied)
