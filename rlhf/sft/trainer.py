"""Supervised fine-tuning (arXiv 2203.02155, section 3.5): arguments and rows for TRL's SFTTrainer."""

import logging
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import islice
from statistics import fmean
from typing import Any, cast

import numpy as np
import torch
import trl
from accelerate import Accelerator
from accelerate.utils import set_seed
from datasets import Dataset, concatenate_datasets
from peft import PeftModel
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase, TrainingArguments
from trl import SFTConfig
from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

from rlhf.data.encode import encode_completion, encode_prompt
from rlhf.data.lengths import longest_rows
from rlhf.data.pretraining import PretrainingStream, Rows
from rlhf.data.scratch import write_rows
from rlhf.errors import InputError
from rlhf.models.adapter_files import check_lora_config
from rlhf.models.compiled_layers import COMPILE, compile_if_asked
from rlhf.models.loading import LoraModelConfig
from rlhf.models.memory import Memory, sft_memory
from rlhf.models.micro_batches import fit_memory, rows_field
from rlhf.models.model_sizes import Layout, Shape
from rlhf.models.packed_attention import enable_packing, noise_obstacle, packed_row
from rlhf.models.peft_layers import unwrap_peft
from rlhf.models.precision import bf16_on_cpu, computing_dtype, float_trained_weights, trained_weights_kept
from rlhf.models.recomputation import CHECKPOINTING, left_open
from rlhf.runs.batches import resolve_batch, rows_left_open
from rlhf.runs.checkpoints import AtomicCheckpoints
from rlhf.runs.processes import use_one_device
from rlhf.sft.loss import IGNORED, check_loss, replace_chunked_loss
from rlhf.tensors import PADDING_ID, as_float64

logger = logging.getLogger(__name__)

TEXT = {"input_ids", "attention_mask", "labels"}  # of a batch; images and token types have columns of their own
PER_TOKEN = {"entropy", "mean_token_accuracy"}  # metrics of TRL that are means over the tokens of a batch

# Modules of GPT-2, GPT-Neo, GPT-J, GPT-NeoX and Phi.
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
    # The paper's 9.65e-6 is for training all weights. LoRA needs about ten times the rate of full fine-tuning for every
    # model (thinkingmachines.ai/blog/lora). A model of a few million parameters takes ten times more again.
    learning_rate: float = field(default=1e-4, metadata={"help": "Peak learning rate, for LoRA."})
    lr_scheduler_type: str = field(
        default="cosine_with_min_lr", metadata={"help": "Cosine to 10 %% of the peak, no warm-up."}
    )
    adam_beta2: float = field(default=0.95, metadata={"help": "Adam's second beta; the first is 0.9."})
    batch_size: int | None = field(
        default=None,
        metadata={"help": "Demonstrations per optimizer step over all processes. None: 32, as in the paper."},
    )
    per_device_train_batch_size: int = rows_field("Demonstrations per process in one forward pass, at most.")
    gradient_accumulation_steps: int | None = field(
        default=None, metadata={"help": "Forward passes per optimizer step. None: computed from batch_size."}
    )
    gradient_checkpointing: bool | None = field(default=None, metadata=CHECKPOINTING)
    max_length: int | None = field(
        default=2048,
        metadata={
            "help": "Tokens of the longest prompt and response together; longer rows are bad rows. The model's context "
            "is the limit if it is shorter, or if this is None."
        },
    )
    compile: bool | None = field(default=None, metadata=COMPILE)
    # TRL infers this from the columns `prompt` and `completion`, which tokenized rows do not have.
    completion_only_loss: bool | None = field(default=True, metadata={"help": "Compute the loss on responses only."})
    # PPO starts from models of 2 epochs with a tenth of pretraining data (appendix C.3).
    pretrain_mix: float = field(
        default=0.0,
        metadata={"help": "Share of pretraining text in the tokens of the loss, below 1. 0: no pretraining text."},
    )
    pretrain_mix_weights: list[float] | None = field(
        default=None,
        metadata={"help": "Shares of the sources in the pretraining text, one per source, of any sum. None: equal."},
    )
    eval_strategy: str = field(default="epoch", metadata={"help": "When to measure validation loss."})
    save_strategy: str = field(default="epoch", metadata={"help": "When to save a checkpoint to choose from."})

    computed = frozenset()  # fields that __post_init__ computes; no field itself

    def __post_init__(self):
        self.computed = left_open(self) | rows_left_open(self)
        if self.lr_scheduler_type == "cosine_with_min_lr" and self.lr_scheduler_kwargs is None:
            self.lr_scheduler_kwargs = {"min_lr_rate": 0.1}
        if not 0 <= self.pretrain_mix < 1:
            raise InputError(f"pretrain_mix is {self.pretrain_mix}; it must be at least 0 and below 1.")
        if self.pretrain_mix_weights is not None and self.pretrain_mix == 0:
            raise InputError("pretrain_mix_weights is set, but pretrain_mix is 0. Set pretrain_mix, too.")
        if self.loss_type not in (None, "nll", "chunked_nll", "dft"):
            raise InputError(f"loss_type is {self.loss_type}; it must be nll, chunked_nll or dft.")
        self.completion_only_loss = self.completion_only_loss is not False  # None: TRL would train on prompts, too
        with bf16_on_cpu(self):
            super().__post_init__()
        if "no" not in (self.eval_strategy, self.save_strategy):
            # The epoch is chosen by it, so save_total_limit keeps it.
            self.metric_for_best_model, self.greater_is_better = "eval_loss", False
        use_one_device(self)
        resolve_batch(self, paper=32)


