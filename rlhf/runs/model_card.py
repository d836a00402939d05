"""The model card of a stage's folder: what it was trained on, how it scored, how to load it, what it is not for."""

import json
import math
import re
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import ModelCardData
from safetensors import SafetensorError, safe_open

from rlhf.errors import InputError

HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")

SUMMARY = {
    "sft": "LoRA adapter that turns {base} into a model that follows instructions: supervised fine-tuning on "
    "demonstrations, the first stage of InstructGPT (arXiv 2203.02155, section 3.5).",
    "reward": "Reward model on {base}: a LoRA adapter and a scalar head that score an answer to a prompt, trained on "
    "human rankings of several answers, the second stage of InstructGPT (arXiv 2203.02155, section 3.5). "
    "Its bias is calibrated so that labelers' demonstrations score 0 on average.",
    "ppo": "LoRA adapter that turns {base} into a model that follows instructions: reinforcement learning (PPO) from a "
    "reward model, the third stage of InstructGPT (arXiv 2203.02155, section 3.5). The weights are the exponential "
    "moving average of the policy; `value/` holds the value model, which only further training needs.",
}
LIMITS = {
    "sft": "It imitates its demonstrations, their mistakes and their manner included.",
    "reward": "Scores compare answers to one prompt; across prompts they mean little. Answers unlike those it was "
    "trained on can score high without being good, the more so the harder a policy is optimised against it.",
    "ppo": "It was optimised against a learned reward model, and will have found some of that model's mistakes: longer "
    "or more confident is not more correct. Judge its answers by something other than that reward.",
}
COMMON_LIMITS = (
    "Knowledge, errors and biases of the base remain. Beyond the numbers above it has not been tested for truthfulness "
    "or harm; test it on your own use before you rely on it."
)
SANDBOX_LIMITS = "It lives in an invented world: nothing that it says is about the real one."

GENERATE = """\
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer
{imports}
base, adapter = {base}, {adapter}
tokenizer = AutoTokenizer.from_pretrained(adapter)
model = AutoModelForCausalLM.from_pretrained(base)
{resize}model = PeftModel.from_pretrained(model, adapter).eval()

messages = [{{"role": "user", "content": "Tell me about the sea."}}]
inputs = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=True, return_tensors="pt")
tokens = dict(eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id)
output = model.generate(**inputs, max_new_tokens=100, do_sample=False, **tokens)
print(tokenizer.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True))
"""
SCORE = """\
import torch
from peft import PeftModel
from transformers import AutoModelForSequenceClassification, AutoTokenizer
{imports}
base, adapter = {base}, {adapter}
bias = {bias!r}  # of calibration.json
tokenizer = AutoTokenizer.from_pretrained(adapter)
model = AutoModelForSequenceClassification.from_pretrained(base, num_labels=1, pad_token_id=tokenizer.pad_token_id)
{resize}model = PeftModel.from_pretrained(model, adapter).eval()

messages = [{{"role": "user", "content": "Tell me about the sea."}}, {{"role": "assistant", "content": "It is salty."}}]
ids = tokenizer.apply_chat_template(messages, return_dict=False)
while ids[-1] != tokenizer.eos_token_id:  # the score is read at the end of the answer; some templates go on
    ids.pop()
with torch.no_grad():
    score = model(torch.tensor([ids])).logits[0, 0].item() - bias
print(score)
"""
# PEFT saves the embeddings with the adapter of a base that had no row to spare for the pad token.
RESIZE = "model.resize_token_embeddings({rows}, mean_resizing=False)  # one more for the pad token\n"
EMBEDDINGS = re.compile(r"embed|wte|lm_head")
# Templates of models differ in what follows an answer, so the shortest right way to a score is this library's.
SCORE_SHORT = """\
from rlhf import load_reward_model  # pip install instruct-rlhf

model = load_reward_model({adapter})  # logits are calibrated scores
"""

CARD = """\
---
{front_matter}
---

# {title}

{summary}

## What it was trained on

- Base model: {base}
{data}
<details><summary>Full configuration (config.yaml)</summary>

```yaml
{config}
```

</details>

## How it scored

{scores}

## How to load it

```python
{code}```
{more_code}
## Limits

{limits}
"""


