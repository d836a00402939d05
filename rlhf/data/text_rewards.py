"""Reward models that read decoded text, and how they are found by name."""

import copy
import logging
from collections.abc import Sequence
from pathlib import Path

import torch
from peft import PeftModel
from torch.nn.utils.rnn import pad_sequence
from transformers import AutoModelForSequenceClassification, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import find_adapter_config_file
from trl import ModelConfig

from rlhf.data.encode import Prompt, encode_prompt_and_completions
from rlhf.errors import InputError, first_line
from rlhf.models.adapter_files import CALIBRATION, adapter_folder, base_model_name, check_reward_adapter
from rlhf.models.contracts import with_revision_of
from rlhf.models.frozen_reward import classifier_token_scores, freeze_reward
from rlhf.models.loading import context_length
from rlhf.models.peft_layers import unwrap_peft
from rlhf.models.reward_model import add_calibration, load_reward_model
from rlhf.models.stages import load_adapter_tokenizer
from rlhf.models.stop_tokens import add_stop_ids, eos_ids

logger = logging.getLogger(__name__)

ROWS = 32  # responses that a model reads at once


class TextRewardModel:
    """A reward model that reads decoded text, because it has its own tokenizer.

    Decoders are scored at the last token. Encoders (BERT, DeBERTa) read prompt and response as a pair of texts.

    Prompt and response are encoded as in its training: with its chat template if prompts are messages, and with what
    ends an answer there, up to its stop token, if the response ended by itself.

    Args:
        model: sequence classifier with one label; it is frozen.
        tokenizer: the reward model's.
    """

    def __init__(self, model: PreTrainedModel | PeftModel, tokenizer: PreTrainedTokenizerBase, name: str | None = None):
        base = unwrap_peft(model)
        self.reads_pairs = hasattr(base, "classifier") and not hasattr(base, "score") and base.config.num_labels == 1
        self.model = (model.requires_grad_(False) if self.reads_pairs else freeze_reward(model)).eval()
        self.tokenizer = copy.copy(tokenizer)
        self.tokenizer.init_kwargs = dict(tokenizer.init_kwargs)  # the policy's, if that is its tokenizer, stay
        add_stop_ids(self.tokenizer, eos_ids(model.config))
        self.name = name or Path(base.name_or_path or "").name or type(base).__name__
        self.context = context_length(model.config)
        self.warned = False

    @torch.no_grad()
    def __call__(self, prompts: list[Prompt], completions: list[str], ended: Sequence[bool]) -> list[float]:
        score = self.pair_scores if self.reads_pairs else self.token_scores
        scores = []
        for start in range(0, len(prompts), ROWS):
            part = slice(start, start + ROWS)
            scores += score(prompts[part], completions[part], ended[part])
        return scores

    def token_scores(self, prompts: list[Prompt], completions: list[str], ended: Sequence[bool]) -> list[float]:
        rows = [self.encode(*row) for row in zip(prompts, completions, ended, strict=True)]
        device = next(self.model.parameters()).device
        ids = pad_sequence([torch.tensor(row, device=device) for row in rows], batch_first=True)  # [B, T]
        last = torch.tensor([[len(row) - 1] for row in rows], device=device)
        return classifier_token_scores(self.model, ids).gather(1, last).squeeze(1).tolist()

    def pair_scores(self, prompts: list[Prompt], completions: list[str], ended: Sequence[bool]) -> list[float]:
        texts = [p if isinstance(p, str) else "\n".join(message["content"] for message in p) for p in prompts]
        batch = self.tokenizer(
            texts, completions, padding=True, truncation=True, max_length=self.context, return_tensors="pt"
        )
        return self.model(**batch.to(next(self.model.parameters()).device)).logits[:, 0].float().tolist()

    def encode(self, prompt: Prompt, completion: str, ended: bool) -> list[int]:
        prompt_ids, [answer] = encode_prompt_and_completions(self.tokenizer, prompt, [completion], [ended])
        ids = prompt_ids + answer
        if self.context is None or len(ids) <= self.context:
            return ids
        if not self.warned:
            self.warned = True
            logger.warning(
                "a prompt and response of %d tokens exceed a reward model's context of %d; it reads only their end.",
                len(ids), self.context,
            )  # fmt: skip
        return ids[-self.context :]


def is_adapter(name: str) -> bool:
    """True for the folder or Hub id of an adapter; the Hub is asked for its configuration file alone."""
    folder = Path(name).expanduser()
    try:
        return find_adapter_config_file(str(folder if folder.is_dir() else name)) is not None
    except (OSError, ValueError):  # neither a folder nor a Hub id
        return False


def load_text_reward(
    name: str, tokenizer: PreTrainedTokenizerBase | None = None, dtype: str = "float32"
) -> TextRewardModel:
    """Loads a reward adapter, with its calibration, or any sequence classifier with one label.

    Args:
        name: folder or Hub id.
        tokenizer: None: the one beside the model; an adapter without one has that of its base.
        dtype: of the weights.

    Raises:
        InputError: there is none, or it has no trained head with one label.
    """
    if is_adapter(name):
        folder = adapter_folder(name)
        model_args = ModelConfig(base_model_name(check_reward_adapter(name), name), dtype=dtype)
        tokenizer = tokenizer or load_adapter_tokenizer(with_revision_of(model_args, folder), folder)
        return TextRewardModel(load_reward_model(name, model_args), tokenizer, Path(name).name)
    try:
        tokenizer = tokenizer or AutoTokenizer.from_pretrained(name)
        model, loading = AutoModelForSequenceClassification.from_pretrained(
            name, num_labels=1, dtype=getattr(torch, dtype), use_safetensors=True, output_loading_info=True
        )
    except (OSError, ValueError, RuntimeError) as error:
        raise InputError(
            f"reward model {name} is no sequence classifier with one label: {first_line(error)}"
        ) from error
    if loading["missing_keys"]:
        missing = ", ".join(sorted(loading["missing_keys"]))
        raise InputError(f"reward model {name} lacks the weights {missing}; pass a trained sequence classifier.")
    folder = Path(name).expanduser()
    if (folder / CALIBRATION).exists():  # a merged reward model, whose head has lost its bias
        add_calibration(model, folder)
    return TextRewardModel(model, tokenizer, Path(name).name)


def own_tokenizer(model: PreTrainedModel | PeftModel) -> PreTrainedTokenizerBase | None:
    """Returns the tokenizer beside a model's weights, as GRPOTrainer does; None if there is none."""
    name = unwrap_peft(model).name_or_path
    try:
        return AutoTokenizer.from_pretrained(name) if name else None
    except (OSError, ValueError):
        return None
