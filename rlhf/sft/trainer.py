"""Supervised fine-tuning (arXiv 2203.02155, section 3.5): what TRL's SFTTrainer is given."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import islice

import numpy as np
import trl
from datasets import Dataset, concatenate_datasets
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from trl import ModelConfig, SFTConfig

from rlhf.data.encode import encode_completion, encode_prompt
from rlhf.data.pretraining import PretrainingStream, Rows
from rlhf.data.scratch import write_rows
from rlhf.errors import InputError
from rlhf.runs.checkpoints import AtomicCheckpoints

# In GPT-2, GPT-Neo, GPT-J, GPT-NeoX and Phi.
RESIDUAL_DROPOUTS = (
    "resid_dropout",
    "mlp.dropout",
    "post_attention_dropout",
    "post_mlp_dropout",
)


@dataclass
class SFTArguments(SFTConfig):
    """TRL's SFTConfig with the paper's numbers as defaults (appendix C.1)."""

    num_train_epochs: float = field(default=16.0, metadata={"help": "Passes over the demonstrations."})
    # The paper's 9.65e-6 moves all weights. LoRA needs about ten times the rate of full fine-tuning, whatever the model
    # (thinkingmachines.ai/blog/lora); a model of a few million parameters takes ten times more still.
    learning_rate: float = field(default=1e-4, metadata={"help": "Peak learning rate, for LoRA."})
    lr_scheduler_type: str = field(
        default="cosine_with_min_lr", metadata={"help": "Cosine to 10 %% of the peak, no warm-up."}
    )
    adam_beta2: float = field(default=0.95, metadata={"help": "Adam's second beta; the first is 0.9."})
    # 8 * 4 = 32 demonstrations a step on one device. Launched on n devices, divide one of the two by n.
    per_device_train_batch_size: int = field(default=8, metadata={"help": "Demonstrations a device takes at a time."})
    gradient_accumulation_steps: int = field(default=4, metadata={"help": "Such batches in one optimizer step."})
    max_length: int | None = field(
        default=2048, metadata={"help": "Longest prompt and response together, in tokens; longer rows are bad rows."}
    )
    # TRL infers this from the columns `prompt` and `completion`, which tokenised rows no longer have.
    completion_only_loss: bool | None = field(default=True, metadata={"help": "Loss on response tokens only."})
    # The models that PPO starts from: 2 epochs and a tenth of pretraining data (appendix C.3).
    pretrain_mix: float = field(
        default=0.0,
        metadata={"help": "Share of pretraining text in the tokens that the loss is on; 0: no pretraining text."},
    )
    pretrain_mix_weights: list[float] | None = field(
        default=None, metadata={"help": "Shares of the sources of pretraining text; None: equal."}
    )
    eval_strategy: str = field(default="epoch", metadata={"help": "When to measure validation loss."})
    save_strategy: str = field(default="epoch", metadata={"help": "When to keep a checkpoint to choose from."})

    def __post_init__(self):
        if self.lr_scheduler_type == "cosine_with_min_lr" and self.lr_scheduler_kwargs is None:
            self.lr_scheduler_kwargs = {"min_lr_rate": 0.1}
        if not 0 <= self.pretrain_mix < 1:
            raise InputError(f"pretrain_mix is {self.pretrain_mix}; it is a share: at least 0, and less than 1.")
        if self.pretrain_mix_weights is not None and self.pretrain_mix == 0:
            raise InputError("pretrain_mix_weights without pretrain_mix; there is no pretraining text to weigh.")
        super().__post_init__()


class SFTTrainer(AtomicCheckpoints, trl.SFTTrainer):
    """TRL's, with checkpoints that are written as a whole or not at all."""


@dataclass
class SFTModelConfig(ModelConfig):
    """TRL's ModelConfig with the paper's dropout."""

    lora_dropout: float = field(
        default=0.2,
        metadata={
            "help": "Dropout before each LoRA layer, in place of the paper's residual dropout of 0.2; where the base "
            "has residual dropout itself, that is set to the same value."
        },
    )


def set_residual_dropout(model: PreTrainedModel, p: float) -> None:
    """Sets the dropout of the residual branches in architectures that have it; Llama and its kin have none."""
    for name, module in model.named_modules():
        if isinstance(module, nn.Dropout) and name.endswith(RESIDUAL_DROPOUTS):
            module.p = p


def tokenize_demonstrations(dataset: Dataset, tokenizer: PreTrainedTokenizerBase) -> Dataset:
    """`prompt` and `completion` -> `input_ids` and `completion_mask` (1 on the response and its EOS), nothing else."""

    def encode(row):
        prompt_ids = encode_prompt(tokenizer, row["prompt"])
        completion_ids = encode_completion(tokenizer, row["prompt"], row["completion"])
        mask = [0] * len(prompt_ids) + [1] * len(completion_ids)
        return {"input_ids": prompt_ids + completion_ids, "completion_mask": mask}

    return dataset.map(encode, remove_columns=dataset.column_names, desc="Tokenizing demonstrations")


def mix_pretraining(
    rows: Dataset, sources: Rows | Sequence[Rows], tokenizer: PreTrainedTokenizerBase, args: SFTArguments
) -> Dataset:
    """Rows of `tokenize_demonstrations` and, evenly spread among them, blocks of pretraining text (appendix C.3).

    A block is `max_length` tokens of packed documents, of which all but the first are predicted. For R tokens of
    responses, prompts not counted, the number of blocks is the n that solves

        n (max_length - 1) / (n (max_length - 1) + R) = pretrain_mix

    rounded, and at least 1. The blocks are a function of sources, tokenizer, arguments and seed, and the same in every
    epoch.

    Raises:
        InputError: there is no max_length, or the text is not to be had (see `PretrainingStream`).
    """
    if args.max_length is None:
        raise InputError("pretraining text is cut into blocks of max_length tokens; give max_length.")
    stream = PretrainingStream(sources, tokenizer, args.max_length, weights=args.pretrain_mix_weights, seed=args.seed)
    responses = sum(sum(mask) for mask in rows["completion_mask"])
    wanted = responses * args.pretrain_mix / (1 - args.pretrain_mix)
    count = max(1, round(wanted / (args.max_length - 1)))
    blocks = ({"input_ids": ids, "completion_mask": [1] * len(ids)} for ids in islice(stream, count))
    mixed = concatenate_datasets([rows, write_rows("blocks", blocks, rows.features)])
    places = np.concatenate([(np.arange(n) + 0.5) / n for n in (len(rows), count)])  # of each row, between 0 and 1
    return mixed.select(np.argsort(places, kind="stable"))