def model_card(folder: str | Path, stage: str, repo: str | None = None) -> str:
    """Text of README.md for the finished stage in `folder`.

    Args:
        folder: holds `adapter_config.json`, and `config.yaml`, `result.json`, `calibration.json` where there are.
        stage: "sft", "reward" or "ppo".
        repo: Hub id that the loading code names; the folder itself if None.

    Raises:
        InputError: the stage is not one of those, or one of the files is damaged.
    """
    if stage not in SUMMARY:
        raise InputError(f"no model card is known for stage {stage!r} of {folder}; it must be sft, reward or ppo.")
    folder = Path(folder)
    config = read_mapping(folder / "config.yaml")
    base_name = read_mapping(folder / "adapter_config.json").get("base_model_name_or_path") or ""
    base = portable(base_name)
    in_package = base == "sandbox"
    fields = {
        "base": 'resolve_model_name("sandbox")' if in_package else json.dumps(base_name),
        "imports": "from rlhf import resolve_model_name  # pip install instruct-rlhf\n"
        if in_package
        else "",
        "adapter": json.dumps(repo or str(folder)),
        "resize": _resize(folder / "adapter_model.safetensors"),
    }
    if stage == "reward":
        bias = read_mapping(folder / "calibration.json").get("bias", 0.0)
        code = SCORE.format(bias=bias, **fields)
        more_code = f"\nor, shorter,\n\n```python\n{SCORE_SHORT.format(**fields)}```\n"
    else:
        code, more_code = GENERATE.format(**fields), ""
    limits = [LIMITS[stage], COMMON_LIMITS] + ([SANDBOX_LIMITS] if in_package else [])
    return CARD.format(
        front_matter=_front_matter(base, stage, config),
        title=repo or folder,
        summary=SUMMARY[stage].format(base=base or "its base model"),
        base=base or "unknown",
        data=_data(config),
        config=yaml.safe_dump(config, sort_keys=False).strip(),
        scores=_scores(read_mapping(folder / "result.json")),
        code=code,
        more_code=more_code,
        limits=" ".join(limits),
    )


def portable(value: Any) -> Any:
    """The value, strings within it included, without this machine's paths: of a folder's name its last part remains.

    The sandbox's base, which lies in the installed package, is `sandbox`, as recipes call it.
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


def _resize(weights: Path) -> str:
    """The line that gives the base as many embedding rows as the adapter brings, if it brings any."""
    if not weights.exists():
        return ""
    try:
        with safe_open(weights, framework="pt") as file:
            names = [name for name in list(file.keys()) if EMBEDDINGS.search(name) and ".lora_" not in name]
            return RESIZE.format(rows=file.get_slice(names[0]).get_shape()[0]) if names else ""
    except SafetensorError as error:
        raise InputError(f"{weights} is damaged ({error}); run its stage again.") from error


def _front_matter(base: str, stage: str, config: dict[str, Any]) -> str:
    sources = [str(config.get("dataset_name")), *(config.get("pretrain_dataset_name") or [])]
    data = ModelCardData(
        base_model=base if HUB_ID.fullmatch(base) else None,  # the Hub takes nothing but ids here
        datasets=[name for name in sources if _is_hub_id(name)] or None,
        library_name="peft",
        pipeline_tag="text-classification" if stage == "reward" else "text-generation",
        tags=["rlhf", "instruct-rlhf", "lora", {"reward": "reward-model"}.get(stage, stage)],
    )
    return data.to_yaml()


def _data(config: dict[str, Any]) -> str:
    name, texts = config.get("dataset_name"), config.get("pretrain_dataset_name")
    lines = []
    if name is not None:
        split = "" if name == "sandbox" else f" ({config.get('dataset_train_split')})"
        lines.append(f"- Data: {_source(str(name))}{split}\n")
    if texts:
        lines.append(f"- Pretraining text: {', '.join(map(_source, texts))}\n")
    return "".join(lines)


def _source(name: str) -> str:
    if name == "sandbox":
        return "the sandbox of instruct-rlhf, a small invented world"
    return name if _is_hub_id(name) else Path(name).name


def _is_hub_id(name: str) -> bool:
    return HUB_ID.fullmatch(name) is not None and not Path(name).exists()


def _scores(result: dict[str, Any]) -> str:
    rows = [f"| {name} | {value} |" for name, value in _flat(result)]
    return "\n".join(["| measure | value |", "|---|---|", *rows]) if rows else "Not measured."


def _flat(value: Any, name: str = "") -> list[tuple[str, str]]:
    """Numbers and words of a nested dict as (dotted name, text); lists, which are histories, are left out."""
    if isinstance(value, dict):
        return [row for key, item in value.items() for row in _flat(item, f"{name}.{key}".lstrip("."))]
    if isinstance(value, float):
        return [(name, f"{value:.4g}" if math.isfinite(value) else str(value))]
    return [(name, str(value))] if isinstance(value, int | str) else []


def read_mapping(path: Path) -> dict[str, Any]:
    """The mapping in a YAML or JSON file that may be absent."""
    if not path.exists():
        return {}
    text = path.read_text(encoding="utf-8")
    try:
        content = yaml.safe_load(text) if path.suffix == ".yaml" else json.loads(text)
    except (ValueError, yaml.YAMLError) as error:
        raise InputError(f"{path} is damaged ({error}); run its stage again.") from error
    return content if isinstance(content, dict) else {}
