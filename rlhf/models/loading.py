"""Base models and their tokenizers: from the Hub, a folder or a GGUF file, in full precision or 4-bit.

The one place that calls `from_pretrained` on models.
"""

import logging
import os
from dataclasses import replace
from pathlib import Path

import torch
import transformers
from peft import LoraConfig
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import logging as hf_logging
from trl import ModelConfig, get_peft_config, get_quantization_config

from rlhf.errors import InputError

logger = logging.getLogger(__name__)

SANDBOX_BASE = Path(__file__).resolve().parent.parent / "sandbox" / "base"

# For base models without a template. Plain text, so that no embedding has to be learned for it, in words that every
# pretraining corpus holds; turns end in the model's own end-of-text token. The prompt ends in "Assistant:" without the
# space: in byte-level BPE and SentencePiece the space belongs to the first word of the answer, so the ids of the prompt
# are a prefix of the ids of prompt + answer. A decoded answer therefore begins with a space; strip it to show it.
DEFAULT_CHAT_TEMPLATE = """\
{%- for message in messages -%}
{%- if message.role == 'system' -%}{{ message.content + '\\n\\n' }}
{%- elif message.role == 'user' -%}{{ 'User: ' + message.content + '\\n' }}
{%- elif message.role == 'assistant' -%}{{ 'Assistant: ' + message.content + eos_token + '\\n' }}
{%- else -%}{{ raise_exception("role must be system, user or assistant, got '" ~ message.role ~ "'") }}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ 'Assistant:' }}{%- endif -%}
"""

NEW_PAD_TOKEN = "<|pad|>"


def resolve_model_name(name: str) -> str:
    """`sandbox` -> the folder of the packaged base model; a folder or a Hub id -> itself.

    Raises:
        InputError: no name, the packaged model is absent, or the name is a path and no folder is there.
    """
    if not name:
        raise InputError("model_name_or_path is missing: give a Hub id, a folder, or 'sandbox'.")
    if name == "sandbox":
        if not (SANDBOX_BASE / "config.json").exists():
            raise InputError("the sandbox's base model is not there yet; train it with `make pretrain`.")
        return str(SANDBOX_BASE)
    path = Path(name).expanduser()
    if path.is_dir():
        return str(path)
    if path.exists():
        raise InputError(f"model {name} is a file; name the folder that holds it.")
    if name.startswith((".", "/", "~")) or name.count("/") > 1:  # a Hub id is `name` or `owner/name`
        raise InputError(f"model folder {name} does not exist.")
    return name


def _find_gguf(folder: str) -> str | None:
    """Name of the one .gguf file in `folder` when that is how the model is stored there, else None."""
    if not os.path.isdir(folder) or os.path.exists(os.path.join(folder, "config.json")):
        return None
    files = sorted(path.name for path in Path(folder).glob("*.gguf"))
    if len(files) > 1:
        raise InputError(f"model folder {folder} holds {len(files)} .gguf files ({', '.join(files)}); leave one in it.")
    return files[0] if files else None


def load_config(name: str, revision: str = "main") -> PreTrainedConfig:
    """The configuration of a model, without its weights: enough to find out what will not fit.

    Raises:
        InputError: there is no such model.
    """
    folder = resolve_model_name(name)
    try:
        return AutoConfig.from_pretrained(folder, revision=revision, gguf_file=_find_gguf(folder))
    except (OSError, ValueError) as error:
        raise InputError(f"model {name} cannot be loaded: {_first_line(error)}") from error


def context_length(config: PreTrainedConfig) -> int | None:
    """The most tokens that a model takes at once; None where its configuration does not say."""
    return getattr(config.get_text_config(), "max_position_embeddings", None)


