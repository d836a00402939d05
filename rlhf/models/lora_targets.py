"""Layers that LoRA adapts by default: the linear layers of the language model in which an adapter takes effect."""

import re
from collections.abc import Collection
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any

from peft import LoraConfig
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.other import AuxiliaryTrainingWrapper
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D
from trl import ModelConfig

from rlhf.errors import InputError, require_at_least

# Read in the kernels by weight, past the layer: on a GPU the adapter would be left out, and dt_proj on a CPU too.
MAMBA_WEIGHTS = {"x_proj", "dt_proj", "out_proj"}


def names_or_pattern(target_modules: Collection[str] | None) -> Collection[str] | None:
    """Returns names of layers for one name, or several with commas, which PEFT would take for a regular expression.

    TRL makes a list of one name a string, and no layer's full name is `q_proj`.
    """
    if not isinstance(target_modules, str) or target_modules == "all-linear":
        return target_modules
    names = target_modules.replace(" ", "").split(",")
    return set(names) if all(re.fullmatch(r"\w+(\.\w+)*", name) for name in names) else target_modules


def check_lora_numbers(model_args: ModelConfig) -> None:
    """Raises InputError for a rank, a scale or a dropout with which nothing would be trained."""
    require_at_least(model_args, 1, "lora_r")
    if not model_args.lora_alpha > 0:
        raise InputError(f"lora_alpha is {model_args.lora_alpha}, and the adapter is scaled by it. Make it positive.")
    if not 0 <= model_args.lora_dropout < 1:
        raise InputError(f"lora_dropout is {model_args.lora_dropout}; it must be at least 0 and below 1.")


def refuse_lora_options(model_args: ModelConfig, folder: Path) -> None:
    """Refuses options of a new adapter where there is one already.

    Raises:
        InputError: a `lora_*` option, use_rslora or use_dora is not the default.
    """
    for each in fields(model_args):
        default = each.default_factory() if each.default_factory is not MISSING else each.default
        if "lora" in each.name or each.name == "use_dora":
            value = getattr(model_args, each.name)
            if value != default:
                raise InputError(
                    f"{each.name} is {value}, but the adapter {folder} is trained already, and its folder says it. "
                    f"Leave {each.name} out."
                )


def check_lora_values(config: LoraConfig, model: PreTrainedModel) -> None:
    """Raises ValueError for what PEFT accepts and would train nothing with, in whole or in part."""
    modules = [name for name, _ in model.named_modules()]
    named = {
        "lora_target_modules": (set() if isinstance(config.target_modules, str) else config.target_modules, modules),
        "lora_modules_to_save": (config.modules_to_save, modules),
        "lora_target_parameters": (config.target_parameters, [name for name, _ in model.named_parameters()]),
    }
    for option, (names, there) in named.items():
        for name in names or ():
            if name != "all-linear" and not any(full == name or full.endswith(f".{name}") for full in there):
                kind = "parameter" if option == "lora_target_parameters" else "module"
                raise ValueError(f"no {kind} is named {name}, which {option} wants.")


def linear_layers(model: PreTrainedModel) -> list[str]:
    """Returns the names of the layers that `all-linear` adapts: every linear layer of the decoder but

    - vision and audio towers and their projectors: no text passes them, and DDP would wait for their gradients;
    - routers of experts that give a tuple, and experts, which are fused into one weight: PEFT adapts that weight
      without dropout, and computes all experts' weights anew in every pass;
    - the projections of a Mamba layer that its kernels do not call as layers;
    - the heads.

    Args:
        model: may have adapters already.

    Raises:
        InputError: there is no such layer.
    """
    decoder, fused = model.get_decoder(), fused_expert_names(model)
    prefix = next(name for name, module in model.named_modules() if module is decoder)
    below, names = ("\n",), []
    for name, module in decoder.named_modules(prefix=prefix):
        parent, _, leaf = name.rpartition(".")
        if name.startswith(below):
            continue
        if isinstance(module, (BaseTunerLayer, AuxiliaryTrainingWrapper)):
            below += (f"{name}.",)  # its base layer and the weights of adapters
        layer = module.get_base_layer() if isinstance(module, BaseTunerLayer) else module
        if not isinstance(layer, (nn.Linear, Conv1D)) or "Router" in type(layer).__name__ or leaf in fused:
            continue
        if leaf in MAMBA_WEIGHTS and _is_mamba(model.get_submodule(parent)):
            continue
        names.append(name)
    if not names:
        raise InputError(f"{type(model).__name__} has no linear layer for LoRA. Set lora_target_modules.")
    return names


def fused_expert_names(model: PreTrainedModel) -> set[str]:
    """Returns the names of layers that PEFT takes for parts of the fused weights of experts.

    PEFT translates these names wherever they are, so shared experts and dense layers of these models have no adapter.
    """
    try:  # since PEFT 0.19
        from peft.utils import transformers_weight_conversion as conversion
    except ImportError:
        return set()
    patterns: dict[str, Any] = getattr(conversion, "_MODEL_TO_CONVERSION_PATTERN", {})
    mappings: dict[str, Any] = getattr(conversion, "_MOE_TARGET_MODULE_MAPPING", {})
    return set(mappings.get(patterns.get(model.config.model_type, ""), ()))


def _is_mamba(module: nn.Module) -> bool:
    return hasattr(module, "A_log") and hasattr(module, "D")
