"""The model card of a stage's folder: training data, scores, code that loads it, limits."""

import json
import math
import re
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import ModelCardData
from safetensors import SafetensorError, safe_open

from rlhf.errors import InputError
from rlhf.runs.contract import read_contract
from rlhf.runs.markdown import markdown_table, render_template

STAGES = ("sft", "reward", "ppo")
TEMPLATE = Path(__file__).with_name("model_card.md.j2")
EMBEDDINGS = re.compile(r"^base_model\.model\.(?!.*\.(lora_|modules_to_save)).*(embed_|wte|wpe|lm_head)")
HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")


def model_card(folder: str | Path, stage: str, repo: str | None = None, evaluation: str | None = None) -> str:
    """Returns the text of README.md for the finished stage in `folder`.

    Args:
        folder: holds `adapter_config.json`; `config.yaml`, `result.json` and `calibration.json` may be absent.
        stage: "sft", "reward" or "ppo".
        repo: Hub id that the loading code names; the folder itself if None.
        evaluation: Markdown with the results of an evaluation, from headings of level 3 down.

    Raises:
        InputError: the stage has no model card, or one of the files is damaged.
    """
    if stage not in STAGES:
        raise InputError(f"Stage {stage!r} of {folder} has no model card. Pass sft, reward or ppo.")
    folder = Path(folder)
    config = read_mapping(folder / "config.yaml")
    base_name = read_mapping(folder / "adapter_config.json").get("base_model_name_or_path") or ""
    base, contract = portable(base_name), read_contract(folder)
    tokenizer = read_mapping(folder / "tokenizer_config.json")
    stop_tokens = tokenizer.get("stop_tokens") or [token_text(tokenizer.get("eos_token"))]
    return render_template(
        TEMPLATE,
        stage=stage,
        front_matter=_front_matter(base, stage, config),
        title=repo or folder,
        base=base,
        data=_data(config),
        pretraining_text=[_source(name) for name in config.get("pretrain_dataset_name") or []],
        config=yaml.safe_dump(config, sort_keys=False).strip(),
        scores=_scores(read_mapping(folder / "result.json")),
        evaluation=evaluation,
        base_code='resolve_model_name("sandbox")' if base == "sandbox" else json.dumps(base_name),
        gguf_code=_gguf_code(base_name),
        adapter_code=json.dumps(repo or str(folder)),
        bias_code=repr(read_mapping(folder / "calibration.json").get("bias", 0.0)),
        prompt_style=contract.prompt_style if contract else None,
        stop_tokens=json.dumps(stop_tokens, ensure_ascii=False),
        embedding_rows=embedding_rows(folder),
    )


def _gguf_code(base_name: str) -> str:
    """Returns the argument with which transformers loads a folder that holds a .gguf file alone; "" for others."""
    folder = Path(base_name).expanduser()
    files = [] if (folder / "config.json").exists() else sorted(folder.glob("*.gguf"))
    return f", gguf_file={json.dumps(files[0].name)}" if base_name and files else ""


def token_text(token: Any) -> str:
    """Returns the text of a token of tokenizer_config.json, where some versions write an object."""
    return token["content"] if isinstance(token, dict) else str(token)


def portable(value: Any) -> Any:
    """Returns the value without paths of this machine, in nested strings too: only the last part of a path remains.

    The sandbox's base, a folder of the installed package, becomes `sandbox`, its name in recipes.
    """
    if isinstance(value, dict):
        return {key: portable(item) for key, item in value.items()}
    if isinstance(value, list):
        return [portable(item) for item in value]
    if not isinstance(value, str):
        return value
    if Path(value).parts[-3:] == ("rlhf", "sandbox", "base"):
        return "sandbox"
    return Path(value).name if value.startswith(("/", "~", "./", "../")) else value


def embedding_rows(folder: Path) -> int | None:
    """Returns the number of embedding rows in the adapter of a folder; None without embeddings, as in most adapters.

    PEFT saves the embeddings with the adapter if the base has grown rows for new tokens.
    """
    weights = folder / "adapter_model.safetensors"
    if not weights.exists():
        return None
    try:
        with safe_open(weights, framework="pt") as file:
            names = [name for name in list(file.keys()) if EMBEDDINGS.search(name)]
            return file.get_slice(names[0]).get_shape()[0] if names else None
    except SafetensorError as error:
        raise InputError(f"{weights} is damaged ({error}). Run its stage again.") from error


def _front_matter(base: str, stage: str, config: dict[str, Any]) -> str:
    sources = [str(config.get("dataset_name")), *(config.get("pretrain_dataset_name") or [])]
    data = ModelCardData(
        base_model=base if HUB_ID.fullmatch(base) else None,  # the Hub accepts only ids here
        datasets=[name for name in sources if _is_hub_id(name)] or None,
        library_name="peft",
        pipeline_tag="text-classification" if stage == "reward" else "text-generation",
        tags=["rlhf", "instruct-rlhf", "lora", {"reward": "reward-model"}.get(stage, stage)],
    )
    return data.to_yaml()


def _data(config: dict[str, Any]) -> str | None:
    name = config.get("dataset_name")
    if name is None:
        return None
    split = "" if name == "sandbox" else f" ({config.get('dataset_train_split')})"
    return _source(str(name)) + split


def _source(name: str) -> str:
    if name == "sandbox":
        return "the sandbox of instruct-rlhf, a small invented world"
    return name if _is_hub_id(name) else Path(name).name


def _is_hub_id(name: str) -> bool:
    return HUB_ID.fullmatch(name) is not None and not Path(name).exists()


def _scores(result: dict[str, Any]) -> str | None:
    rows = _flat(result)
    return markdown_table(["measure", "value"], rows) if rows else None


def _flat(value: Any, name: str = "") -> list[tuple[str, str]]:
    """Returns numbers and strings of a nested dict as (dotted name, text), without lists, which are histories."""
    if isinstance(value, dict):
        return [row for key, item in value.items() for row in _flat(item, f"{name}.{key}".lstrip("."))]
    if isinstance(value, float):
        return [(name, f"{value:.4g}" if math.isfinite(value) else str(value))]
    return [(name, str(value))] if isinstance(value, int | str) else []


def read_mapping(path: Path) -> dict[str, Any]:
    """Returns the mapping in a YAML or JSON file; {} if the file is absent or holds something else."""
    if not path.exists():
        return {}
    text = path.read_text(encoding="utf-8")
    try:
        content = yaml.safe_load(text) if path.suffix == ".yaml" else json.loads(text)
    except (ValueError, yaml.YAMLError) as error:
        raise InputError(f"{path} is damaged ({error}). Run its stage again.") from error
    return content if isinstance(content, dict) else {}