def load_base(model_args: ModelConfig, tokenizer: PreTrainedTokenizerBase | None = None) -> PreTrainedModel:
    """Loads the causal language model of `model_args`, in evaluation mode.

    Args:
        model_args: `model_name_or_path` (Hub id, folder, folder with one .gguf, or `sandbox`), `model_revision`,
            `dtype`, `attn_implementation`, `load_in_4bit` / `load_in_8bit` and `bnb_*`.
        tokenizer: of `load_tokenizer`; the model then knows the pad token and gains a row for it where it has no spare
            one. That row is the mean of the others: deterministic, so every stage gets the same base.

    Raises:
        InputError: there is no such model, it is not a causal one, or it is stored as a pickle only.
    """
    return _load(AutoModelForCausalLM, model_args, tokenizer)


def load_sequence_classifier(
    model_args: ModelConfig, tokenizer: PreTrainedTokenizerBase | None = None
) -> PreTrainedModel:
    """The same model with a scalar head instead of the unembedding (section 3.5); the head is random: seed before."""
    return _load(AutoModelForSequenceClassification, model_args, tokenizer, num_labels=1)


def lora_config(model_args: ModelConfig, task_type: str = "CAUSAL_LM") -> LoraConfig:
    """LoRA of `model_args` on every linear layer but the heads, unless `lora_target_modules` says otherwise.

    Args:
        model_args: the `lora_*` fields, `use_rslora`, `use_dora`.
        task_type: `CAUSAL_LM`, or `SEQ_CLS` for reward models, whose `score` head is then trained and saved in full.
    """
    modules_to_save = list(model_args.lora_modules_to_save or [])
    if task_type == "SEQ_CLS" and "score" not in modules_to_save:
        modules_to_save.append("score")
    return get_peft_config(
        replace(
            model_args,
            use_peft=True,
            lora_task_type=task_type,
            lora_target_modules=model_args.lora_target_modules or "all-linear",
            lora_modules_to_save=modules_to_save or None,
        )
    )


def _load(auto_class, model_args: ModelConfig, tokenizer, **kwargs) -> PreTrainedModel:
    name = resolve_model_name(model_args.model_name_or_path)
    gguf_file = _find_gguf(name)
    dtype = model_args.dtype or "auto"
    quantize = model_args.load_in_4bit or model_args.load_in_8bit
    if gguf_file is not None:
        if quantize:
            raise InputError(f"{name} holds a GGUF file, which load_in_4bit and load_in_8bit cannot quantize again.")
        kwargs["gguf_file"] = gguf_file
        if hasattr(transformers, "GgufConfig"):  # without it, such a release takes the model for untrainable
            kwargs["quantization_config"] = transformers.GgufConfig(dequantize=True)
    else:
        kwargs["use_safetensors"] = True
    if quantize:
        # The type in which 4-bit weights are multiplied; bitsandbytes has no "auto", bf16 is QLoRA's choice.
        compute = model_args if dtype != "auto" else replace(model_args, dtype="bfloat16")
        kwargs["quantization_config"] = get_quantization_config(compute)
    verbosity = hf_logging.get_verbosity()
    hf_logging.set_verbosity_error()  # no table about the new head, which is as it should be; the rest is told below
    try:
        model, loading = auto_class.from_pretrained(
            name,
            revision=model_args.model_revision,
            dtype=dtype if dtype == "auto" else getattr(torch, dtype),
            attn_implementation=model_args.attn_implementation,
            output_loading_info=True,
            **kwargs,
        )
    except (OSError, ValueError, ImportError) as error:  # nothing there or out of reach, no causal LM, package missing
        raise InputError(f"model {model_args.model_name_or_path} cannot be loaded: {_first_line(error)}") from error
    finally:
        hf_logging.set_verbosity(verbosity)
    if missing := sorted(set(loading["missing_keys"]) - {"score.weight"}):
        logger.warning("model %s lacks weights, which are now random: %s", name, ", ".join(missing))
    for module in model.modules():
        # On a CPU with AVX512-BF16, bitsandbytes packs 4-bit weights anew in their first pass in evaluation mode, for a
        # kernel without a backward: from then on training would get wrong gradients without an error.
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False
    if tokenizer is not None:
        _fit_to_tokenizer(model, tokenizer)
    return model.eval()


