"""Base models and their tokenizers: from the Hub, a folder or a GGUF file, unquantized or in 4 or 8 bits.

No other module calls `from_pretrained` on base models.
"""

import logging
import os
import warnings
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import cast

import torch
import transformers
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import logging as hf_logging
from trl import ModelConfig, get_peft_config, get_quantization_config

from rlhf.errors import InputError, first_line, machine_fault
from rlhf.models.chat_template import DEFAULT_CHAT_TEMPLATE, begin_answers, fix_date
from rlhf.models.classifier import classifier_class
from rlhf.models.configurations import read_config
from rlhf.models.embeddings import grow_embeddings, set_pad_token_id, unembed_contiguous_states
from rlhf.models.lora_targets import check_lora_numbers, check_lora_values, linear_layers, names_or_pattern
from rlhf.models.model_faults import cannot_load, check_causal
from rlhf.models.positions import cache_argument
from rlhf.models.stop_tokens import KEY as STOP_TOKENS
from rlhf.models.stop_tokens import add_stop_ids, base_stop_ids, stop_token_texts
from rlhf.noise import quiet_gguf
from rlhf.runs.processes import process_state

logger = logging.getLogger(__name__)

SANDBOX_BASE = Path(__file__).resolve().parent.parent / "sandbox" / "base"

NEW_PAD_TOKEN = "<|pad|>"


@dataclass
class LoraModelConfig(ModelConfig):
    """TRL's ModelConfig for stages that train a LoRA adapter."""

    use_peft: bool = field(default=True, metadata={"help": "Train a LoRA adapter."})


def resolve_model_name(name: str | None) -> str:
    """Returns the folder of the packaged base model for `sandbox`; otherwise the folder or Hub id itself.

    Raises:
        InputError: no name, the packaged model is absent, or the name is a path without a folder.
    """
    if not name:
        raise InputError("model_name_or_path is missing. Set it to a Hub id, a folder, or 'sandbox'.")
    if name == "sandbox":
        if not (SANDBOX_BASE / "config.json").exists():
            raise InputError("The sandbox's base model does not exist. Run `make pretrain` to train it.")
        return str(SANDBOX_BASE)
    path = Path(name).expanduser()
    if path.is_dir():
        return str(path)
    if path.exists():
        raise InputError(f"Model {name} is a file. Pass the folder that holds it.")
    if name.startswith((".", "/", "~")) or name.count("/") > 1:  # a Hub id is `name` or `owner/name`
        raise InputError(f"Model folder {name} does not exist. Check model_name_or_path.")
    return name


def _find_gguf(folder: str) -> str | None:
    """Returns the name of the .gguf file in `folder` if the model is stored in one, else None."""
    if not os.path.isdir(folder) or os.path.exists(os.path.join(folder, "config.json")):
        return None
    files = sorted(path.name for path in Path(folder).glob("*.gguf"))
    if len(files) > 1:
        raise InputError(f"Model folder {folder} holds {len(files)} .gguf files ({', '.join(files)}). Leave one in it.")
    return files[0] if files else None


def load_config(name: str, revision: str = "main") -> PreTrainedConfig:
    """Loads the configuration of a model, without its weights, to check limits such as the context length.

    Raises:
        InputError: there is no such model.
    """
    folder = resolve_model_name(name)
    gguf_file = _find_gguf(folder)
    try:
        return read_config(folder, revision, gguf_file)
    except Exception as error:  # each reader of a format raises errors of its own
        raise cannot_load(name, error) from error


def context_length(config: PreTrainedConfig) -> int | None:
    """Returns the maximum number of tokens of a sequence; None if the configuration does not say.

    Longrope (Phi-3) has other rotary factors once the longest sequence of a batch exceeds the original context. Beyond
    it, keys in a cache have the old factors and the log-probabilities of a sampled token are not those of one pass, nor
    do those of one pass depend on their own sequence alone. So the original context is the limit.
    """
    config = config.get_text_config()
    context = getattr(config, "max_position_embeddings", None)
    rope = getattr(config, "rope_parameters", None) or {}
    if rope.get("rope_type") == "longrope":
        original = rope.get("original_max_position_embeddings")
        context = original or getattr(config, "original_max_position_embeddings", context)
    return context


def load_base(model_args: ModelConfig, tokenizer: PreTrainedTokenizerBase | None = None) -> PreTrainedModel:
    """Loads the causal language model of `model_args`, in evaluation mode.

    Args:
        model_args: `model_name_or_path` (Hub id, folder, folder with one .gguf, or `sandbox`), `model_revision`,
            `dtype`, `attn_implementation`, `load_in_4bit` / `load_in_8bit` and `bnb_*`.
        tokenizer: of `load_tokenizer`; the model then knows the pad token, if it has an embedding for it, and gains
            embedding rows for other tokens that it lacks.

    Raises:
        InputError: the model does not exist, is not a causal LM, is stored only as a pickle, or has no cache.
    """
    model = _load(AutoModelForCausalLM, model_args, tokenizer)
    cache_argument(model)
    unembed_contiguous_states(model)
    return model


