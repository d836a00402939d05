"""The choice of an epoch of supervised fine-tuning (arXiv 2203.02155, section 3.5).

Validation loss is lowest after about one epoch, while the reward model's score of sampled answers keeps rising. The
paper trains for 16 epochs and keeps the checkpoint with the highest reward-model score.
"""

import logging
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from transformers import PreTrainedModel, PreTrainedTokenizerBase, TrainingArguments

from rlhf.data.encode import encode_prompt, prompt_key
from rlhf.data.lengths import drop_long_rows
from rlhf.errors import InputError, require_at_least
from rlhf.generation.completions import completion_rewards, sample_completions
from rlhf.generation.score_options import PolicyOptions, shaped_rewards
from rlhf.models.adapter_files import CONFIG, WEIGHTS
from rlhf.models.loading import context_length
from rlhf.models.shared_base import SharedBase
from rlhf.runs.contract import FILE_NAME, copy_contract
from rlhf.runs.timed import is_timed

logger = logging.getLogger(__name__)


@dataclass
class ChoiceArguments:
    """Settings of the choice among the checkpoints of an SFT run."""

    reward_model_path: str | None = field(
        default=None,
        metadata={"help": "Reward adapter whose score chooses the checkpoint. None: the lowest validation loss does."},
    )
    choice_prompts: int = field(
        default=128, metadata={"help": "Different validation prompts that every checkpoint answers."}
    )
    choice_max_new_tokens: int = field(default=256, metadata={"help": "Tokens of the longest of these answers."})
    choice_temperature: float = field(
        default=1.0, metadata={"help": "Sampling temperature of these answers. Set it to the one of the PPO stage."}
    )
    missing_eos_penalty: float | None = field(
        default=None,
        metadata={
            "help": "Positive number subtracted from the score of an answer without EOS. Set it as in the PPO stage. "
            "None subtracts nothing."
        },
    )
    missing_eos_reward: float | None = field(
        default=None,
        metadata={"help": "Score of an answer without EOS, instead of its own. Set it as in the PPO stage."},
    )
    choice_batch_size: int = field(default=32, metadata={"help": "Answers sampled in one batch."})
    choice_seed: int = field(default=0, metadata={"help": "Seed of sampling, the same for all checkpoints."})

    def __post_init__(self):
        require_at_least(self, 1, "choice_prompts", "choice_max_new_tokens", "choice_batch_size")
        if self.choice_temperature <= 0:
            raise InputError(f"choice_temperature is {self.choice_temperature}; answers are sampled: make it positive.")
        if self.missing_eos_penalty is not None and self.missing_eos_penalty <= 0:
            raise InputError(f"missing_eos_penalty is {self.missing_eos_penalty}; it is subtracted: make it positive.")


def check_choice(args: TrainingArguments, choice: ChoiceArguments) -> None:
    """Checks, before the training, that there will be checkpoints to choose from, and says so where there will be none.

    Raises:
        InputError: the reward model cannot choose, because checkpoints are missing.
    """
    none = [name for name in ("save_strategy", "eval_strategy") if getattr(args, name) == "no"]
    if choice.reward_model_path is not None and (none or args.save_total_limit is not None):
        option = f"{none[0]} is no" if none else f"save_total_limit is {args.save_total_limit}"
        raise InputError(
            f"reward_model_path chooses among the checkpoints of all epochs, but {option}. Leave one of the two out."
        )
    if none:
        logger.warning("%s is no: no epoch is chosen, the last weights are the result", " and ".join(none))
    save, evaluate = ((args.save_strategy, args.save_steps), (args.eval_strategy, args.eval_steps))
    if (
        not none
        and args.save_strategy != "best"
        and (save[0] != evaluate[0] or (save[0] == "steps" and save != evaluate))
    ):
        logger.warning(
            "save_strategy and eval_strategy, or their steps, differ: only checkpoints of steps that are evaluated, "
            "too, can be chosen"
        )


def checkpoint_table(log_history: Sequence[dict[str, Any]], run_folder: str | Path) -> list[dict[str, Any]]:
    """Returns one row per evaluated and saved checkpoint of a Trainer: `epoch`, `checkpoint`, `eval_loss`.

    Checkpoints that the clock saved are left out: another run of the same options would have others. Warns if the one
    with the lowest loss is not there any more, as after resuming in another folder.
    """
    table = [
        {"epoch": round(log["epoch"], 3), "checkpoint": f"checkpoint-{log['step']}", "eval_loss": log["eval_loss"]}
        for log in log_history
        if "eval_loss" in log
        and (checkpoint := Path(run_folder) / f"checkpoint-{log['step']}").is_dir()
        and not is_timed(checkpoint)
    ]
    evaluated = [log for log in log_history if "eval_loss" in log]
    best = min(evaluated, key=lambda log: log["eval_loss"], default=None)
    if table and best is not None and best["eval_loss"] < min(row["eval_loss"] for row in table):
        logger.warning(
            "the lowest validation loss, %.4f, is that of step %d, whose checkpoint is not in %s; the best of the "
            "others is chosen", best["eval_loss"], best["step"], run_folder,
        )  # fmt: skip
    return table