def _fit_to_tokenizer(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Tells the model its pad token and adds embedding rows for token ids beyond its own, as the mean of the others."""
    model.config.get_text_config().pad_token_id = model.config.pad_token_id = tokenizer.pad_token_id
    if model.can_generate():
        model.generation_config.pad_token_id = tokenizer.pad_token_id
    rows = model.get_input_embeddings().num_embeddings
    if len(tokenizer) > rows:
        model.resize_token_embeddings(len(tokenizer), mean_resizing=False)  # HF's own mean_resizing draws at random
        with torch.no_grad():
            for embedding in filter(None, (model.get_input_embeddings(), model.get_output_embeddings())):
                embedding.weight[rows:] = embedding.weight[:rows].float().mean(0).to(embedding.weight.dtype)


def load_tokenizer(name: str, revision: str = "main") -> PreTrainedTokenizerBase:
    """Loads a tokenizer that has a chat template, an end-of-text token and a pad token that is not that token.

    Args:
        name: Hub id, model folder, adapter folder of a stage (which keeps its tokenizer), folder with one .gguf file,
            or `sandbox`.
        revision: branch, tag or commit on the Hub.

    Raises:
        InputError: no tokenizer there, or it has no end-of-text token.
    """
    folder = resolve_model_name(name)
    has_own_files = any((Path(folder) / file).exists() for file in ("tokenizer.json", "tokenizer_config.json"))
    gguf_file = None if has_own_files else _find_gguf(folder)
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, revision=revision, gguf_file=gguf_file)
    except (OSError, ValueError) as error:
        raise InputError(f"no tokenizer can be loaded from {name}: {_first_line(error)}") from error
    if tokenizer.eos_token is None:
        raise InputError(f"the tokenizer of {name} has no eos_token, so no answer could end; name it in its config.")
    if tokenizer.chat_template is None:
        # Templates are encoded without special tokens: a tokenizer that opens every text with BOS needs it spelled out.
        opens_with_bos = tokenizer("a").input_ids[:1] == [tokenizer.bos_token_id]
        tokenizer.chat_template = ("{{- bos_token -}}\n" if opens_with_bos else "") + DEFAULT_CHAT_TEMPLATE
    set_pad_token(tokenizer)
    return tokenizer


def set_pad_token(tokenizer: PreTrainedTokenizerBase) -> None:
    """Gives the tokenizer a pad token other than eos; a model padded with eos never learns, or is never told, to stop.

    In this order: its own pad token; a special token of its vocabulary that nothing uses; a new token. The new token
    takes the first embedding row above the vocabulary where the model has spare ones (many are rounded up to a multiple
    of 64), else `rlhf.models.loading.load_base` adds that row.
    """
    if tokenizer.pad_token is None or tokenizer.pad_token_id == tokenizer.eos_token_id:
        tokenizer.add_special_tokens({"pad_token": _unused_special_token(tokenizer) or NEW_PAD_TOKEN})
        logger.info("pad token: %s (%d)", tokenizer.pad_token, tokenizer.pad_token_id)


def _unused_special_token(tokenizer: PreTrainedTokenizerBase) -> str | None:
    """A special token without a role, e.g. `<|padding|>` of GPT-NeoX, `<|vision_pad|>` of Qwen, `<unk>` of Llama 2."""
    roles = {tokenizer.eos_token, tokenizer.bos_token, tokenizer.unk_token}
    added = sorted(tokenizer.added_tokens_decoder.items())
    free = [
        token.content
        for _, token in added
        if token.special and token.content not in roles and token.content not in tokenizer.chat_template
    ]
    for word in ("pad", "reserved", "unused"):
        for token in free:
            if word in token.lower():
                return token
    if tokenizer.unk_token not in (None, tokenizer.eos_token, tokenizer.bos_token):
        return tokenizer.unk_token
    # Without a better hint the last one: the first ones are the turn markers of templates (SmolLM2's <|im_start|>).
    return free[-1] if free else None


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".") + "."
