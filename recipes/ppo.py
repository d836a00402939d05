"""PPO from the SFT model against the reward model (arXiv 2203.02155, section 3.5).

    rlhf ppo sandbox
    rlhf ppo mine --accelerate fsdp --kl_coef 0.05
    accelerate launch recipes/ppo.py --config recipes/sandbox/ppo.yaml --total_episodes 1024

One frozen base carries four adapters: the policy starts as a copy of sft, which stays as the reference; the value model
starts as a copy of reward. `--reward_funcs my_rewards.py:short owner/classifier` adds rewards, or replaces the reward
model: the value head then starts at zero. With `--sft_model_path ""` the base itself is the reference, and the policy a
new adapter (`--lora_r` and the like). Writes to output_dir the averaged policy (a PEFT adapter), raw/ and value/,
metrics.jsonl, samples.jsonl and result.json. `--pretrain_dataset_name <text>` mixes pretraining text in (PPO-ptx);
`--ppo_trainer trl` runs TRL's own PPOTrainer on the same models instead, as a baseline.
"""

import time
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Literal

from accelerate.utils import set_seed

from rlhf.cli import parse, run
from rlhf.data import load_prompts
from rlhf.data.arguments import DataArguments, PretrainingArguments
from rlhf.data.contracts import prompt_style, stage_contract
from rlhf.data.first_example import show_prompt
from rlhf.data.lengths import drop_long_rows
from rlhf.data.pretraining import open_sources, text_rows
from rlhf.data.prompt_style import in_prompt_style
from rlhf.data.scratch import once_per_machine
from rlhf.errors import InputError
from rlhf.models.adapter_files import (
    adapter_folder,
    base_model_name,
    check_policy_adapter,
    check_reward_adapter,
)
from rlhf.models.contracts import check_agreement, check_style, with_revision_of
from rlhf.models.loading import (
    LoraModelConfig,
    check_lora,
    load_base,
    load_config,
    lora_config,
    resolve_model_name,
)
from rlhf.models.lora_targets import refuse_lora_options
from rlhf.models.shared_base import SharedBase
from rlhf.models.stages import load_adapter_tokenizer, trained_style
from rlhf.models.stop_tokens import add_stop_ids, check_token_id
from rlhf.options import PPO
from rlhf.ppo import PPOConfig, PPOTrainer
from rlhf.ppo.config import TRL_MODEL
from rlhf.ppo.metrics import change_text
from rlhf.ppo.networks import zero_head
from rlhf.ppo.optimization import check_ppo_training
from rlhf.ppo.ptx import resolve_ptx_coef
from rlhf.ppo.reward_functions import find_reward_functions, reward_digests
from rlhf.ppo.rollout import encode_prompts, longest_prompt
from rlhf.ppo.trl_baseline import require_trl_ppo, trl_ppo_trainer
from rlhf.runs.artifacts import MetricsCallback, start_run, write_result
from rlhf.runs.checks import check_model_options, check_training
from rlhf.runs.console import show_end, show_rows, show_title
from rlhf.runs.folders import RunFolderArguments, begin, clear_folder, find_start
from rlhf.runs.hub import publish_run, resolve_push
from rlhf.runs.progress import watch


@dataclass
class ScriptArguments:
    reward_funcs: list[str] | None = field(
        default=None,
        metadata={"help": "Further rewards (weights: reward_weights): file.py:function, module.function, or the folder "
                          "or Hub id of a sequence classifier. With them, reward_model_path may be left out."},
    )  # fmt: skip
    ppo_trainer: Literal["ours", "trl"] = field(
        default="ours", metadata={"help": "trl: TRL's own PPOTrainer (up to TRL 1.12), as a baseline."}
    )


