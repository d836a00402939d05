"""Reward model from human rankings (arXiv 2203.02155, section 3.5), on TRL's RewardTrainer with LoRA.

accelerate launch recipes/reward.py --config recipes/sandbox/reward.yaml --sft_model_path runs/sandbox/sft

Leaves in output_dir the adapter with its score head, calibration.json, the tokenizer, and result.json with pairwise
accuracy overall, by K and by labeler group, and the reliability of its margins.
"""

import time

from accelerate.utils import set_seed
from trl import ModelConfig

from rlhf.adapter_files import write_calibration
from rlhf.cli import parse, run
from rlhf.data import DataArguments, load_comparisons
from rlhf.data.lengths import drop_long_rows, shorter
from rlhf.hub import finish_run, take_over_push
from rlhf.models import context_length, load_config, load_tokenizer, resolve_model_name
from rlhf.resume import find_checkpoint
from rlhf.reward import KWiseRewardConfig, KWiseRewardTrainer
from rlhf.reward.calibration import calibrate, load_calibration_rows
from rlhf.reward.model import check_sft_start, load_reward_start
from rlhf.reward.trainer import tokenize_comparisons
from rlhf.runs import MetricsCallback, start_run, write_result


def main() -> None:
    args, model_args, data_args = parse(KWiseRewardConfig, ModelConfig, DataArguments)
    started, folder = time.monotonic(), args.output_dir
    base_name = resolve_model_name(model_args.model_name_or_path)
    if args.sft_model_path is not None:
        check_sft_start(args.sft_model_path, model_args)
    args.max_length = shorter(args.max_length, context_length(load_config(base_name, model_args.model_revision)))
    checkpoint = find_checkpoint(args)
    start_run(folder, args, model_args, data_args, stage="reward")
    push = take_over_push(args)

    # Data
    tokenizer = load_tokenizer(args.sft_model_path or base_name, model_args.model_revision)
    rows = {}
    for split in ("train", "validation"):
        dataset = tokenize_comparisons(load_comparisons(data_args, split, folder), tokenizer)
        lengths = [max(map(len, ids)) for ids in dataset["completions_ids"]]
        rows[split] = drop_long_rows(dataset, lengths, args.max_length, data_args, split, folder)
    demonstrations = load_calibration_rows(args, data_args, tokenizer)

    # Training
    set_seed(args.seed)  # the head is random
    trainer = KWiseRewardTrainer(
        load_reward_start(model_args, tokenizer, args.sft_model_path),
        args,
        train_dataset=rows["train"],
        eval_dataset=rows["validation"],
        processing_class=tokenizer,
        callbacks=[MetricsCallback(folder)],
    )
    train_loss = trainer.train(resume_from_checkpoint=checkpoint).training_loss
    trainer.save_model(folder)

    # Evaluation and calibration
    report = trainer.report()
    calibration = calibrate(trainer, demonstrations)
    if trainer.is_world_process_zero():
        if calibration is not None:
            write_calibration(folder, calibration["bias"], calibration)
        result = {"train_loss": train_loss, "n_train": len(rows["train"]), **report, "calibration": calibration}
        write_result(folder, result | {"seconds": time.monotonic() - started})
    trainer.accelerator.wait_for_everyone()
    finish_run(folder, "reward", push)


if __name__ == "__main__":
    run(main)
