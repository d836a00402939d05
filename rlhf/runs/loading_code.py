"""Python of a model card that loads the base of an adapter, as the stage loaded it."""

import json
from pathlib import Path
from typing import Any

from trl import ModelConfig

from rlhf.runs.published import gguf_file, hub_id, is_sandbox


def base_expression(base_name: str, portable: bool) -> str:
    """Returns the base as an expression; `portable` leaves the last part of a folder's path."""
    if is_sandbox(base_name):
        return 'resolve_model_name("sandbox")'
    return json.dumps(Path(base_name).name if portable and hub_id(base_name) is None else base_name)


def base_arguments(base_name: str, commit: str | None, config: dict[str, Any]) -> str:
    """Returns the further arguments of `from_pretrained`: commit, GGUF file, quantization; "" for most bases."""
    file = gguf_file(base_name)
    arguments = {"revision": commit and json.dumps(commit), "gguf_file": file and json.dumps(file)}
    arguments["quantization_config"] = "quantization" if quantization_code(config) else None
    return "".join(f", {name}={value}" for name, value in arguments.items() if value)


def quantization_code(config: dict[str, Any]) -> str | None:
    """Returns the configuration of a base in 4 or 8 bits, as TRL makes it of a stage's config.yaml; None without."""
    if config.get("load_in_8bit"):
        return "BitsAndBytesConfig(load_in_8bit=True)"
    if not config.get("load_in_4bit"):
        return None
    default = ModelConfig()
    dtype = config.get("dtype", default.dtype) or "auto"
    compute = "bfloat16" if dtype == "auto" else dtype  # as rlhf.models.loading
    kind = config.get("bnb_4bit_quant_type", default.bnb_4bit_quant_type)
    nested = config.get("use_bnb_nested_quant", default.use_bnb_nested_quant)
    return (
        f"BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type={json.dumps(kind)}, "
        f"bnb_4bit_use_double_quant={bool(nested)}, bnb_4bit_compute_dtype={json.dumps(compute)})"
    )