def load_sequence_classifier(
    model_args: ModelConfig, tokenizer: PreTrainedTokenizerBase | None = None
) -> PreTrainedModel:
    """Loads the same model with a random scalar head instead of the unembedding (section 3.5). Set the seed before."""
    config = load_config(str(model_args.model_name_or_path), model_args.model_revision)
    return _load(classifier_class(config), model_args, tokenizer, num_labels=1)


def lora_config(
    model_args: ModelConfig, task_type: str = "CAUSAL_LM", model: PreTrainedModel | None = None
) -> LoraConfig:
    """Returns the LoRA configuration of `model_args`, by default on every linear layer but the heads.

    Args:
        model_args: the `lora_*` fields, `use_rslora`, `use_dora`. `lora_target_modules` None is every linear layer.
        task_type: `CAUSAL_LM`, or `SEQ_CLS` for reward models, whose `score` head is then trained and saved in full.
        model: the model to adapt. "Every linear layer" is then that of `linear_layers`; without a model it is
            PEFT's, which includes vision towers and experts.
    """
    modules_to_save = list(model_args.lora_modules_to_save or [])
    if task_type == "SEQ_CLS" and "score" not in modules_to_save:
        modules_to_save.append("score")
    config = get_peft_config(
        replace(
            model_args,
            use_peft=True,
            lora_task_type=task_type,
            lora_target_modules=model_args.lora_target_modules or "all-linear",
            lora_modules_to_save=modules_to_save or None,
        )
    )
    config = cast(LoraConfig, config)
    config.target_modules = names_or_pattern(config.target_modules)  # pyright: ignore[reportAttributeAccessIssue]
    if model is not None and config.target_modules == "all-linear":
        config.target_modules = set(linear_layers(model))  # pyright: ignore[reportAttributeAccessIssue]
    return config


def check_lora(model_args: ModelConfig) -> PeftModel:
    """Returns the model of `model_args` with LoRA, without any weights (on the meta device), which takes seconds.

    Raises:
        InputError: the model has no such layers, or PEFT cannot adapt them with these settings.
    """
    check_lora_numbers(model_args)
    config = load_config(str(model_args.model_name_or_path), model_args.model_revision)
    check_causal(config, model_args.model_name_or_path)
    try:
        with torch.device("meta"), warnings.catch_warnings():
            warnings.filterwarnings("ignore", ".*`is_gradient_checkpointing` is deprecated", FutureWarning)  # by PEFT
            model = AutoModelForCausalLM.from_config(config)
            check_lora_values(lora_config(model_args), model)
            return cast(PeftModel, get_peft_model(model, lora_config(model_args, "CAUSAL_LM", model)))
    except (ValueError, TypeError, NotImplementedError) as error:
        settings = f"lora_target_modules {model_args.lora_target_modules}, lora_dropout {model_args.lora_dropout}"
        raise InputError(
            f"LoRA cannot be added to {model_args.model_name_or_path} with {settings}: {first_line(error)}. "
            "Leave lora_target_modules out to adapt every linear layer of the language model."
        ) from error


def _load(auto_class, model_args: ModelConfig, tokenizer, **kwargs) -> PreTrainedModel:
    name = resolve_model_name(model_args.model_name_or_path)
    gguf_file = _find_gguf(name)
    dtype = model_args.dtype or "auto"
    quantize = model_args.load_in_4bit or model_args.load_in_8bit
    if gguf_file is not None:
        if quantize:
            raise InputError(
                f"{name} holds a GGUF file, which load_in_4bit and load_in_8bit cannot quantize again. Unset them."
            )
        config = load_config(str(model_args.model_name_or_path))  # else transformers would read it again
        config.update(kwargs)
        kwargs = {"gguf_file": gguf_file, "config": config}
        if hasattr(transformers, "GgufConfig"):  # without it, these releases of transformers refuse training
            kwargs["quantization_config"] = transformers.GgufConfig(dequantize=True)
    else:
        kwargs["use_safetensors"] = True
    if quantize:
        process_state()  # makes this process's GPU the current one, where transformers puts quantized weights
        # The compute dtype of 4-bit weights. bitsandbytes has no "auto"; bfloat16 is QLoRA's choice.
        compute = model_args if dtype != "auto" else replace(model_args, dtype="bfloat16")
        kwargs["quantization_config"] = get_quantization_config(compute)
    if gguf_file is not None:
        quiet_gguf()
    verbosity = hf_logging.get_verbosity()
    hf_logging.set_verbosity_error()  # no table about the new head; other missing weights are logged below
    try:
        model, loading = auto_class.from_pretrained(
            name,
            revision=model_args.model_revision,
            dtype=dtype if dtype == "auto" else getattr(torch, dtype),
            attn_implementation=model_args.attn_implementation,
            output_loading_info=True,
            **kwargs,
        )
    except Exception as error:  # not found, no causal LM, package missing, a damaged file
        raise cannot_load(model_args.model_name_or_path, error) from error
    finally:
        hf_logging.set_verbosity(verbosity)
    if missing := sorted(set(loading["missing_keys"]) - {"score.weight"}):
        if len(missing) > len(model.state_dict()) / 2:
            raise InputError(
                f"Model {name} has weights of another architecture than its config.json: {len(missing)} are missing, "
                f"such as {missing[0]}. Copy or download it again."
            )
        logger.warning("Model %s lacks weights, which are now random: %s", name, ", ".join(missing))
    limit = context_length(model.config)
    positions = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    if limit != positions:
        logger.warning("sequences are limited to %s of %s tokens, where longrope changes its factors", limit, positions)
    for module in model.modules():
        # On a CPU with AVX512-BF16, bitsandbytes repacks 4-bit weights in the first pass in evaluation mode, for a
        # kernel without a backward: from then on training would get wrong gradients without an error.
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False
    if tokenizer is not None:
        _fit_to_tokenizer(model, tokenizer)
    return model.eval()


