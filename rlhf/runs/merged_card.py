"""The record and the model card of a merged model: its base, its adapter, and how the two were compared.

merged.json                                what this model was made from
contract.json, trained_on.safetensors      of the adapter: see `rlhf.runs.contract`
"""

import json
import shlex
from dataclasses import asdict, dataclass
from pathlib import Path

from huggingface_hub import ModelCardData

from rlhf.errors import InputError
from rlhf.runs.contract import read_contract
from rlhf.runs.markdown import render_template
from rlhf.runs.model_card import base_text, license_text, source_text, stop_tokens
from rlhf.runs.objects import read_object
from rlhf.runs.published import hub_id, is_hub_id, languages_of, license_of, metadata_of

FILE_NAME = "merged.json"


@dataclass(frozen=True)
class Merged:
    """Origin of a merged model.

    Attributes:
        stage: of the adapter: "sft", "reward", "ppo", or "adapter" if it does not say.
        base: name of the base, and its `base_revision` on the Hub.
        adapter: name of its folder or Hub id, and the `adapter_digest` of its weights.
        bits: of the base if it was quantized, before it was dequantized; None for others.
        dtype: of the merged weights.
        difference, mean, effect, scale: see `rlhf.inference.agreement.Agreement`.
    """

    stage: str
    base: str
    base_revision: str | None
    adapter: str
    adapter_digest: str
    bits: int | None
    dtype: str
    difference: float
    mean: float
    effect: float
    scale: float


def write_merged(folder: Path, merged: Merged) -> None:
    (folder / FILE_NAME).write_text(json.dumps(asdict(merged), indent=2) + "\n", encoding="utf-8")


def read_merged(folder: Path) -> Merged:
    """Returns the record of a merged model.

    Raises:
        InputError: there is none, or it is damaged.
    """
    path = folder / FILE_NAME
    try:
        return Merged(**(read_object(path) or {}))
    except TypeError as error:
        raise InputError(f"{path} is missing or damaged. Merge the adapter again with `rlhf merge`.") from error


def merged_card(
    folder: str | Path,
    repo: str | None = None,
    title: str | None = None,
    base_name: str | None = None,
    online: bool = False,
) -> str:
    """Returns the text of README.md for a merged model.

    Args:
        folder: holds merged.json, contract.json, generation_config.json, tokenizer_config.json, calibration.json.
        repo: Hub id that the loading code names; None: `title`.
        title: path that the folder will have; None: its path.
        base_name: the base, if merged.json has another name for it.
        online: ask the Hub for the license of the base, not only its cache.
    """
    folder = Path(folder)
    merged, contract = read_merged(folder), read_contract(folder)
    is_reward, name = merged.stage == "reward", repo or title or str(folder)
    base_name = base_name or merged.base
    said = metadata_of(base_name, revision=merged.base_revision, online=online)
    sources = list(dict.fromkeys(str(source["name"]) for source in contract.trained_on)) if contract else []
    base = hub_id(base_name)
    data = ModelCardData(
        base_model=base,  # the Hub accepts only ids here
        base_model_relation="finetune" if base else None,
        datasets=[source for source in sources if is_hub_id(source)] or None,
        language=languages_of([metadata_of(source, "dataset", online=online) for source in sources]),
        library_name="transformers",
        pipeline_tag="text-classification" if is_reward else "text-generation",
        tags=["rlhf", "instruct-rlhf", {"reward": "reward-model"}.get(merged.stage, merged.stage)],
        **license_of(said),
    )
    stops = stop_tokens(read_object(folder / "tokenizer_config.json") or {})
    calibration = read_object(folder / "calibration.json") or {}
    return render_template(
        Path(__file__).with_name("merged_card.md.j2"),
        front_matter=data.to_yaml(),
        title=name,
        name_code=json.dumps(name),
        name_word=shlex.quote(name),
        merged=merged,
        is_reward=is_reward,
        base=base_text(base_name),
        bits=f" in {merged.bits} bits, dequantized" if merged.bits else "",
        adapter=merged.adapter if hub_id(merged.adapter) else Path(merged.adapter).name,
        license=license_text(said),
        data=[source_text(source) for source in sources],
        bias_code=repr(calibration["bias"]) if "bias" in calibration else None,
        prompt_style=contract.prompt_style if contract else None,
        stop_tokens=json.dumps(stops, ensure_ascii=False),
        stops=" or ".join(f"`{token}`" for token in stops),
        temperature=(read_object(folder / "generation_config.json") or {}).get("temperature", 1.0),
        difference=f"{merged.difference:.2g}",
        mean=f"{merged.mean:.2g}",
        effect=f"{merged.effect:.2g}" if merged.effect else None,
        scale=f"{merged.scale:.2g}",
    )
