"""Chooses the SFT epoch whose answers to validation prompts the reward model scores highest (arXiv 2203.02155, 3.5).

    rlhf choose --config recipes/sandbox/choose.yaml    # one CPU
    rlhf choose --sft_path runs/mine/sft --reward_model_path runs/mine/reward --dataset_name me/data

On several GPUs, `accelerate launch --config_file accelerate_configs/multi_gpu.yaml` takes the place of `python`.

Reads the run folder of recipes/sft.py, the reward adapter and the validation demonstrations. Writes to the run folder
the chosen epoch's adapter, and to its result.json every epoch's reward-model score. Each process of the launch answers
a share of the prompts.
"""

import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

from trl import ModelConfig

from rlhf.cli import parse, run
from rlhf.data import DataArguments, load_demonstrations
from rlhf.data.prompt_style import in_prompt_style
from rlhf.errors import InputError
from rlhf.evaluation.seen import unseen_prompts
from rlhf.models.adapter_files import (
    adapter_folder,
    base_model_name,
    check_adapter,
    check_policy_adapter,
    check_reward_adapter,
)
from rlhf.models.contracts import check_agreement, with_revision_of
from rlhf.models.loading import load_base, load_tokenizer
from rlhf.models.stages import trained_style
from rlhf.options import READ_ADAPTERS
from rlhf.runs.artifacts import is_first_process, read_result, write_result
from rlhf.runs.checks import check_model_options
from rlhf.runs.console import duration, next_command, show, show_title
from rlhf.runs.hub import publish_run
from rlhf.runs.machines import require_shared
from rlhf.runs.processes import process_state
from rlhf.sft.select_checkpoint import ChoiceArguments, choice_text, choose_checkpoint, score_checkpoints


@dataclass
class RunArguments:
    """The run to choose from."""

    sft_path: str = field(metadata={"help": "Folder of an SFT run with its checkpoints."})


def main() -> None:
    run_args, choice, model_args, data_args = parse(
        RunArguments, ChoiceArguments, ModelConfig, DataArguments, options=READ_ADAPTERS
    )
    check_model_options(model_args)
    started, folder = time.monotonic(), run_args.sft_path
    if choice.reward_model_path is None:
        raise InputError("reward_model_path is missing; by validation loss, recipes/sft.py has chosen already. Set it.")
    require_shared(folder, "sft_path")
    result = read_result(folder)
    if not all("checkpoint" in row for row in result.get("epochs", [])):
        raise InputError(f"{folder}/result.json names no checkpoints of its epochs. Run the SFT stage again.")
    if not result.get("epochs"):
        raise InputError(
            f"{folder} has no checkpoints to choose from. Run SFT with save_strategy and eval_strategy epoch."
        )
    model_args.model_name_or_path = model_args.model_name_or_path or base_model_name(
        check_policy_adapter(folder), folder
    )
    check_reward_adapter(choice.reward_model_path, model_args.model_name_or_path)
    for row in result["epochs"]:
        check_adapter(Path(folder) / row["checkpoint"], model_args.model_name_or_path)
    check_agreement({"sft": Path(folder), "reward": adapter_folder(choice.reward_model_path)})
    model_args = with_revision_of(model_args, folder)

    show_title("choose", folder)
    tokenizer = load_tokenizer(folder)
    demonstrations = load_demonstrations(data_args, "validation")
    style = trained_style([folder, choice.reward_model_path])
    demonstrations = in_prompt_style(demonstrations, data_args, tokenizer, "validation", style)
    adapters = {"sft": folder, "reward": choice.reward_model_path}
    demonstrations, _ = unseen_prompts(demonstrations, adapters, f"{data_args.dataset_name} (validation split)")
    base = load_base(model_args, tokenizer).to(process_state().device)  # pyright: ignore[reportArgumentType]
    table = score_checkpoints(result["epochs"], folder, base, tokenizer, demonstrations, choice)
    if not is_first_process():
        return
    result |= choose_checkpoint(folder, table) | {"choice_seconds": time.monotonic() - started}
    write_result(folder, result)
    publish_run(folder, "sft")
    show("result", choice_text(result), "1")
    show("time", duration(result["choice_seconds"]))
    if command := next_command("choose", sys.argv):
        show("next", command)


if __name__ == "__main__":
    run(main)
