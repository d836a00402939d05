"""Merged models: an adapter's weights added to its base, as a folder that needs neither PEFT nor this library.

W + s B A is rounded to the dtype of the folder, and a base that was quantized is written dequantized. So the folder is
loaded again as a user would load it, and its outputs are compared with those of the adapter before it gets its name.
"""

import shutil
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import torch
from peft import PeftModel, TaskType
from torch import Tensor
from transformers import AutoModelForCausalLM, GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase
from trl import ModelConfig

from rlhf.data.encode import Prompt, encode_prompt_and_completions
from rlhf.data.prompt_style import as_messages, resolve_style
from rlhf.errors import InputError
from rlhf.generation.score_options import policy_options
from rlhf.inference.agreement import Agreement, bits, dtype_name
from rlhf.models.adapter_files import CALIBRATION, adapter_digest, adapter_folder, base_model_name, check_adapter
from rlhf.models.classifier import classifier_class
from rlhf.models.contracts import with_revision_of
from rlhf.models.embeddings import add_pad_row, grow_embeddings
from rlhf.models.loading import load_base, load_sequence_classifier, resolve_model_name
from rlhf.models.stages import load_adapter_tokenizer
from rlhf.models.stop_tokens import stop_ids
from rlhf.runs.contract import copy_contract, read_contract
from rlhf.runs.merged_card import Merged, merged_card, write_merged
from rlhf.runs.model_card import embedding_rows
from rlhf.runs.objects import read_object

# Prompts and answers on which the merged model is compared with the adapter.
TEXTS = (
    ("Tell me about the sea.", "The sea is salty, and it covers most of the Earth."),
    ("Write a function that adds two numbers.", "def add(a, b):\n    return a + b"),
    ("Wie heißt die Hauptstadt von Frankreich? 🗼", "Paris."),
)
QUANTIZATION = ("load_in_4bit", "load_in_8bit", "bnb_4bit_quant_type", "use_bnb_nested_quant", "bnb_4bit_quant_storage")


def trained_quantization(model_args: ModelConfig, folder: Path) -> ModelConfig:
    """Returns `model_args` with the quantization of the base that an adapter was trained on (config.yaml)."""
    trained = read_object(folder / "config.yaml") or {}
    return replace(model_args, **{name: trained[name] for name in QUANTIZATION if name in trained})


def merge(name: str, model_args: ModelConfig, output_dir: Path) -> Agreement:
    """Writes the merged model of an adapter, with tokenizer, chat template, generation config, contract and card.

    Args:
        name: folder or Hub id; a reward adapter becomes a sequence classifier with calibration.json.
        model_args: dtype of the folder ("auto": the base's own), base and its quantization.
        output_dir: a folder that does not exist, or is empty.

    Raises:
        InputError: the folder exists, the disk is too small, or the merged model is not the adapter's. No folder is
            left then.
    """
    check_target(output_dir)
    folder = adapter_folder(name)
    base_name = model_args.model_name_or_path
    config = check_adapter(folder, base_name and resolve_model_name(base_name), model_args.model_revision)
    model_args = replace(model_args, model_name_or_path=base_name or base_model_name(config, folder))
    model_args = with_revision_of(model_args, folder)
    tokenizer = load_adapter_tokenizer(model_args, folder)
    rows = encoded_texts(tokenizer, folder)
    is_reward = config.task_type == TaskType.SEQ_CLS

    # The adapter on its base
    base = load_sequence_classifier(model_args, tokenizer) if is_reward else load_base(model_args, tokenizer)
    grow_embeddings(base, embedding_rows(folder) or 0)
    base = dequantized(base)
    bare = None if is_reward else outputs(base, rows)  # the head is the adapter's: the bare base has no scores
    model = PeftModel.from_pretrained(base, str(folder)).eval()
    expected = outputs(model, rows)
    effect = 0.0 if bare is None else mean_difference(bare, expected)

    # The merged one
    merged = cast(PreTrainedModel, cast(Any, model).merge_and_unload())
    dtype = next(merged.parameters()).dtype
    add_pad_row(merged, tokenizer)
    if not is_reward:
        merged.generation_config = generation_config(tokenizer, folder)
    check_space(merged, output_dir)
    partial = output_dir.parent / f".partial-{output_dir.name}"
    shutil.rmtree(partial, ignore_errors=True)
    try:
        partial.mkdir(parents=True)
        merged.save_pretrained(partial)
        tokenizer.save_pretrained(partial)
        if is_reward and (folder / CALIBRATION).exists():
            shutil.copyfile(folder / CALIBRATION, partial / CALIBRATION)
        model_class = classifier_class(merged.config) if is_reward else AutoModelForCausalLM
        del base, model, merged
        found = outputs(cast(Any, model_class).from_pretrained(partial, dtype=dtype).eval(), rows)
        scale = max(1.0, *(row.abs().max().item() for row in expected))
        agreement = Agreement(
            largest_difference(expected, found), mean_difference(expected, found), effect, scale, dtype
        )
        if agreement.problem:
            raise InputError(
                f"The merged model is not that of {name}: it {agreement.problem}. Nothing is written. Merge with "
                "--dtype float32, or use the adapter as it is."
            )
        copy_contract(folder, partial)
        write_merged(partial, record(name, folder, model_args, agreement, is_reward))
        (partial / "README.md").write_text(merged_card(partial, title=str(output_dir)), encoding="utf-8")
        with suppress(OSError):
            output_dir.rmdir()  # an empty folder of the user
        partial.rename(output_dir)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return agreement


