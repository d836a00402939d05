"""Reward models as ordinary sequence classifiers, for code that does not use this library."""

from dataclasses import replace
from pathlib import Path

from peft import PeftModel
from torch import nn
from transformers import PreTrainedModel
from trl import ModelConfig

from rlhf.models.adapter_files import (
    CONFIG,
    adapter_folder,
    base_model_name,
    check_reward_adapter,
    read_bias,
)
from rlhf.models.contracts import with_revision_of
from rlhf.models.embeddings import add_pad_row, grow_embeddings
from rlhf.models.loading import load_sequence_classifier, load_tokenizer
from rlhf.models.peft_layers import unwrap_peft
from rlhf.models.stages import load_adapter_tokenizer
from rlhf.runs.model_card import embedding_rows


def load_reward_model(name: str | Path, model_args: ModelConfig | None = None) -> PreTrainedModel | PeftModel:
    """Loads a reward or value adapter as a model whose `model(input_ids, attention_mask).logits` [B, 1] are scores.

    The scores are calibrated (section 3.5): the head `score` has the bias -b. The adapter is merged into the base
    unless the base is quantized. In transformers this head has no bias, so `save_pretrained` and `from_pretrained`
    would lose it. Load the adapter again instead.

    Args:
        name: folder or Hub id of the adapter, or folder of a merged model (recipes/merge.py).
        model_args: dtype, quantization and base; by default the base that the adapter names, in float32 and at the
            revision that it was trained on.

    Raises:
        InputError: the adapter is missing, was trained on another base, or is not a reward adapter.
    """
    model_args = model_args or ModelConfig()
    merged = Path(name).expanduser()
    if (merged / "config.json").exists() and not (merged / CONFIG).exists():
        model_args = replace(model_args, model_name_or_path=str(merged))
        return add_calibration(load_sequence_classifier(model_args, load_tokenizer(str(merged))), merged)
    folder = adapter_folder(name)
    config = check_reward_adapter(folder, model_args.model_name_or_path, model_args.model_revision)
    base_name = model_args.model_name_or_path or base_model_name(config, name)
    model_args = with_revision_of(replace(model_args, model_name_or_path=base_name), folder)
    tokenizer = load_adapter_tokenizer(model_args, folder)
    base = load_sequence_classifier(model_args, tokenizer)
    grow_embeddings(base, embedding_rows(folder) or 0)
    model = PeftModel.from_pretrained(base, str(folder))
    add_calibration(model, folder)
    quantized = model_args.load_in_4bit or model_args.load_in_8bit
    model = model if quantized else model.merge_and_unload()
    add_pad_row(unwrap_peft(model), tokenizer)  # so that callers can pad their batches
    return model.eval()


def add_calibration(model: PreTrainedModel | PeftModel, folder: Path) -> PreTrainedModel | PeftModel:
    """Gives the head of a classifier the bias -b of the calibration.json in `folder`; returns the model."""
    name = "score.modules_to_save.default" if isinstance(model, PeftModel) else "score"
    head = unwrap_peft(model).get_submodule(name)
    bias = head.get_parameter("weight").new_tensor([-read_bias(folder)])
    head.bias = nn.Parameter(bias, requires_grad=False)
    return model