class SFTTrainer(AtomicCheckpoints, trl.SFTTrainer):
    """TRL's SFTTrainer with atomic checkpoints, seeded LoRA weights in float32, and a validation loss per token.

    TRL's validation loss is a mean of the batches' means: short answers count more, and the number depends on the batch
    size. Here it is the mean over all completion tokens, whatever the batches and processes.
    """

    stage = "sft"

    def __init__(self, model, args: SFTConfig | None = None, *positional, **kwargs):
        check_lora_config(kwargs.get("peft_config"), "peft_config")
        seed = TrainingArguments.seed if args is None else args.seed
        set_seed(seed)  # the Trainer sets it after TRL has drawn the LoRA weights
        if args is not None and (args.packing or args.eval_packing or args.padding_free):
            raise InputError(
                "packing or padding_free is set, but batches count demonstrations, and pack them without padding on a "
                "GPU by themselves; leave it out."
            )
        with trained_weights_kept(model):
            super().__init__(model, args, *positional, **kwargs)
        check_loss(cast(SFTConfig, self.args), self.compute_loss_func)
        float_trained_weights(cast(nn.Module, self.model))
        if isinstance(self.data_collator, DataCollatorForLanguageModeling):
            self.data_collator.pad_token_id = PADDING_ID
        sharded = self.is_fsdp_enabled or self.is_deepspeed_enabled
        if cast(SFTConfig, self.args).loss_type == "chunked_nll" and not sharded:
            replace_chunked_loss(unwrap_peft(cast(PreTrainedModel, self.model)))
        self._eval_sums: dict[str, float] = defaultdict(float)
        self.packs = self._enable_packing()
        lm = unwrap_peft(cast(PreTrainedModel, self.model))
        fit_memory(self, lm, self.step_memory, self.row_tokens, padded=not self.packs)
        compile_if_asked(self, lm)

    def _enable_packing(self) -> bool:
        """True if a batch of text passes the model as one row without padding."""
        lm = unwrap_peft(cast(Any, self.model))
        learned_prompt = isinstance(self.model, PeftModel) and self.model.active_peft_config.is_prompt_learning
        experts = getattr(lm.config.get_text_config(), "output_router_logits", False)
        if learned_prompt or experts or self.args.n_gpu > 1:
            return False  # these take rows of the batch
        obstacle = noise_obstacle(self.args) or enable_packing(
            lm, self.args.device, computing_dtype(self.args, lm.dtype)
        )
        if obstacle and self.args.device.type != "cpu":
            logger.warning("rows are padded, because %s", obstacle)
        return obstacle is None

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        loss_only = inputs.get("_prediction_loss_only", not return_outputs)  # else logits are those of the rows
        if self.packs and loss_only and inputs.keys() - {"_prediction_loss_only"} == TEXT:
            inputs = inputs | pack_batch(**{name: inputs[name] for name in TEXT})
        return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)

    @cached_property
    def row_lengths(self) -> list[int]:
        return list(map(len, cast(Dataset, self.train_dataset)["input_ids"]))

    def row_tokens(self, layout: Layout) -> float:
        """Tokens of a row, on average."""
        return fmean(self.row_lengths)

    def step_memory(self, shape: Shape, layout: Layout, rows: int) -> Memory:
        """Memory of a step on the longest rows; on the largest of many random batches if they are packed."""
        by_length = self.args.train_sampling_strategy == "group_by_length"
        tokens = longest_rows(self.row_lengths, rows, self.packs, by_length)
        return sft_memory(shape, replace(layout, packed=self.packs), rows, tokens)

    def _get_num_items_in_batch(self, batch_samples: list, device: torch.device):
        """Tokens of an optimizer step on all processes; None in evaluation, where a loss is its own batch's mean."""
        return super()._get_num_items_in_batch(batch_samples, device) if cast(nn.Module, self.model).training else None

    def prediction_step(self, model, inputs, prediction_loss_only, ignore_keys=None):
        counted = _counted_rows(len(inputs["labels"]), self.accelerator)
        inputs["labels"][counted:] = IGNORED
        tokens = (inputs["labels"][:, 1:] != IGNORED).sum().item()
        loss, logits, labels = super().prediction_step(model, inputs, prediction_loss_only, ignore_keys)
        means: dict[str, Any] = {"loss": loss, "tokens": 1.0}
        for name in PER_TOKEN & self._metrics["eval"].keys():  # TRL has appended the means of this batch
            means[name] = self._metrics["eval"][name].pop()
        for name, mean in means.items():
            self._eval_sums[name] += tokens * float(mean) if tokens else 0.0
        return loss, logits, labels

    def evaluation_loop(self, *args, metric_key_prefix: str = "eval", **kwargs):
        self._eval_sums.clear()
        output = super().evaluation_loop(*args, metric_key_prefix=metric_key_prefix, **kwargs)
        names = sorted(self._eval_sums)  # the same on all processes
        if names and output.metrics is not None:
            sums = as_float64(torch.tensor([self._eval_sums[name] for name in names], device=self.accelerator.device))
            totals = dict(zip(names, cast(torch.Tensor, self.accelerator.reduce(sums, "sum")).tolist(), strict=True))
            output.metrics[f"{metric_key_prefix}_loss"] = totals["loss"] / totals["tokens"]
            for name in PER_TOKEN & totals.keys():
                self._metrics["eval"][name] = [totals[name] / totals["tokens"]]
        return output