def main() -> None:
    started = time.monotonic()
    script, data_args, text_args, args, model_args, folder_args = parse(
        ScriptArguments,
        DataArguments,
        PretrainingArguments,
        PPOConfig,
        LoraModelConfig,
        RunFolderArguments,
        options=PPO,
    )

    # Checks, before anything is loaded
    check_training(args)
    check_ppo_training(args)
    check_model_options(model_args)
    functions = find_reward_functions(script.reward_funcs or [])
    if args.sft_model_path == TRL_MODEL:
        raise InputError('sft_model_path is needed: the folder of that stage, a Hub id, or "" to start from the base.')
    if args.reward_model_path in (None, "", TRL_MODEL):
        args.reward_model_path = None
        if not functions or script.ppo_trainer == "trl" or args.reward_ensemble_paths:
            raise InputError("reward_model_path or reward_funcs are needed: the folder of that stage, or functions.")
    resolve_ptx_coef(args.ptx_coef, has_text=text_args.pretrain_dataset_name is not None)
    if script.ppo_trainer == "trl":
        if args.reward_ensemble_paths or not args.sft_model_path:
            raise InputError("TRL's PPOTrainer takes an sft_model_path and one reward model, without an ensemble.")
        require_trl_ppo()
    if args.sft_model_path:
        sft = adapter_folder(args.sft_model_path)
        refuse_lora_options(model_args, sft)
        base_name = model_args.model_name_or_path or base_model_name(check_policy_adapter(sft), sft)
        model_args = with_revision_of(replace(model_args, model_name_or_path=base_name), sft)
        check_policy_adapter(sft, base_name, model_args.model_revision)
    else:
        sft, base_name = None, resolve_model_name(model_args.model_name_or_path)
        model_args = replace(model_args, lora_dropout=0.0)  # what is trained must be what has sampled
        check_lora(model_args)
    rewards = [adapter_folder(path) for path in (args.reward_model_path, *(args.reward_ensemble_paths or ())) if path]
    for folder in rewards:
        check_reward_adapter(folder, base_name, model_args.model_revision)
    reward_names = ["reward" if i == 1 else f"reward_{i}" for i in range(1, len(rewards) + 1)]
    parents = {} if sft is None else {"sft": sft}
    parents |= dict(zip(reward_names, rewards, strict=True))
    contracts = check_agreement(parents)
    config = load_config(base_name, model_args.model_revision)
    limit = longest_prompt(config, args.max_prompt_length, args.response_length)
    configs = (script, data_args, text_args, args, model_args)
    checkpoint = find_start(args, *configs, overwrite=folder_args.overwrite_output_dir)
    push = resolve_push(args)

    # Prompts and pretraining text
    show_title("ppo", args.output_dir)
    tokenizer = load_adapter_tokenizer(model_args, sft)
    if args.stop_token_id is not None:
        check_token_id(tokenizer, args.stop_token_id, "stop_token_id")
        add_stop_ids(tokenizer, [args.stop_token_id])
    train = load_prompts(data_args, "train", args.output_dir)
    test = load_prompts(data_args, "validation", args.output_dir) if args.eval_strategy != "no" else None
    style = trained_style(list(parents.values())[:2])
    train = in_prompt_style(train, data_args, tokenizer, "train", style, args.output_dir)
    if test is not None:
        test = in_prompt_style(test, data_args, tokenizer, "validation", style, args.output_dir)
    if sft is not None:
        check_style(sft, contracts.get("sft"), prompt_style(train), data_args.dataset_name)
    if script.ppo_trainer == "trl":
        clear_folder(args.output_dir, resume=False)
        start_run(args.output_dir, *configs, stage="ppo")
        assert sft is not None  # or it would have been refused
        trainer = trl_ppo_trainer(args, model_args, tokenizer, sft, rewards[0], train, test)
        trainer.train()
        trainer.save_model(args.output_dir)
        write_result(args.output_dir, {"seconds": round(time.monotonic() - started, 1)})
        return

    args.of_run(len(train))  # refuses a run in which the policy would not be trained
    prompts = {"train": train} if test is None else {"train": train, "validation": test}
    for split, rows in prompts.items():
        rows = once_per_machine(partial(encode_prompts, rows, tokenizer, None, args.dataset_num_proc, split))
        lengths = [len(ids) for ids in rows["input_ids"]]
        name = f"{data_args.dataset_name} ({split} split)"
        prompts[split] = drop_long_rows(
            rows, lengths, limit, name, data_args.on_bad_rows, args.output_dir, option="max_prompt_length"
        )
    lengths, held_out = [len(ids) for ids in prompts["train"]["input_ids"]], len(prompts.get("validation", ()))
    show_rows(data_args.dataset_name, len(lengths), held_out, lengths, limit, args.output_dir)
    show_prompt(tokenizer, prompts["train"][0]["input_ids"])
    pretraining = open_sources(text_args, data_args, args.output_dir)
    encoded = {"train": prompts["train"]} | (text_rows(pretraining) if pretraining else {})
    contract = stage_contract("ppo", configs, tokenizer, prompts["train"], encoded, parents)
    contract.parents |= reward_digests(script.reward_funcs or [])
    begin(args.output_dir, *configs, contract=contract, checkpoint=checkpoint)

    # One base, four adapters
    base = SharedBase(load_base(model_args, tokenizer))
    if sft is None:
        set_seed(args.seed)  # a new adapter changes nothing until it is trained: the reference is the base
        base.add_adapter("sft", lora_config=lora_config(model_args, model=base.lm))
    else:
        base.add_adapter("sft", folder=sft)
    for name, folder in zip(reward_names, rewards, strict=True):
        base.add_adapter(name, folder=folder, head=True)
    base.add_adapter("policy", copy_of="sft", trainable=True)
    base.add_adapter("value", copy_of="reward" if rewards else "sft", trainable=True, head=True)
    if not rewards:
        zero_head(base.heads["value"])
    if len(rewards) > 1:
        base.add_ensemble("reward", reward_names, args.reward_ensemble)

    # Training
    trainer = PPOTrainer(
        args=args,
        processing_class=tokenizer,
        model=base,
        train_dataset=prompts["train"],
        eval_dataset=prompts.get("validation"),
        pretrain_dataset=pretraining,
        reward_funcs=functions,
        callbacks=[MetricsCallback(args.output_dir)],
    )
    trainer.contract = contract
    watch(trainer, "ppo", base_name)
    trainer.train(resume_from_checkpoint=checkpoint)
    trainer.save_model()

    # Result
    logs = [row for row in trainer.state.log_history if "objective/score" in row]
    result = {name: value for name, value in (logs[-1] if logs else {}).items() if "/" in name or name == "episode"}
    if test is not None:
        result |= {name: value for name, value in trainer.evaluate().items() if name.startswith("eval_")}
    result["steps_taken"] = trainer.steps_taken
    result["seconds"] = round(time.monotonic() - started, 1)
    write_result(args.output_dir, result)
    show_end(change_text(logs), args.output_dir, result["seconds"], "ppo")
    trainer.accelerator.wait_for_everyone()
    publish_run(args.output_dir, "ppo", push)


if __name__ == "__main__":
    run(main)
