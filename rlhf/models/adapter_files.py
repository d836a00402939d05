"""Adapters on disk: plain PEFT folders, read and written without a model.

    adapter_config.json, adapter_model.safetensors      what PEFT's save_pretrained writes
    calibration.json                                    {"bias": b}, of reward and value adapters

Reward and value adapters have the form in which TRL's RewardTrainer saves them: task type SEQ_CLS, the head `score`
saved in full beside the LoRA weights. b is the mean raw score of demonstrations; every score shown is raw - b.
"""

import hashlib
import json
from pathlib import Path

import torch
from huggingface_hub import snapshot_download
from peft import LoraConfig, PeftConfig, PeftType, TaskType
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from rlhf.errors import InputError
from rlhf.models.loading import resolve_model_name

CONFIG, WEIGHTS, CALIBRATION = "adapter_config.json", "adapter_model.safetensors", "calibration.json"
SCORE = "base_model.model.score.weight"
SCORE_MODULES = ("classifier", "score")  # the two names that PEFT adds to modules_to_save for SEQ_CLS


def adapter_folder(name: str | Path) -> Path:
    """The local folder of an adapter; one that is on the Hub is downloaded first.

    Raises:
        InputError: neither a folder nor an adapter on the Hub, or a folder without a LoRA adapter in safetensors.
    """
    folder = Path(name).expanduser()
    if not folder.is_dir():
        if str(name).startswith((".", "/", "~")) or str(name).count("/") != 1:  # a Hub id is `owner/name`
            raise InputError(f"adapter folder {name} does not exist; run the stage that writes it first.")
        try:
            files = ["adapter_*", "*.json", "*.jinja", "tokenizer*", "vocab*", "merges*"]
            folder = Path(snapshot_download(str(name), allow_patterns=files))
        except (OSError, ValueError) as error:
            raise InputError(f"adapter {name} is neither a local folder nor on the Hub within reach.") from error
    for file in (CONFIG, WEIGHTS):
        if not (folder / file).is_file():
            raise InputError(f"adapter folder {name} holds no {file}; run the stage that writes it to its end.")
    return folder


def check_adapter(name: str | Path, base_name: str | None = None) -> LoraConfig:
    """Finds everything that can be wrong with an adapter before a model is loaded; returns its configuration.

    Args:
        name: folder or Hub id of the adapter.
        base_name: model that shall carry it; None: whichever it names itself.

    Raises:
        InputError: missing or incomplete adapter, not LoRA, or trained on another base.
    """
    folder = adapter_folder(name)
    try:
        config = PeftConfig.from_pretrained(str(folder))
    except (ValueError, TypeError, KeyError) as error:
        raise InputError(f"{folder / CONFIG} is not a PEFT configuration: {error}.") from error
    if config.peft_type != PeftType.LORA:
        raise InputError(f"adapter {name} is of PEFT type {config.peft_type.value}; only LORA adapters are supported.")
    if config.bias != "none":
        raise InputError(f"adapter {name} has trained biases of its base (bias: {config.bias}); the base is shared.")
    trained_on = config.base_model_name_or_path
    if base_name is not None and trained_on and not same_base(trained_on, base_name):
        raise InputError(
            f"adapter {name} was trained on {trained_on}, not on {base_name}; set model_name_or_path to its base."
        )
    return config


def check_reward_adapter(name: str | Path, base_name: str | None = None) -> LoraConfig:
    """`check_adapter`, and that the adapter scores instead of writing.

    Raises:
        InputError: as `check_adapter`, or it was not trained as a sequence classifier.
    """
    config = check_adapter(name, base_name)
    if config.task_type != TaskType.SEQ_CLS:
        raise InputError(f"adapter {name} is not a reward model: its task type is {config.task_type}, not SEQ_CLS.")
    return config


def same_base(a: str, b: str) -> bool:
    """Whether two model names mean one base model: a folder may have moved, a Hub model may lie in a folder.

    Two folders that both exist are compared as folders; else the last part of the name decides, so that
    `HuggingFaceTB/SmolLM2-135M` is `/models/SmolLM2-135M`. The sandbox's base is one model wherever it is installed.
    """
    if _is_sandbox(a) or _is_sandbox(b):
        return _is_sandbox(a) and _is_sandbox(b)
    a_folder, b_folder = Path(a).expanduser(), Path(b).expanduser()
    if a_folder.is_dir() and b_folder.is_dir():
        return a_folder.resolve() == b_folder.resolve()
    return a_folder.name == b_folder.name


def _is_sandbox(name: str) -> bool:
    return name == "sandbox" or Path(name).parts[-3:] == ("rlhf", "sandbox", "base")


def base_model_name(config: LoraConfig, name: str | Path) -> str:
    """The model that an adapter names as its base; the sandbox's base is found wherever it is installed now."""
    base_name = config.base_model_name_or_path
    if not base_name:
        raise InputError(f"adapter {name} does not name its base model; give model_name_or_path.")
    return resolve_model_name("sandbox" if _is_sandbox(base_name) else base_name)


def read_adapter(folder: Path) -> tuple[dict[str, Tensor], Tensor | None]:
    """The weights of an adapter with PEFT's names, and apart from them its scalar head [1, hidden], if it has one."""
    try:
        weights = load_file(folder / WEIGHTS)
    except SafetensorError as error:
        raise InputError(f"{folder / WEIGHTS} is damaged ({error}); run the stage that writes it again.") from error
    score = weights.pop(SCORE, None)
    return weights, score


def write_adapter(folder: Path, config: LoraConfig, weights: dict[str, Tensor]) -> None:
    """Writes what PEFT's `save_pretrained` writes, minus its model card."""
    folder.mkdir(parents=True, exist_ok=True)
    save_file(
        {name: weight.detach().cpu().contiguous() for name, weight in weights.items()},
        folder / WEIGHTS,
        metadata={"format": "pt"},
    )
    config.save_pretrained(folder)


def remove_adapter(folder: str | Path) -> None:
    """Deletes the weights and the bias in a folder that another adapter is to be written to.

    One that is killed while it is written then leaves no adapter, and not one with the bias of another.
    """
    for file in (WEIGHTS, CALIBRATION):
        (Path(folder) / file).unlink(missing_ok=True)


def adapter_digest(folder: str | Path) -> str:
    """A hash of an adapter's weights."""
    with (Path(folder) / WEIGHTS).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:16]


def read_calibration(name: str | Path) -> float:
    """The bias b of a reward adapter; 0 where there is no calibration.json, as in adapters that TRL alone made."""
    path = adapter_folder(name) / CALIBRATION
    if not path.exists():
        return 0.0
    try:
        bias = float(json.loads(path.read_text(encoding="utf-8"))["bias"])
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f'{path} must hold {{"bias": <number>}}; run the reward stage again.') from error
    if not torch.isfinite(torch.tensor(bias)):
        raise InputError(f"{path} holds the bias {bias}; run the reward stage again.")
    return bias


def write_calibration(folder: str | Path, bias: float, extra: dict | None = None) -> None:
    """Writes calibration.json: {"bias": bias, **extra}, e.g. the number of demonstrations and the spread of scores."""
    text = json.dumps({"bias": float(bias), **(extra or {})}, indent=2)
    (Path(folder) / CALIBRATION).write_text(text + "\n", encoding="utf-8")