def pack_batch(input_ids: Tensor, attention_mask: Tensor, labels: Tensor) -> dict[str, Any]:
    """Packs a batch [B, T] into one row, for `packed_attention`. No sequence predicts the first token of the next."""
    real = attention_mask.bool()
    lengths = real.sum(1).tolist()
    row = packed_row(lengths, input_ids.device)
    first = row["position_ids"] == 0
    return {"input_ids": input_ids[real][None], "labels": labels[real][None].masked_fill(first, IGNORED), **row}


def _counted_rows(rows: int, accelerator: Accelerator) -> int:
    """Number of this process's first rows that are no repetitions: Accelerate fills up the last batches with rows."""
    state = accelerator.gradient_state
    if accelerator.num_processes == 1 or not state.end_of_dataloader or state.remainder <= 0:
        return rows
    return min(rows, max(0, state.remainder - rows * accelerator.process_index))


@dataclass
class SFTModelConfig(LoraModelConfig):
    """TRL's ModelConfig with the paper's dropout."""

    lora_dropout: float = field(
        default=0.2,
        metadata={
            "help": "Probability of dropout before each LoRA layer, in place of the paper's residual dropout of 0.2. "
            "A base with residual dropout gets the same value there."
        },
    )


def set_residual_dropout(model: PreTrainedModel, p: float) -> None:
    """Sets the dropout of residual branches, in architectures that have it (Llama and its relatives have none)."""
    for name, module in model.named_modules():
        if isinstance(module, nn.Dropout) and name.endswith(RESIDUAL_DROPOUTS):
            module.p = p


def tokenize_demonstrations(
    dataset: Dataset, tokenizer: PreTrainedTokenizerBase, num_proc: int | None = None
) -> Dataset:
    """Replaces all columns by `input_ids` and `completion_mask` (1 on the response and its EOS)."""

    def encode(row):
        prompt_ids = encode_prompt(tokenizer, row["prompt"])
        completion_ids = encode_completion(tokenizer, row["prompt"], row["completion"])
        mask = [0] * len(prompt_ids) + [1] * len(completion_ids)
        return {"input_ids": prompt_ids + completion_ids, "completion_mask": mask}

    return dataset.map(encode, remove_columns=dataset.column_names, num_proc=num_proc, desc="Tokenizing demonstrations")


def mix_pretraining(
    rows: Dataset, sources: Rows | Sequence[Rows], tokenizer: PreTrainedTokenizerBase, args: SFTArguments
) -> Dataset:
    """Spreads blocks of pretraining text evenly among the rows of `tokenize_demonstrations` (appendix C.3).

    A block has `max_length` tokens of packed documents; all but the first are predicted. For R tokens of responses,
    prompts not counted, the number of blocks is the n that solves

        n (max_length - 1) / (n (max_length - 1) + R) = pretrain_mix

    rounded, and at least 1. The blocks depend only on sources, tokenizer, arguments and seed, and are the same in every
    epoch.

    Raises:
        InputError: max_length is None, or the sources cannot be used (see `PretrainingStream`).
    """
    if args.max_length is None:
        raise InputError("max_length is None, but pretraining text is cut into blocks of that length. Set max_length.")
    stream = PretrainingStream(sources, tokenizer, args.max_length, weights=args.pretrain_mix_weights, seed=args.seed)
    response_tokens = sum(sum(mask) for mask in rows["completion_mask"])
    text_tokens = response_tokens * args.pretrain_mix / (1 - args.pretrain_mix)
    n_blocks = max(1, round(text_tokens / (args.max_length - 1)))
    blocks = ({"input_ids": ids, "completion_mask": [1] * len(ids)} for ids in islice(stream, n_blocks))
    mixed = concatenate_datasets([rows, write_rows("blocks", blocks, rows.features)])
    positions = np.concatenate([(np.arange(n) + 0.5) / n for n in (len(rows), n_blocks)])  # of each row, in (0, 1)
    return mixed.select(np.argsort(positions, kind="stable"))