def record(name: str, folder: Path, model_args: ModelConfig, agreement: Agreement, is_reward: bool) -> Merged:
    """Returns what the merged model of an adapter was made from, and how well the two agree."""
    contract = read_contract(folder)
    stage = contract.stage if contract else "reward" if is_reward else "adapter"
    return Merged(
        stage=stage,
        base=str(model_args.model_name_or_path),
        base_revision=contract.base.get("revision") if contract else None,
        adapter=name,
        adapter_digest=adapter_digest(folder),
        bits=bits(model_args),
        dtype=dtype_name(agreement.dtype),
        difference=agreement.difference,
        mean=agreement.mean,
        effect=agreement.effect,
        scale=agreement.scale,
    )


def check_target(output_dir: Path) -> None:
    """Raises InputError if something is at the place of the merged model."""
    if output_dir.exists() and (not output_dir.is_dir() or any(output_dir.iterdir())):
        raise InputError(f"{output_dir} exists already. Set another output_dir, or delete it.")


def check_space(model: PreTrainedModel, output_dir: Path) -> None:
    """Raises InputError if the disk has less room than the model takes."""
    parent = next(path for path in (output_dir, *output_dir.resolve().parents) if path.exists())
    needed, free = sum(p.numel() * p.element_size() for p in model.parameters()), shutil.disk_usage(parent).free
    if needed > free:
        raise InputError(
            f"The merged model takes {needed / 1e9:.1f} GB, and the disk of {output_dir} has {free / 1e9:.1f} GB left. "
            "Set an output_dir on another disk."
        )


def dequantized(model: Any) -> PreTrainedModel:
    """Returns a model whose weights are ordinary ones, and whose configuration says so."""
    if getattr(model, "is_loaded_in_4bit", False) or getattr(model, "is_loaded_in_8bit", False):
        model = model.dequantize()
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    return model


def generation_config(tokenizer: PreTrainedTokenizerBase, folder: Path) -> GenerationConfig:
    """Returns how the merged model answers by default: sampled as PPO sampled it, up to any of its stop tokens."""
    return GenerationConfig(
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=stop_ids(tokenizer),
        pad_token_id=tokenizer.pad_token_id,
        do_sample=True,
        temperature=policy_options(folder).temperature,
        top_k=0,
        top_p=1.0,
    )


def encoded_texts(tokenizer: PreTrainedTokenizerBase, folder: Path) -> list[list[int]]:
    """Returns the ids of `TEXTS` in the form that the adapter was trained on."""
    contract = read_contract(folder)
    style = resolve_style(None, contract.prompt_style if contract else None, tokenizer)
    rows = []
    for question, answer in TEXTS:
        prompt: Prompt = as_messages(question) if style == "chat" else question
        ids, [completion] = encode_prompt_and_completions(tokenizer, prompt, [answer])
        rows.append(ids + completion)
    return rows


@torch.no_grad()
def outputs(model: Any, rows: Sequence[list[int]]) -> list[Tensor]:
    """Returns the logits [T, V] of each row in float32, or the score [1] of a classifier."""
    return [model(torch.tensor([row], device=model.device)).logits[0].float().cpu() for row in rows]


def largest_difference(a: Sequence[Tensor], b: Sequence[Tensor]) -> float:
    """Returns max |a - b|."""
    return max(row.abs().max().item() for row in differences(a, b))


def mean_difference(a: Sequence[Tensor], b: Sequence[Tensor]) -> float:
    """Returns the root of the mean of (a - b)^2."""
    return torch.cat([row.flatten() for row in differences(a, b)]).square().mean().sqrt().item()


def differences(a: Sequence[Tensor], b: Sequence[Tensor]) -> list[Tensor]:
    """Returns a - b, row by row; a model may have further embedding rows, for its pad token."""
    return [x[..., : y.shape[-1]] - y[..., : x.shape[-1]] for x, y in zip(a, b, strict=True)]
