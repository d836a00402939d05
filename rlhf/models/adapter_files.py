"""Adapters on disk: plain PEFT folders, read and written without a model.

    adapter_config.json, adapter_model.safetensors      as written by PEFT's save_pretrained
    calibration.json                                    {"bias": b}, for reward and value adapters
    contract.json, trained_on.safetensors               see `rlhf.runs.contract`

Reward and value adapters are saved as by TRL's RewardTrainer: task type SEQ_CLS, with the full head `score` beside the
LoRA weights. b is the mean raw score of demonstrations; every reported score is raw - b.
"""

import json
import logging
from pathlib import Path

import torch
from huggingface_hub import snapshot_download
from peft import LoraConfig, PeftConfig, PeftType, TaskType
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from rlhf.errors import InputError
from rlhf.models.contracts import check_base
from rlhf.models.loading import resolve_model_name
from rlhf.runs.artifacts import say_once
from rlhf.runs.contract import FILE_NAME, IDS_NAME, read_contract
from rlhf.runs.digests import file_digest, json_digest, weights_digest

CONFIG, WEIGHTS, CALIBRATION = "adapter_config.json", "adapter_model.safetensors", "calibration.json"
SCORE = "base_model.model.score.weight"
NOT_APPLIED = ("base_model_name_or_path", "revision", "inference_mode", "peft_version")
SCORE_MODULES = ("classifier", "score")  # PEFT adds both to modules_to_save for SEQ_CLS
CHANGE_THE_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")  # PEFT's initializations that rewrite base weights


def adapter_folder(name: str | Path) -> Path:
    """Returns the local folder of an adapter; downloads an adapter of the Hub.

    Raises:
        InputError: neither a folder nor an adapter on the Hub, or a folder without a LoRA adapter in safetensors.
    """
    folder = Path(name).expanduser()
    if not folder.is_dir():
        if str(name).startswith((".", "/", "~")) or str(name).count("/") != 1:  # a Hub id is `owner/name`
            raise InputError(f"Adapter folder {name} does not exist. Run the stage that writes it first.")
        try:
            files = ["adapter_*", "*.json", "*.jinja", "tokenizer*", "vocab*", "merges*", IDS_NAME]
            folder = Path(snapshot_download(str(name), allow_patterns=files))
        except (OSError, ValueError) as error:
            raise InputError(
                f"Adapter {name} is neither a local folder nor on the Hub. Check its name and your connection."
            ) from error
    for file in (CONFIG, WEIGHTS):
        if not (folder / file).is_file():
            raise InputError(f"Adapter folder {name} holds no {file}. Run the stage that writes it to the end.")
    return folder


def check_adapter(name: str | Path, base_name: str | None = None, revision: str | None = None) -> LoraConfig:
    """Checks an adapter before a model is loaded; returns its configuration.

    Args:
        name: folder or Hub id of the adapter.
        base_name: the model to load it on; None: the base that the adapter names.
        revision: of a base on the Hub; None or "main": the commit that the adapter was trained on.

    Raises:
        InputError: missing or incomplete adapter, not LoRA, changes the base, or trained on another base.
    """
    folder = adapter_folder(name)
    try:
        config = PeftConfig.from_pretrained(str(folder))
    except (ValueError, TypeError, KeyError) as error:
        raise InputError(
            f"{folder / CONFIG} is not a PEFT configuration: {error}. Run the stage that writes it again."
        ) from error
    if not isinstance(config, LoraConfig) or config.peft_type != PeftType.LORA:
        kind = getattr(config.peft_type, "value", config.peft_type)
        raise InputError(f"Adapter {name} has PEFT type {kind}. Pass a LORA adapter.")
    check_lora_config(config, f"Adapter {name}")
    trained_on, contract, same = config.base_model_name_or_path, read_contract(folder), None
    if base_name is not None and contract is not None:
        if revision in (None, "main"):
            revision = contract.base.get("revision") or "main"
        same = check_base(folder, contract, base_name, revision)
    if base_name is not None and not same and trained_on and not same_base(trained_on, base_name):
        raise InputError(
            f"Adapter {name} was trained on {trained_on}, not on {base_name}. Set model_name_or_path to its base."
        )
    return config


