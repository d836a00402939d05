"""Start of reward training: the SFT model, with a scalar head in place of its unembedding (paper, section 3.5)."""

import types
from collections.abc import Iterable
from functools import partial

import torch
from peft import PeftModel, get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.modeling_outputs import SequenceClassifierOutput
from trl import ModelConfig

from rlhf.errors import InputError
from rlhf.models.adapter_files import adapter_folder, check_policy_adapter, read_adapter, read_names
from rlhf.models.loading import check_lora, load_sequence_classifier, lora_config, resolve_model_name
from rlhf.models.precision import float_head

UNEMBEDDING = "lm_head"


def check_sft_start(sft_model_path: str, model_args: ModelConfig) -> None:
    """Checks, before a model is loaded, that the reward model's LoRA can start from the SFT adapter.

    Raises:
        InputError: there is no adapter, or it has another base, other LoRA settings, layers or modules trained in full;
            or LoRA cannot be added to the model.
    """
    base_name = resolve_model_name(model_args.model_name_or_path)
    sft = check_policy_adapter(sft_model_path, base_name, model_args.model_revision)
    ours = lora_config(model_args, "SEQ_CLS")
    for name in ("r", "lora_alpha", "use_rslora", "use_dora"):
        theirs, wanted = getattr(sft, name), getattr(ours, name)
        if theirs != wanted:
            option = "lora_r" if name == "r" else name
            raise InputError(
                f"{sft_model_path} has {option} {theirs}, not {wanted}, and the reward model starts from its LoRA "
                f"weights. Set {option} to {theirs}, or drop sft_model_path."
            )
    if sft.trainable_token_indices:
        raise InputError(
            f"{sft_model_path} has trained embeddings of single tokens (trainable_token_indices), and the reward model "
            "cannot start with them. Train SFT with lora_modules_to_save embed_tokens instead, or drop sft_model_path."
        )
    full = sorted({*(sft.modules_to_save or ())} - {*(ours.modules_to_save or ())} - {UNEMBEDDING})
    if full:
        raise InputError(
            f"{sft_model_path} has trained {', '.join(full)} in full, and the reward model must start with it. Set "
            f"lora_modules_to_save to {' '.join(full)}, or drop sft_model_path."
        )
    wanted = get_peft_model_state_dict(check_lora(model_args), save_embedding_layers=False)
    check_fit(lora_names(read_names(adapter_folder(sft_model_path))) ^ lora_names(wanted), sft_model_path)


def load_reward_start(
    model_args: ModelConfig, tokenizer: PreTrainedTokenizerBase, sft_model_path: str | None = None
) -> PeftModel:
    """Loads the base with a random head and LoRA weights: those of the SFT adapter if given, else fresh ones.

    The caller sets the seed.
    """
    base = load_sequence_classifier(model_args, tokenizer)
    model = get_peft_model(base, lora_config(model_args, "SEQ_CLS", base))
    if sft_model_path is not None:
        copy_lora(model, sft_model_path)
    return model


def copy_lora(model: PeftModel, sft_model_path: str) -> None:
    """Copies the weights of a causal LM's adapter into the classifier, whose backbone has the same names.

    LoRA weights and modules that both train in full; the unembedding is left out, since the head takes its place.

    Raises:
        InputError: the adapter has other layers or shapes than the model.
    """
    weights, _ = read_adapter(adapter_folder(sft_model_path))
    ours = get_peft_model_state_dict(model, save_embedding_layers=False)
    theirs = {
        key: w for key, w in weights.items() if (".lora_" in key or key in ours) and f".{UNEMBEDDING}." not in key
    }
    reshaped = {key for key in theirs.keys() & ours.keys() if theirs[key].shape != ours[key].shape}
    check_fit((lora_names(theirs) ^ lora_names(ours)) | reshaped, sft_model_path)
    set_peft_model_state_dict(model, ours | theirs)


def lora_names(names: Iterable[str]) -> set[str]:
    """Returns the names of LoRA weights, without those of the unembedding, which the reward model does not have."""
    return {name for name in names if ".lora_" in name and f".{UNEMBEDDING}." not in name}


def check_fit(differing: set[str], sft_model_path: str) -> None:
    """Raises InputError if there are names of weights in which SFT adapter and reward model differ."""
    if differing:
        raise InputError(
            f"The LoRA weights of {sft_model_path} do not fit the reward model, e.g. {min(differing)}. Give both "
            "stages the same lora_target_modules and lora_r."
        )


def pool_at_last_token(model: PreTrainedModel) -> None:
    """Makes `model(..., last_token=positions)` return the scores at those positions, also of `share_prompts`.

    The classifiers of transformers score the last token that is not the pad token, which is the wrong token if a
    response ends in a sampled pad token. The forward is replaced on the instance, as TRL's SFTTrainer does for its
    chunked loss, so that the pass still goes through every wrapper around the model (PEFT, DDP, FSDP). Without
    `last_token` the forward is unchanged.

    The head becomes float32, whatever the dtype of the base (`rlhf.models.precision`).

    Args:
        model: a decoder with a linear head called `score`, without PEFT's wrapper.
    """
    original_forward = model.forward
    float_head(model)

    def forward(self, input_ids=None, attention_mask=None, last_token=None, **kwargs):
        if last_token is None:
            # `self` may be a copy of `model`. Accelerate hooks the forward of a model on several devices.
            plain = original_forward if hasattr(self, "_hf_hook") else partial(type(self).forward, self)
            return plain(input_ids=input_ids, attention_mask=attention_mask, **kwargs)
        kwargs = {key: value for key, value in kwargs.items() if value is not None}
        hidden = self.base_model(input_ids=input_ids, attention_mask=attention_mask, **kwargs).last_hidden_state
        # [N, H]; of a row of `share_prompts`, all N positions are in row 0
        last_hidden = hidden[torch.arange(len(hidden), device=hidden.device), last_token]
        # The head is one dot product: float32 costs nothing here, and bfloat16 would round the margins.
        with torch.autocast(last_hidden.device.type, enabled=False):
            scores = self.score(last_hidden)
        return SequenceClassifierOutput(logits=scores.float())  # [N, 1]

    model.forward = types.MethodType(forward, model)
