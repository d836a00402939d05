"""Sentences for base models that cannot be loaded, and for models that are loaded and cannot continue text."""

from pathlib import Path

from transformers import PreTrainedConfig

from rlhf.errors import InputError, first_line, machine_fault


def cannot_load(name: str | None, error: Exception) -> Exception:
    """Returns the InputError for a model whose files a library refuses; a fault of the machine as it is."""
    if isinstance(error, InputError) or machine_fault(error):
        return error
    folder, kind = Path(name or "").expanduser(), type(error).__name__
    if (folder / "adapter_config.json").exists() and not (folder / "config.json").exists():
        return InputError(f"{name} is an adapter and no model. Set model_name_or_path to its base.")
    if any(folder.glob("pytorch_model*.bin")) and not any(folder.glob("*.safetensors")):
        reason = "its weights are a pickle (.bin), which may run code"
        return InputError(f"Model {name} cannot be loaded: {reason}. Save them as safetensors.")
    if kind == "SafetensorError":
        reason = f"a .safetensors file is damaged or was not copied to its end ({first_line(error)})"
        return InputError(f"Model {name} cannot be loaded: {reason}. Copy or download it again.")
    if "ignore_mismatched_sizes" in str(error):
        return InputError(f"Model {name} cannot be loaded: the sizes in config.json are not those of its weights.")
    if "couldn't connect to" in str(error):
        reason = "it is neither a folder here nor on the Hub in reach"
        return InputError(f"Model {name} cannot be loaded: {reason}. Check the name and the connection.")
    reason = first_line(error.__cause__ or error) if kind.startswith("StrictDataclass") else first_line(error)
    return InputError(f"Model {name} cannot be loaded: {reason}. Check model_name_or_path and the files.")


def check_causal(config: PreTrainedConfig, name: str | None) -> None:
    """Raises InputError for a model that cannot continue text: an encoder, or an encoder with a decoder."""
    masked = [each for each in config.architectures or () if each.endswith("ForMaskedLM")]
    if config.is_encoder_decoder or (masked and not getattr(config, "is_decoder", False)):
        kind = "has an encoder" if config.is_encoder_decoder else f"is a {masked[0]}"
        raise InputError(f"Model {name} {kind} and does not continue text. Set model_name_or_path to a causal model.")
