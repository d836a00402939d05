"""Reward model from human rankings (arXiv 2203.02155, section 3.5), on TRL's RewardTrainer with LoRA.

    accelerate launch recipes/reward.py --config recipes/sandbox/reward.yaml --sft_model_path runs/sandbox/sft
    rlhf reward sandbox --cross_validate labelers

Writes to output_dir the adapter with its score head, calibration.json, the tokenizer, and result.json with pairwise
accuracy overall, by K, by labeler group and by margin, the calibration of the margins and the length bias; report.md
and reliability.svg show the same. `--cross_validate` writes to a subfolder of its own, each fold as it ends;
`--resume_from_checkpoint true` resumes after the last finished fold.
"""

import copy
import logging
import time
from functools import partial
from itertools import chain
from pathlib import Path

from accelerate.utils import set_seed
from datasets import Dataset, concatenate_datasets
from trl import ModelConfig

from rlhf.cli import parse, run
from rlhf.data import DataArguments, load_comparisons
from rlhf.data.contracts import prompt_style, stage_contract
from rlhf.data.first_example import show_comparison
from rlhf.data.lengths import drop_long_rows, short_rows, shorter
from rlhf.data.prompt_style import in_prompt_style
from rlhf.data.scratch import once_per_machine
from rlhf.models.adapter_files import adapter_digest, adapter_folder, remove_adapter, write_calibration
from rlhf.models.chat_template import turn_thinking_off
from rlhf.models.contracts import base_of, check_style, with_revision_of
from rlhf.models.loading import (
    LoraModelConfig,
    check_lora,
    context_length,
    load_config,
    resolve_model_name,
)
from rlhf.models.stages import load_adapter_tokenizer, trained_style
from rlhf.options import REWARD
from rlhf.reward import KWiseRewardConfig, KWiseRewardTrainer
from rlhf.reward.accuracy import LabelerGapWarning
from rlhf.reward.calibration import calibrate, load_calibration_rows
from rlhf.reward.cross_validation import cross_validate, cross_validation_text
from rlhf.reward.folds import FinishedFolds, rows_digest
from rlhf.reward.initialization import check_sft_start, load_reward_start
from rlhf.reward.ranks import first_ordered, warn_of_odd_ranks
from rlhf.reward.report import accuracy_text, write_report
from rlhf.reward.trainer import tokenize_comparisons
from rlhf.runs.artifacts import MetricsCallback, is_first_process, resolved_config, start_run, write_result
from rlhf.runs.checks import check_model_options, check_training
from rlhf.runs.console import show_end, show_rows, show_title
from rlhf.runs.contract import read_contract
from rlhf.runs.folders import RunFolderArguments, begin, find_start
from rlhf.runs.hub import publish_run, resolve_push
from rlhf.runs.progress import watch

logger = logging.getLogger(__name__)


