"""The model card of a stage's folder: training data, scores, code that loads it, limits."""

import json
import math
import re
import shlex
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import EvalResult, ModelCardData
from safetensors import SafetensorError, safe_open

from rlhf.errors import InputError
from rlhf.runs.contract import read_contract
from rlhf.runs.loading_code import base_arguments, base_expression, quantization_code
from rlhf.runs.markdown import fenced, markdown_table, render_template
from rlhf.runs.objects import read_object
from rlhf.runs.published import gguf_file, hub_id, is_hub_id, is_sandbox, languages_of, license_of, metadata_of

STAGES = ("sft", "reward", "ppo")
TEMPLATE = Path(__file__).with_name("model_card.md.j2")
EMBEDDINGS = re.compile(r"^base_model\.model\.(?!.*\.(lora_|modules_to_save)).*(embed_|wte|wpe|lm_head)")


@dataclass(frozen=True)
class Evaluation:
    """Findings of an evaluation about a stage's adapter.

    Attributes:
        text: Markdown, from headings of level 3 down.
        results: its win rates, for the metadata of the card.
    """

    text: str
    results: list[EvalResult] = field(default_factory=list)


def model_card(
    folder: str | Path,
    stage: str,
    repo: str | None = None,
    evaluation: Evaluation | None = None,
    base_name: str | None = None,
    revision: str | None = None,
    online: bool = False,
) -> str:
    """Returns the text of README.md for the finished stage in `folder`.

    Args:
        folder: holds `adapter_config.json`; `config.yaml`, `result.json` and `calibration.json` may be absent.
        stage: "sft", "reward" or "ppo".
        repo: Hub id that the loading code names, for a card without paths of this machine; None: the folder itself.
        evaluation: of this adapter.
        base_name: the base, if adapter_config.json has another name for it.
        revision: branch of `repo` that the card is on; None for the main one.
        online: ask the Hub for the license of the base and the languages of the data, not only its cache.

    Raises:
        InputError: the stage has no model card, or one of the files is damaged.
    """
    if stage not in STAGES:
        raise InputError(f"Stage {stage!r} of {folder} has no model card. Pass sft, reward or ppo.")
    folder = Path(folder)
    config, contract = read_object(folder / "config.yaml") or {}, read_contract(folder)
    base_name = base_name or str(
        (read_object(folder / "adapter_config.json") or {}).get("base_model_name_or_path") or ""
    )
    commit = contract.base.get("revision") if contract and hub_id(base_name) else None
    tokenizer, calibration = (
        read_object(folder / f"{name}.json") or {} for name in ("tokenizer_config", "calibration")
    )
    result = read_object(folder / "result.json") or {}
    said = metadata_of(base_name, revision=commit, online=online)
    sources, accuracy = _sources(config), _accuracy(result, config) if stage == "reward" else []
    return render_template(
        TEMPLATE,
        stage=stage,
        front_matter=ModelCardData(
            base_model=hub_id(base_name),  # the Hub accepts only ids here
            base_model_relation="adapter" if hub_id(base_name) else None,
            datasets=[name for name in sources if is_hub_id(name)] or None,
            language=languages_of([metadata_of(name, "dataset", online=online) for name in sources]),
            library_name="peft",
            pipeline_tag="text-classification" if stage == "reward" else "text-generation",
            tags=["rlhf", "instruct-rlhf", "lora", {"reward": "reward-model"}.get(stage, stage)],
            **license_of(said),
            **_model_index(repo or str(folder), [*(evaluation.results if evaluation else []), *accuracy]),
        ).to_yaml(),
        title=repo or folder,
        at_revision=f", revision={json.dumps(revision)}" if revision else "",
        revision=revision,
        base=base_text(base_name),
        base_is_folder=bool(base_name) and hub_id(base_name) is None and not is_sandbox(base_name),
        base_revision=commit,
        license=license_text(said),
        data=_data(config),
        pretraining_text=[source_text(name) for name in config.get("pretrain_dataset_name") or []],
        functions=" and ".join(f"`{name}`" for name in config.get("reward_funcs") or []),
        reward_model=bool(config.get("reward_model_path")),
        config=fenced(yaml.safe_dump(config, sort_keys=False).strip(), "yaml"),
        accuracy=_accuracy_text(result) if stage == "reward" else None,
        scores=_scores(result),
        evaluation=evaluation and evaluation.text,
        base_code=base_expression(base_name, portable=repo is not None),
        base_arguments=base_arguments(base_name, commit, config),
        quantization=quantization_code(config),
        adapter_word=shlex.quote(repo or str(folder)),
        adapter_code=json.dumps(repo or str(folder)),
        bias_code=repr(calibration["bias"]) if "bias" in calibration else None,
        prompt_style=contract.prompt_style if contract else None,
        stop_tokens=json.dumps(stop_tokens(tokenizer), ensure_ascii=False),
        embedding_rows=embedding_rows(folder),
    )