def check_lora_config(config: PeftConfig | None, owner: str) -> None:
    """Checks that an adapter leaves the base as it is, for the other adapters and for the reference of PPO.

    Args:
        config: LoRA or another method; None is no adapter.
        owner: begins the sentence of the error.

    Raises:
        InputError: an initialization that takes a part of the base's weights away, trained biases, or copied layers.
    """
    if not isinstance(config, LoraConfig):
        return
    start = str(config.init_lora_weights).lower()
    if start.startswith(CHANGE_THE_BASE):
        raise InputError(
            f"{owner} has init_lora_weights {config.init_lora_weights}, which changes the base for all other adapters. "
            "Train with init_lora_weights true, or save the adapter with path_initial_model_for_weight_conversion, "
            "which makes it plain LoRA."
        )
    if getattr(config, "kasa_config", None):
        raise InputError(f"{owner} has a kasa_config, which changes the base for all other adapters. Leave it out.")
    if config.bias != "none":
        raise InputError(
            f"{owner} has trained biases of the shared base (bias: {config.bias}). Train it with bias: none."
        )
    if config.layer_replication:
        raise InputError(f"{owner} copies layers of the base (layer_replication). Leave it out.")


def check_policy_adapter(name: str | Path, base_name: str | None = None, revision: str | None = None) -> LoraConfig:
    """Checks an adapter as `check_adapter` does, and that it writes text.

    Raises:
        InputError: see `check_adapter`; or the adapter is a sequence classifier.
    """
    config = check_adapter(name, base_name, revision)
    if config.task_type == TaskType.SEQ_CLS:
        raise InputError(f"Adapter {name} is a reward model. Pass the folder of an SFT or PPO stage.")
    return config


def check_reward_adapter(name: str | Path, base_name: str | None = None, revision: str | None = None) -> LoraConfig:
    """Checks an adapter as `check_adapter` does, and that it is a reward model.

    Raises:
        InputError: see `check_adapter`; or the adapter is not a sequence classifier.
    """
    config = check_adapter(name, base_name, revision)
    if config.task_type != TaskType.SEQ_CLS:
        raise InputError(
            f"Adapter {name} is not a reward model: its task type is {config.task_type}, not SEQ_CLS. "
            "Pass the folder of a reward stage."
        )
    return config


def same_base(a: str, b: str) -> bool:
    """True if two model names mean the same base model: a folder may have moved, or hold a copy of a Hub model.

    Two existing folders are compared by their weights. Otherwise the last part of the names decides, so that
    `HuggingFaceTB/SmolLM2-135M` equals `/models/SmolLM2-135M`. The sandbox's base is the same in every installation.
    """
    if _is_sandbox(a) or _is_sandbox(b):
        return _is_sandbox(a) and _is_sandbox(b)
    a_folder, b_folder = Path(a).expanduser(), Path(b).expanduser()
    if a_folder.is_dir() and b_folder.is_dir():
        weights = weights_digest(a_folder)
        return a_folder.resolve() == b_folder.resolve() or (weights is not None and weights == weights_digest(b_folder))
    return a_folder.name == b_folder.name


def _is_sandbox(name: str) -> bool:
    return name == "sandbox" or Path(name).parts[-3:] == ("rlhf", "sandbox", "base")


def base_model_name(config: LoraConfig, name: str | Path) -> str:
    """Returns the base model that an adapter names; for the sandbox's base, the folder of this installation."""
    base_name = config.base_model_name_or_path
    if not base_name:
        raise InputError(f"Adapter {name} does not name its base model. Set model_name_or_path.")
    if Path(base_name).is_absolute() and not Path(base_name).exists() and not _is_sandbox(base_name):
        raise InputError(
            f"Adapter {name} was trained on the folder {base_name}, which does not exist here. Set model_name_or_path "
            "to the base."
        )
    return resolve_model_name("sandbox" if _is_sandbox(base_name) else base_name)