def choose_checkpoint(run_folder: str | Path, table: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Copies the best row's adapter to the run's top folder: highest `rm_score`, or lowest `eval_loss` without scores.

    Without rows, the last weights stay there.

    Returns:
        entries of result.json: `chosen` (a checkpoint, or None), `chosen_by` (`rm_score`, `eval_loss` or `last`),
        `epochs` (the table).
    """
    if not table:
        if any(Path(run_folder).glob("checkpoint-*")):
            logger.warning("no checkpoint was evaluated: no epoch is chosen, the last weights are the result")
        return {"chosen": None, "chosen_by": "last", "epochs": []}
    if "rm_score" in table[0]:
        best, criterion = max(table, key=lambda row: row["rm_score"]), "rm_score"
    else:
        best, criterion = min(table, key=lambda row: row["eval_loss"]), "eval_loss"
    for name in (CONFIG, WEIGHTS):
        shutil.copyfile(Path(run_folder) / best["checkpoint"] / name, Path(run_folder) / name)
    if (Path(run_folder) / best["checkpoint"] / FILE_NAME).exists():
        copy_contract(Path(run_folder) / best["checkpoint"], run_folder)
    return {"chosen": best["checkpoint"], "chosen_by": criterion, "epochs": list(table)}


def choice_text(result: dict[str, Any]) -> str:
    """Returns which epoch `choose_checkpoint` chose and why, for people."""
    if result["chosen"] is None:
        return "the last weights: no epoch was evaluated and saved, so none could be chosen"
    table = result["epochs"]
    row = next(row for row in table if row["checkpoint"] == result["chosen"])
    text = f"epoch {row['epoch']:g} of {table[-1]['epoch']:g} ({result['chosen']}) has the "
    if result["chosen_by"] == "eval_loss":
        last = "" if row is table[-1] else f"; the last epoch has {table[-1]['eval_loss']:.3f}"
        return text + f"lowest validation loss, {row['eval_loss']:.3f}{last}"
    low, high = (row["rm_score"] + sign * 1.96 * row["rm_score_se"] for sign in (-1, 1))
    return text + f"highest reward, {row['rm_score']:.2f} (95 % interval {low:.2f} to {high:.2f})"


def score_checkpoints(
    table: Sequence[dict[str, Any]],
    run_folder: str | Path,
    base: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    demonstrations: Dataset,
    choice: ChoiceArguments,
) -> list[dict[str, Any]]:
    """Adds to each row `rm_score`, the mean calibrated reward of sampled answers, and its standard error `rm_score_se`.

    The checkpoints and the reward model share one copy of the base. All checkpoints answer the same prompts with the
    same random numbers.

    Args:
        table: rows of `checkpoint_table`.
        run_folder: folder of the SFT run, with the checkpoints.
        base: the causal language model without adapters.
        demonstrations: validation rows; their first `choice_prompts` different prompts are answered.
    """
    prompts = prompts_to_answer(demonstrations, base, tokenizer, choice)
    shared = SharedBase(base)
    shared.add_adapter("reward", folder=choice.reward_model_path, head=True)
    options = PolicyOptions(choice.choice_temperature, choice.missing_eos_penalty, choice.missing_eos_reward)
    scored = []
    for row in table:
        name = row["checkpoint"]
        shared.add_adapter(name, folder=Path(run_folder) / name)
        shared.eval()  # a new adapter comes in training mode, with dropout
        completions = sample_completions(
            shared,
            name,
            prompts,
            tokenizer,
            max_new_tokens=choice.choice_max_new_tokens,
            temperature=options.temperature,
            seed=choice.choice_seed,
            batch_size=choice.choice_batch_size,
            description=name,
        )
        ids = [completion.ids for completion in completions]
        rewards = completion_rewards(shared, "reward", prompts, ids, choice.choice_batch_size)
        rewards = torch.tensor(shaped_rewards(rewards, completions, options))
        shared.peft_model.delete_adapter(name)
        standard_error = rewards.std(correction=0) / len(rewards) ** 0.5
        scored.append({**row, "rm_score": rewards.mean().item(), "rm_score_se": standard_error.item()})
    return scored


def prompts_to_answer(
    demonstrations: Dataset, base: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, choice: ChoiceArguments
) -> list[list[int]]:
    """Encodes the first `choice_prompts` different prompts that leave room for an answer in the model's context."""
    context = context_length(base.config)
    if context is not None:
        room = context - choice.choice_max_new_tokens
        lengths = [len(encode_prompt(tokenizer, prompt)) for prompt in demonstrations["prompt"]]
        option = "the context minus choice_max_new_tokens"
        demonstrations = drop_long_rows(demonstrations, lengths, room, "the demonstrations", "skip", option=option)
    prompts: dict[str, list[int]] = {}
    for prompt in demonstrations["prompt"]:
        prompts.setdefault(prompt_key(prompt), encode_prompt(tokenizer, prompt))
        if len(prompts) == choice.choice_prompts:
            break
    return list(prompts.values())