def main() -> None:
    args, model_args, data_args, folder_args = parse(
        KWiseRewardConfig, LoraModelConfig, DataArguments, RunFolderArguments, options=REWARD
    )
    check_training(args)
    check_model_options(model_args)
    started = time.monotonic()
    base_name = resolve_model_name(model_args.model_name_or_path)
    if args.sft_model_path is None:
        check_lora(model_args)
    else:
        model_args = with_revision_of(model_args, adapter_folder(args.sft_model_path))
        check_sft_start(args.sft_model_path, model_args)
    configs = (args, model_args, data_args)
    args.max_length = shorter(args.max_length, context_length(load_config(base_name, model_args.model_revision)))
    if args.cross_validate:  # a subfolder, so that a model in output_dir stays as it is
        args.output_dir = str(Path(args.output_dir) / f"cross_validate_{args.cross_validate}")
        args.save_strategy = "no"
    else:
        checkpoint = find_start(args, *configs, overwrite=folder_args.overwrite_output_dir)
    push = resolve_push(args)

    # Data
    show_title("reward", args.output_dir)
    sft = None if args.sft_model_path is None else adapter_folder(args.sft_model_path)
    tokenizer = load_adapter_tokenizer(model_args, sft, args.eos_token)
    rows, trained_on = {}, None
    style = trained_style([] if sft is None else [sft])
    for split in ("train", "validation"):
        comparisons = load_comparisons(data_args, split, args.output_dir)
        comparisons = in_prompt_style(comparisons, data_args, tokenizer, split, style, args.output_dir)
        if split == "train" and args.sft_model_path is None:  # else the SFT stage has decided
            turn_thinking_off(tokenizer, chain.from_iterable(comparisons["completions"]))
        warn_of_odd_ranks(comparisons, f"{data_args.dataset_name} ({split} split)")
        dataset = once_per_machine(partial(tokenize_comparisons, comparisons, tokenizer, args.dataset_num_proc))
        lengths = [max(map(len, ids)) for ids in dataset["completions_ids"]]
        name = f"{data_args.dataset_name} ({split} split)"
        rows[split] = drop_long_rows(dataset, lengths, args.max_length, name, data_args.on_bad_rows, args.output_dir)
        trained_on = trained_on or short_rows(comparisons, lengths, args.max_length)
    assert trained_on is not None
    if sft is not None:
        check_style(sft, read_contract(sft), prompt_style(trained_on), data_args.dataset_name)

    lengths = [max(map(len, ids)) for ids in rows["train"]["completions_ids"]]
    held_out = len(rows["validation"])
    show_rows(data_args.dataset_name, len(lengths), held_out, lengths, args.max_length, args.output_dir)
    show_comparison(tokenizer, rows["train"][first_ordered(rows["train"]["ranks"])])
    if args.cross_validate:
        run_folds(args, model_args, data_args, tokenizer, rows, started)
        return
    demonstrations = load_calibration_rows(args, data_args, tokenizer, prompt_style(trained_on))
    parents = {"sft": args.sft_model_path} if args.sft_model_path is not None else {}
    contract = stage_contract("reward", configs, tokenizer, trained_on, {"train": rows["train"]}, parents)
    begin(args.output_dir, *configs, contract=contract, checkpoint=checkpoint)

    # Training
    callbacks = [MetricsCallback(args.output_dir), LabelerGapWarning()]
    trainer = make_trainer(args, model_args, tokenizer, rows["train"], rows["validation"], callbacks)
    trainer.contract = contract
    train_loss = trainer.train(resume_from_checkpoint=checkpoint).training_loss

    # The bias is written before the adapter: an adapter without bias would pass for calibrated.
    calibration = calibrate(trainer, demonstrations)
    if is_first_process():
        remove_adapter(args.output_dir)
        if calibration is not None:
            write_calibration(args.output_dir, calibration["bias"], calibration)
    trainer.save_model(args.output_dir)

    # Evaluation
    report = trainer.report()
    if is_first_process():
        result = {"train_loss": train_loss, "n_train": len(rows["train"]), **report, "calibration": calibration}
        result |= {"steps_taken": trainer.steps_taken, "seconds": time.monotonic() - started}
        write_result(args.output_dir, result)
        write_report(args.output_dir, report)
        show_end(accuracy_text(report), args.output_dir, result["seconds"], "reward")
    trainer.accelerator.wait_for_everyone()
    publish_run(args.output_dir, "reward", push)


def make_trainer(
    args: KWiseRewardConfig, model_args: ModelConfig, tokenizer, train: Dataset, evaluation: Dataset, callbacks: list
) -> KWiseRewardTrainer:
    set_seed(args.seed)  # the head is random
    trainer = KWiseRewardTrainer(
        load_reward_start(model_args, tokenizer, args.sft_model_path),
        args,
        train_dataset=train,
        eval_dataset=evaluation,
        processing_class=tokenizer,
        callbacks=callbacks,
    )
    watch(trainer, "reward", str(model_args.model_name_or_path))
    return trainer


def run_folds(
    args: KWiseRewardConfig,
    model_args: ModelConfig,
    data_args: DataArguments,
    tokenizer,
    rows: dict[str, Dataset],
    started: float,
) -> None:
    """Trains one model without each fold, prints the table and writes it to report.md."""
    assert args.cross_validate is not None
    train, validation = rows["train"], rows["validation"]
    if args.cross_validate == "prompts":  # these folds need no validation rows, so they divide all rows
        train, validation = concatenate_datasets([train, validation]), validation.select([])
    settings = resolved_config(args) | resolved_config(model_args) | resolved_config(data_args)
    resume = str(settings.pop("resume_from_checkpoint", False)).lower() == "true"
    settings |= {"world_size": args.world_size, "rows": rows_digest(train, validation)}
    base = base_of(model_args.model_name_or_path, model_args.model_revision)
    settings["base"] = {key: base[key] for key in ("digest", "weights")}
    if args.sft_model_path is not None:
        settings["sft_adapter"] = adapter_digest(adapter_folder(args.sft_model_path))
        logger.warning(
            "the folds start from %s, which must not have been trained on demonstrations of the conversations that "
            'are held out; pass --sft_model_path "" to start from the base model',
            args.sft_model_path,
        )

    def fold_trainer(train: Dataset, evaluation: Dataset) -> KWiseRewardTrainer:
        return make_trainer(copy.copy(args), model_args, tokenizer, train, evaluation, callbacks=[])

    finished = FinishedFolds(args.output_dir, settings, resume)
    start_run(args.output_dir, args, model_args, data_args, stage="reward")  # not if FinishedFolds refused to resume
    result = cross_validate(fold_trainer, train, validation, args.cross_validate, finished)
    write_result(args.output_dir, result | {"seconds": time.monotonic() - started})
    if is_first_process():
        text = cross_validation_text(result)
        (Path(args.output_dir) / "report.md").write_text(text, encoding="utf-8")
        print(f"\n{text}")


if __name__ == "__main__":
    run(main)