def _fit_to_tokenizer(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Sets the model's pad token, and adds embedding rows for other tokens that the model lacks.

    The pad token gets no row: padding is an id that every model has (`rlhf.tensors.PADDING_ID`). Adapters of a base
    that has grown a row would load only where the base is made to grow it again. Without a row it stays out of the
    model's configuration, which could not be loaded with it.
    """
    pad = tokenizer.pad_token_id
    grow_embeddings(model, 1 + max(token for token in tokenizer.get_vocab().values() if token != pad))
    set_pad_token_id(model, cast(int, pad))


def load_tokenizer(name: str, revision: str = "main", eos_token: str | None = None) -> PreTrainedTokenizerBase:
    """Loads a tokenizer with a chat template, an end-of-text token, and a pad token that differs from it.

    It carries the tokens that end an answer (`rlhf.models.stop_tokens`), and its template prints no date of today.

    Args:
        name: Hub id, model folder, adapter folder of a stage (which saves its tokenizer), folder with one .gguf file,
            or `sandbox`.
        revision: branch, tag or commit on the Hub.
        eos_token: token of the vocabulary that ends answers from now on, such as `<|im_end|>` for bases of Qwen.

    Raises:
        InputError: there is no tokenizer, or it has no end-of-text token, or not this one.
    """
    folder = resolve_model_name(name)
    has_own_files = any((Path(folder) / file).exists() for file in ("tokenizer.json", "tokenizer_config.json"))
    gguf_file = None if has_own_files else _find_gguf(folder)
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, revision=revision, gguf_file=gguf_file)
    except Exception as error:  # the Rust library raises plain Exceptions
        if machine_fault(error):
            raise
        raise InputError(
            f"No tokenizer can be loaded from {name}: {first_line(error)}. Copy or download its tokenizer.json again."
        ) from error
    if eos_token is not None:
        if eos_token not in tokenizer.get_vocab():
            raise InputError(
                f"eos_token {eos_token} is not a token of the tokenizer of {name}. Name one of its tokens, or leave "
                "eos_token out."
            )
        tokenizer.eos_token = eos_token
    if tokenizer.eos_token is None:
        raise InputError(
            f"The tokenizer of {name} has no eos_token, so no answer could end. Set it in tokenizer_config.json."
        )
    if tokenizer.chat_template is None:
        # Chats are encoded without special tokens. If the tokenizer starts every text with BOS, the template must too.
        opens_with_bos = tokenizer("a").input_ids[:1] == [tokenizer.bos_token_id]
        tokenizer.chat_template = ("{{- bos_token -}}\n" if opens_with_bos else "") + DEFAULT_CHAT_TEMPLATE
    fix_date(tokenizer)
    begin_answers(tokenizer)
    if STOP_TOKENS not in tokenizer.init_kwargs:
        tokenizer.init_kwargs[STOP_TOKENS] = []
        add_stop_ids(tokenizer, base_stop_ids(folder, revision, gguf_file))
    set_pad_token(tokenizer)
    return tokenizer


def set_pad_token(tokenizer: PreTrainedTokenizerBase) -> None:
    """Gives the tokenizer a pad token other than EOS: with EOS as padding, a model never learns to stop.

    In order of preference: the tokenizer's own pad token, an unused special token of its vocabulary, a new token. A new
    token takes the first embedding row above the vocabulary if the model has spare rows (many models round up to a
    multiple of 64). Otherwise it has none, and needs none.
    """
    if tokenizer.pad_token is None or tokenizer.pad_token_id == tokenizer.eos_token_id:
        tokenizer.add_special_tokens({"pad_token": _unused_special_token(tokenizer) or NEW_PAD_TOKEN})
        logger.info("pad token: %s (%d)", tokenizer.pad_token, tokenizer.pad_token_id)


def _unused_special_token(tokenizer: PreTrainedTokenizerBase) -> str | None:
    """Finds a special token without a role: `<|padding|>` of GPT-NeoX, `<|vision_pad|>` of Qwen, `<unk>` of Llama 2."""
    roles = (*stop_token_texts(tokenizer), tokenizer.bos_token, tokenizer.unk_token)
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
    unknown = tokenizer.unk_token
    if isinstance(unknown, str) and unknown not in (tokenizer.eos_token, tokenizer.bos_token):
        return unknown
    # The last one, because the first ones are turn markers of chat templates (SmolLM2's <|im_start|>).
    return free[-1] if free else None
