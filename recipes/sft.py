"""Supervised fine-tuning on demonstrations (arXiv 2203.02155, section 3.5), with TRL's SFTTrainer and LoRA.

    rlhf sft sandbox --learning_rate 1e-3    # one CPU
    rlhf sft qwen3-1.7b    # on one GPU, or in one process on each of several: the same run

Reads a base model and demonstrations. Writes to output_dir the adapter of the chosen epoch, the tokenizer, every
epoch's checkpoint, metrics.jsonl, and result.json with the validation loss of every epoch. The lowest loss chooses the
epoch, or with --reward_model_path the highest reward-model score; recipes/choose.py does the latter afterwards.
`--num_train_epochs 2 --pretrain_mix 0.1 --pretrain_dataset_name <text>` trains the paper's starting point for PPO.
"""

import time
from functools import partial

from accelerate.utils import set_seed

from rlhf.cli import parse, run
from rlhf.data import DataArguments, load_demonstrations
from rlhf.data.arguments import PretrainingArguments
from rlhf.data.contracts import stage_contract
from rlhf.data.encode import completion_text
from rlhf.data.first_example import show_demonstration
from rlhf.data.lengths import drop_long_rows, short_rows, shorter
from rlhf.data.pretraining import open_sources
from rlhf.data.prompt_style import in_prompt_style
from rlhf.data.scratch import once_per_machine
from rlhf.errors import InputError
from rlhf.models.adapter_files import check_reward_adapter
from rlhf.models.chat_template import turn_thinking_off
from rlhf.models.loading import (
    check_lora,
    context_length,
    load_base,
    load_config,
    load_tokenizer,
    lora_config,
    resolve_model_name,
)
from rlhf.options import SFT
from rlhf.runs.artifacts import MetricsCallback, write_result
from rlhf.runs.checks import check_model_options, check_training
from rlhf.runs.console import show_end, show_rows, show_title
from rlhf.runs.folders import RunFolderArguments, begin, find_start
from rlhf.runs.hub import publish_run, resolve_push
from rlhf.runs.progress import watch
from rlhf.sft.select_checkpoint import (
    ChoiceArguments,
    check_choice,
    checkpoint_table,
    choice_text,
    choose_checkpoint,
    score_checkpoints,
)
from rlhf.sft.trainer import (
    SFTArguments,
    SFTModelConfig,
    SFTTrainer,
    mix_pretraining,
    set_residual_dropout,
    tokenize_demonstrations,
)


def main() -> None:
    args, choice, model_args, data_args, text_args, folder_args = parse(
        SFTArguments,
        ChoiceArguments,
        SFTModelConfig,
        DataArguments,
        PretrainingArguments,
        RunFolderArguments,
        options=SFT,
    )
    configs = (args, choice, model_args, data_args, text_args)
    check_training(args)
    check_model_options(model_args)
    check_choice(args, choice)
    started, folder = time.monotonic(), args.output_dir
    if (args.pretrain_mix == 0) != (text_args.pretrain_dataset_name is None):
        raise InputError("A mix needs both pretrain_mix and pretrain_dataset_name. Set both, or neither.")
    base_name = resolve_model_name(model_args.model_name_or_path)
    if choice.reward_model_path is not None:
        check_reward_adapter(choice.reward_model_path, base_name, model_args.model_revision)
    args.max_length = shorter(args.max_length, context_length(load_config(base_name, model_args.model_revision)))
    check_lora(model_args)
    checkpoint = find_start(args, *configs, overwrite=folder_args.overwrite_output_dir)
    push = resolve_push(args)

    # Data
    show_title("sft", folder)
    tokenizer = load_tokenizer(base_name, model_args.model_revision, args.eos_token)
    demonstrations = {split: load_demonstrations(data_args, split, folder) for split in ("train", "validation")}
    for split, dataset in demonstrations.items():
        demonstrations[split] = in_prompt_style(dataset, data_args, tokenizer, split, output_dir=folder)
    turn_thinking_off(tokenizer, map(completion_text, demonstrations["train"]["completion"]))
    rows = {
        split: once_per_machine(partial(tokenize_demonstrations, dataset, tokenizer, args.dataset_num_proc))
        for split, dataset in demonstrations.items()
    }
    trained_on = demonstrations["train"]
    for split, dataset in rows.items():
        lengths = [len(ids) for ids in dataset["input_ids"]]
        trained_on = short_rows(trained_on, lengths, args.max_length) if split == "train" else trained_on
        name = f"{data_args.dataset_name} ({split} split)"
        rows[split] = drop_long_rows(dataset, lengths, args.max_length, name, data_args.on_bad_rows, folder)
    lengths = [len(ids) for ids in rows["train"]["input_ids"]]
    show_rows(data_args.dataset_name, len(lengths), len(rows["validation"]), lengths, args.max_length, folder)
    show_demonstration(tokenizer, rows["train"][0])
    train, text = rows["train"], open_sources(text_args, data_args, folder)
    if text is not None:
        train = mix_pretraining(train, text, tokenizer, args)
    encoded = {"train": train, "eval": rows["validation"]}  # the validation loss chooses the epoch
    contract = stage_contract("sft", configs, tokenizer, trained_on, encoded)
    begin(folder, *configs, contract=contract, checkpoint=checkpoint)

    # Training
    set_seed(args.seed)
    model = load_base(model_args, tokenizer)
    set_residual_dropout(model, model_args.lora_dropout)
    trainer = SFTTrainer(
        model,
        args,
        train_dataset=train,
        eval_dataset=rows["validation"],
        processing_class=tokenizer,
        peft_config=lora_config(model_args, model=model),
        callbacks=[MetricsCallback(folder)],
    )
    trainer.contract = contract
    watch(trainer, "sft", str(model_args.model_name_or_path))
    train_loss = trainer.train(resume_from_checkpoint=checkpoint).training_loss
    trainer.save_model(folder)

    # Choice of the epoch
    trainer.accelerator.wait_for_everyone()  # all checkpoints are on disk
    table = checkpoint_table(trainer.state.log_history, folder)
    if choice.reward_model_path is not None:
        base = load_base(model_args, tokenizer).to(args.device)
        table = score_checkpoints(table, folder, base, tokenizer, demonstrations["validation"], choice)
    if trainer.is_world_process_zero():
        result = {"train_loss": train_loss, "n_train": len(rows["train"]), "n_validation": len(rows["validation"])}
        result |= {"n_text_blocks": len(train) - len(rows["train"]), "steps_taken": trainer.steps_taken}
        result |= choose_checkpoint(folder, table)
        result["seconds"] = time.monotonic() - started
        write_result(folder, result)
        show_end(choice_text(result), folder, result["seconds"], "sft")
    trainer.accelerator.wait_for_everyone()
    publish_run(folder, "sft", push)


if __name__ == "__main__":
    run(main)
