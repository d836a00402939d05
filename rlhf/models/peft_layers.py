"""PEFT's layers in a base model: adds adapters, loads and collects their weights, and selects the active one.

Of PEFT's private names the library needs, as read in PEFT 0.21.2, `_active_adapter` and `_disable_adapters` of a layer,
behind its properties `active_adapter` and `disable_adapters`, and the names of experts' weights in `lora_targets`.
"""

from collections.abc import Sequence
from operator import attrgetter
from pathlib import Path
from types import MethodType
from typing import Any

from peft import LoraConfig, PeftModel, TaskType, get_peft_model_state_dict, set_peft_model_state_dict
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.other import AuxiliaryTrainingWrapper
from torch import Tensor, nn
from transformers import PreTrainedModel

from rlhf.errors import InputError
from rlhf.models.adapter_files import SCORE_MODULES
from rlhf.models.batched_lora import lora_factors, mixed_lora_forward
from rlhf.models.lora_targets import linear_layers

AdapterLayer = BaseTunerLayer | AuxiliaryTrainingWrapper


def unwrap_peft(model: PreTrainedModel | PeftModel) -> PreTrainedModel:
    """Returns the transformers model below a PEFT wrapper, adapter layers included."""
    if isinstance(model, PeftModel):
        return model.get_base_model()  # pyright: ignore[reportReturnType]
    return model


def adapter_layers(model: nn.Module) -> list[AdapterLayer]:
    """Modules of `model` that hold adapters: LoRA layers, and modules that an adapter trains in full."""
    return [module for module in model.modules() if isinstance(module, (BaseTunerLayer, AuxiliaryTrainingWrapper))]


def inject_adapter(model: PeftModel | PreTrainedModel, name: str, config: LoraConfig) -> PeftModel:
    """Adds untrained LoRA layers of `config`, which it changes; returns the PeftModel around the base."""
    config.task_type = TaskType.CAUSAL_LM
    config.modules_to_save = [m for m in config.modules_to_save or () if m not in SCORE_MODULES] or None
    config.base_model_name_or_path = config.base_model_name_or_path or model.name_or_path
    config.inference_mode = False  # PEFT would freeze the adapter; `SharedBase.add_adapter` decides what is trained
    if config.target_modules == "all-linear":
        config.target_modules = set(linear_layers(unwrap_peft(model)))  # pyright: ignore[reportAttributeAccessIssue]
    if isinstance(model, PeftModel):
        model.add_adapter(name, config)
        return model
    return PeftModel(model, config, adapter_name=name)


def load_adapter_weights(model: PeftModel, name: str, weights: dict[str, Tensor], source: str | Path) -> None:
    """Copies `weights`, with PEFT's names, into adapter `name`; `source` is where they come from, for errors.

    Raises:
        InputError: the weights differ from the adapter's in names or shapes.
    """
    lm = model.get_base_model()
    # If the base has grown a row for its pad token, PEFT may have saved the embeddings with the adapter. The shared
    # base keeps its own.
    base_weights = {key for key, _ in lm.named_parameters(remove_duplicate=False)}
    weights = {k: w for k, w in weights.items() if k.removeprefix("base_model.model.") not in base_weights}
    mismatch = f"Adapter {source} does not fit the base {lm.name_or_path}. Pass an adapter of this base"
    try:
        result = set_peft_model_state_dict(model, weights, adapter_name=name)
    except RuntimeError as error:  # shapes differ
        raise InputError(f"{mismatch}: {error}") from error
    missing = [key for key in result.missing_keys if f".{name}." in key or key.endswith(f".{name}")]
    if missing or result.unexpected_keys:
        key = (missing + result.unexpected_keys)[0]
        raise InputError(f"{mismatch}: see the weight {key}.")


def adapter_weights(model: PeftModel, name: str) -> dict[str, Tensor]:
    """Copies of the weights of adapter `name`, with PEFT's names."""
    weights = get_peft_model_state_dict(model, adapter_name=name, save_embedding_layers=False)
    return {key: weight.detach().clone() for key, weight in weights.items()}


def adapter_parameters(layers: Sequence[AdapterLayer], name: str) -> list[nn.Parameter]:
    """Parameters of adapter `name` in `layers`, always in the same order."""
    parameters: list[nn.Parameter] = []
    for layer in layers:
        for container in map(attrgetter, layer.adapter_layer_names):
            entries = container(layer)
            if name in entries:
                entry = entries[name]
                parameters += [entry] if isinstance(entry, nn.Parameter) else list(entry.parameters())
    return parameters


def select_adapter(
    layers: Sequence[Any],
    before: str | tuple[str, ...] | None,
    name: str | tuple[str, ...] | None,
    leaves: bool = False,
) -> None:
    """Switches `layers` from adapter `before` to `name`.

    None is the bare base; a tuple of R names gives each adapter 1 / R of the rows (`mixed_lora_forward`).

    The compiled graph of a tuple depends on the number and shapes of its adapters, not on their names. For that the
    forward is a bound method: torch.compile compares a bound method by its code, and other callables by identity.

    Args:
        leaves: see `lora_factors`.
    """
    for layer in layers:
        if isinstance(before, tuple):
            del layer.forward, layer.factors
        if isinstance(name, tuple):
            layer.factors = lora_factors(layer, name, leaves)
            layer.forward = MethodType(mixed_lora_forward, layer)
        else:
            layer._active_adapter = [] if name is None else [name]
            layer._disable_adapters = name is None
