"""Supervised fine-tuning (arXiv 2203.02155, section 3.5): configuration for TRL's SFTTrainer and the choice of an epoch.

Validation loss is lowest after about one epoch, while the reward model's score of sampled answers keeps rising: the paper
trains for 16 epochs and keeps the checkpoint with the best score.
"""

import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from torch import nn
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase
from trl import ModelConfig, SFTConfig

from rlhf.adapters import SharedBase
from rlhf.data.encode import Prompt, encode_completion, encode_prompt
from rlhf.errors import InputError

RESIDUAL_DROPOUTS = ("resid_dropout", "mlp.dropout", "post_attention_dropout", "post_mlp_dropout")  # GPT-2, J, NeoX, Phi


@dataclass
class SFTArguments(SFTConfig):
    """TRL's SFTConfig with the paper's numbers as defaults (appendix C.1), and how to choose among the epochs."""

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
    eval_strategy: str = field(default="epoch", metadata={"help": "When to measure validation loss."})
    save_strategy: str = field(default="epoch", metadata={"help": "When to keep a checkpoint to choose from."})
    reward_model_path: str | None = field(
        default=None,
        metadata={"help": "Reward adapter that chooses the checkpoint; without one, the lowest validation loss does."},
    )
    choice_prompts: int = field(
        default=128, metadata={"help": "Validation prompts that each checkpoint answers for the reward model."}
    )
    choice_max_new_tokens: int = field(default=256, metadata={"help": "Longest of these answers, in tokens."})

    def __post_init__(self):
        if self.lr_scheduler_type == "cosine_with_min_lr" and self.lr_scheduler_kwargs is None:
            self.lr_scheduler_kwargs = {"min_lr_rate": 0.1}
        super().__post_init__()


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


def checkpoint_table(log_history: Sequence[dict[str, Any]], output_dir: str | Path) -> list[dict[str, Any]]:
    """One row for each evaluation of a Trainer that left a checkpoint: `epoch`, `checkpoint`, `eval_loss`."""
    return [
        {"epoch": round(log["epoch"], 3), "checkpoint": f"checkpoint-{log['step']}", "eval_loss": log["eval_loss"]}
        for log in log_history
        if "eval_loss" in log and (Path(output_dir) / f"checkpoint-{log['step']}").is_dir()
    ]


def choose_checkpoint(table: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The row with the highest `rm_score`, where the rows have one, else the one with the lowest `eval_loss`.

    Raises:
        InputError: there is no row.
    """
    if not table:
        raise InputError("there is no checkpoint to choose from; keep eval_strategy and save_strategy at `epoch`.")
    if "rm_score" in table[0]:
        return max(table, key=lambda row: row["rm_score"])
    return min(table, key=lambda row: row["eval_loss"])


def install_checkpoint(output_dir: str | Path, checkpoint: str) -> None:
    """Makes the adapter of `output_dir/checkpoint` the one that loading `output_dir` gives."""
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        shutil.copyfile(Path(output_dir) / checkpoint / name, Path(output_dir) / name)


def score_checkpoints(
    table: Sequence[dict[str, Any]],
    output_dir: str | Path,
    base: PreTrainedModel,
    reward_model_path: str,
    prompts: Sequence[list[int]],
    tokenizer: PreTrainedTokenizerBase,
    max_new_tokens: int,
    batch_size: int,
    seed: int = 0,
) -> list[dict[str, Any]]:
    """Adds `rm_score` to each row: the mean calibrated reward of answers sampled from that checkpoint.

    All checkpoints and the reward model share one copy of the base, answer the same prompts and draw the same random
    numbers.

    Args:
        table: rows of `checkpoint_table`; base: the causal language model without adapters.
        prompts: token ids of each prompt.
    """
    # In place of the base's own, which may hold a top_p or a repetition penalty.
    base.generation_config = GenerationConfig(
        do_sample=True,
        temperature=1.0,
        top_k=0,
        top_p=1.0,
        max_new_tokens=max_new_tokens,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    shared = SharedBase(base)
    shared.add_adapter("reward", folder=reward_model_path, head=True)
    scored = []
    for row in table:
        shared.add_adapter(row["checkpoint"], folder=Path(output_dir) / row["checkpoint"])
        shared.eval()  # the new layers' dropout
        torch.manual_seed(seed)
        rewards = [
            sampled_rewards(shared, row["checkpoint"], prompts[i : i + batch_size], tokenizer)
            for i in range(0, len(prompts), batch_size)
        ]
        shared.peft_model.delete_adapter(row["checkpoint"])
        scored.append({**row, "rm_score": torch.cat(rewards).mean().item()})
    return scored


@torch.no_grad()
def sampled_rewards(
    shared: SharedBase,
    name: str,
    prompts: Sequence[list[int]],
    tokenizer: PreTrainedTokenizerBase,
) -> torch.Tensor:
    """Rewards [B] float32 of one answer to each of B prompts (lists of ids), sampled from adapter `name`."""
    width = max(map(len, prompts))
    padded = [[tokenizer.pad_token_id] * (width - len(ids)) + ids for ids in prompts]
    input_ids = torch.tensor(padded, device=shared.device)
    columns = torch.arange(width, device=shared.device)
    lengths = torch.tensor([len(ids) for ids in prompts], device=shared.device)
    attention_mask = (columns >= width - lengths[:, None]).long()
    sequences = shared.generate(name, input_ids=input_ids, attention_mask=attention_mask)
    is_eos = sequences[:, width:] == tokenizer.eos_token_id
    response_mask = (is_eos.cumsum(1) - is_eos.long() == 0).long()  # up to and including the first EOS
    attention_mask = torch.cat([attention_mask, response_mask], dim=1)
    position_ids = (attention_mask.cumsum(1) - 1).clamp(min=0)
    rewards = shared.scalars("reward", sequences, attention_mask, position_ids)  # [B, T]
    last_token = width + response_mask.sum(1) - 1
    return rewards[torch.arange(len(rewards), device=rewards.device), last_token].cpu()


def prompts_to_choose_with(
    dataset: Dataset, tokenizer: PreTrainedTokenizerBase, args: SFTArguments
) -> list[list[int]]:
    """Ids of the first `choice_prompts` different prompts of `dataset` that leave room for an answer."""
    chosen: dict[tuple[int, ...], None] = {}
    longest = (args.max_length or 10**9) - args.choice_max_new_tokens
    for prompt in dataset["prompt"]:
        ids = encode_prompt(tokenizer, prompt)
        if len(ids) <= longest:
            chosen[tuple(ids)] = None
        if len(chosen) == args.choice_prompts:
            break
    if not chosen:
        raise InputError(
            f"no validation prompt leaves room for choice_max_new_tokens ({args.choice_max_new_tokens}) within "
            f"max_length ({args.max_length}); lower the first or raise the second."
        )
    return [list(ids) for ids in chosen]