def read_adapter(folder: Path) -> tuple[dict[str, Tensor], Tensor | None]:
    """Returns the weights of an adapter with PEFT's names, and its scalar head [1, H] or None."""
    try:
        weights = load_file(folder / WEIGHTS)
    except SafetensorError as error:
        raise _damaged(folder, error) from error
    score = weights.pop(SCORE, None)
    return weights, score


def read_names(folder: Path) -> list[str]:
    """Returns PEFT's names of an adapter's weights, without reading the weights."""
    try:
        with safe_open(folder / WEIGHTS, "pt") as file:
            return list(file.keys())
    except SafetensorError as error:
        raise _damaged(folder, error) from error


def _damaged(folder: Path, error: SafetensorError) -> InputError:
    return InputError(f"{folder / WEIGHTS} is damaged ({error}). Run the stage that writes it again.")


def write_adapter(folder: Path, config: LoraConfig, weights: dict[str, Tensor]) -> None:
    """Writes an adapter as PEFT's `save_pretrained` does, without the model card."""
    folder.mkdir(parents=True, exist_ok=True)
    save_file(
        {name: weight.detach().cpu().contiguous() for name, weight in weights.items()},
        folder / WEIGHTS,
        metadata={"format": "pt"},
    )
    config.save_pretrained(str(folder))


def remove_adapter(folder: str | Path) -> None:
    """Deletes weights, bias and contract in a folder to which another adapter will be written.

    If that run is killed in between, the folder holds no adapter, instead of one with the bias of another.
    """
    for file in (WEIGHTS, CALIBRATION, FILE_NAME, IDS_NAME):
        (Path(folder) / file).unlink(missing_ok=True)


def adapter_digest(folder: str | Path) -> str:
    """Returns a hash of an adapter's weights, 16 hex digits."""
    return file_digest(Path(folder) / WEIGHTS)


def adapter_config_digest(folder: str | Path) -> str:
    """Returns a hash of what adapter_config.json says on how the weights are applied, such as lora_alpha."""
    config = json.loads((Path(folder) / CONFIG).read_text(encoding="utf-8"))
    if isinstance(targets := config.get("target_modules"), list):
        config["target_modules"] = sorted(targets)  # PEFT writes a set
    return json_digest({key: value for key, value in config.items() if key not in NOT_APPLIED})


def read_calibration(name: str | Path) -> float:
    """Returns the bias b of a reward or value adapter that is used with its head.

    Without calibration.json, as in checkpoints and in adapters trained with TRL alone, it is 0, which is said once.
    """
    return read_bias(adapter_folder(name))


def read_bias(folder: Path) -> float:
    """Returns the bias of an adapter or a merged model in a folder; see `read_calibration`."""
    path = folder / CALIBRATION
    if not path.exists():
        say_once(
            f"{path.parent} has no {CALIBRATION}: its scores are raw, so 0 is not the mean score of demonstrations; "
            "use the folder of a reward stage that had demonstrations to calibrate with",
            logging.WARNING,
        )
        return 0.0
    try:
        bias = float(json.loads(path.read_text(encoding="utf-8"))["bias"])
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f'{path} must hold {{"bias": <number>}}. Run the reward stage again.') from error
    if not torch.isfinite(torch.tensor(bias)):
        raise InputError(f"{path} holds the bias {bias}, which is not finite. Run the reward stage again.")
    return bias


def write_calibration(folder: str | Path, bias: float, extra: dict | None = None) -> None:
    """Writes calibration.json: {"bias": bias, **extra}, e.g. the number of demonstrations and the spread of scores."""
    text = json.dumps({"bias": float(bias), **(extra or {})}, indent=2)
    (Path(folder) / CALIBRATION).write_text(text + "\n", encoding="utf-8")