def base_text(base_name: str) -> str:
    """Returns the name of a base for readers, without a path: that of its GGUF file, if it is one; "" if unknown."""
    if not base_name or is_sandbox(base_name):
        return "sandbox" if base_name else ""
    return hub_id(base_name) or Path(gguf_file(base_name) or base_name).name.removesuffix(".gguf")


def license_text(metadata: dict[str, Any]) -> str | None:
    """Returns a base's license for readers; None if it is unknown."""
    found = license_of(metadata)
    if found["license"] == "unknown":
        return None
    name = found.get("license_name") if found["license"] == "other" else None
    link = found.get("license_link")
    return f"{name or found['license']}{f' ({link})' if link else ''}"


def stop_tokens(tokenizer: dict[str, Any]) -> list[str]:
    """Returns the tokens that end an answer, of a tokenizer_config.json."""
    return tokenizer.get("stop_tokens") or [token_text(tokenizer.get("eos_token"))]


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
    if is_sandbox(value):
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


def _sources(config: dict[str, Any]) -> list[str]:
    named = [config["dataset_name"]] if config.get("dataset_name") else []
    return [str(name) for name in [*named, *(config.get("pretrain_dataset_name") or [])]]


def _model_index(title: str, results: list[EvalResult]) -> dict[str, Any]:
    return {"model_name": title.rpartition("/")[2], "eval_results": results} if results else {}


def _accuracy(result: dict[str, Any], config: dict[str, Any]) -> list[EvalResult]:
    """Returns the accuracy on held-out comparisons of a reward stage's result.json; [] if it was not measured."""
    if not _finite(result, "accuracy", "low", "high"):
        return []
    name = str(config.get("dataset_name"))
    measured = EvalResult(
        task_type="text-classification",
        dataset_type=name if is_hub_id(name) else Path(name).name,
        dataset_name=source_text(name),
        dataset_split="a tenth of the conversations, held out for validation",
        metric_type="accuracy",
        metric_name="Pairs in which the better answer gets the higher score",
        metric_value=round(result["accuracy"], 4),
        metric_args={key: result[key] for key in ("low", "high", "n_pairs", "n_prompts") if key in result},
    )
    return [measured]


def _accuracy_text(result: dict[str, Any]) -> str | None:
    if not _finite(result, "accuracy", "low", "high", "n_pairs", "n_prompts"):
        return None
    accuracy, low, high = (f"{100 * result[key]:.1f}" for key in ("accuracy", "low", "high"))
    return (
        f"On {result['n_pairs']:,} pairs of answers to {result['n_prompts']:,} held-out prompts, it prefers the answer "
        f"that labelers ranked higher {accuracy} % of the time (95 % interval over prompts {low} to {high})."
    )


def _finite(result: dict[str, Any], *names: str) -> bool:
    return all(isinstance(result.get(name), int | float) and math.isfinite(result[name]) for name in names)


def _data(config: dict[str, Any]) -> str | None:
    name = config.get("dataset_name")
    if name is None:
        return None
    split = "" if name == "sandbox" else f" ({config.get('dataset_train_split')})"
    return source_text(str(name)) + split


def source_text(name: str) -> str:
    """Returns the name of a data set for readers, without the path of a file."""
    if name == "sandbox":
        return "the sandbox of instruct-rlhf, a small invented world"
    return name if is_hub_id(name) else Path(name).name


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
