"""TRL's own PPOTrainer (`trl.experimental.ppo`, up to TRL 1.12) on a recipe's models and prompts, as a baseline.

TRL has no adapters on a shared base: policy, reference, reward and value are four full models.
"""

import dataclasses
from pathlib import Path
from typing import Any

import trl
from datasets import Dataset
from peft import PeftModel
from transformers import PreTrainedTokenizerBase
from trl import ModelConfig

from rlhf.errors import InputError
from rlhf.models.embeddings import add_pad_row
from rlhf.models.loading import load_base
from rlhf.models.reward_model import load_reward_model
from rlhf.ppo.config import PPOConfig
from rlhf.ppo.networks import make_trainable
from rlhf.ppo.rollout import encode_prompts, longest_prompt
from rlhf.runs.artifacts import MetricsCallback, resolved_config


def require_trl_ppo() -> tuple[type[Any], type[Any]]:
    """Returns TRL's PPOConfig and PPOTrainer.

    Raises:
        InputError: the installed TRL has no PPOTrainer.
    """
    try:
        from trl.experimental.ppo import PPOConfig as TRLPPOConfig
        from trl.experimental.ppo import PPOTrainer as TRLPPOTrainer
    except ImportError as error:
        raise InputError(
            f"TRL {trl.__version__} has no PPOTrainer; use --ppo_trainer ours, or trl==1.12.0, the last that has one."
        ) from error
    return TRLPPOConfig, TRLPPOTrainer


def trl_ppo_config(args: PPOConfig):
    """Translates the configuration into TRL's terms.

    The whole rollout is one device batch: with accumulation TRL's trainer would take one optimizer step per rollout and
    skip the others (huggingface/trl#5645). This way it takes as many steps as ours, but needs more memory.
    """
    config_class, _ = require_trl_ppo()
    known = {field.name for field in dataclasses.fields(config_class) if field.init}
    derived = {"batch_size", "mini_batch_size", "max_steps"}
    values = {name: value for name, value in resolved_config(args).items() if name in known - derived}
    values |= {
        "per_device_train_batch_size": args.local_rollout_size,
        "gradient_accumulation_steps": 1,
        "num_mini_batches": args.num_mini_batches,  # computed, so `resolved_config` leaves it out
        "stop_token": None if args.stop_token_id is not None else "eos",
        "logging_steps": 1,
    }
    if args.max_steps > 0:
        values["total_episodes"] = args.max_steps // args.steps_per_rollout * args.rollout_size
    return config_class(**values)


def trl_ppo_trainer(
    args: PPOConfig,
    model_args: ModelConfig,
    tokenizer: PreTrainedTokenizerBase,
    sft: Path,
    reward: Path,
    train: Dataset,
    test: Dataset | None,
):
    """Builds TRL's trainer: the SFT adapter merged into policy and reference, and two copies of the reward model."""
    _, trainer_class = require_trl_ppo()

    def policy():
        model = PeftModel.from_pretrained(load_base(model_args, tokenizer), str(sft)).merge_and_unload()
        add_pad_row(model, tokenizer)  # TRL pads with it
        return model

    model = make_trainable(policy())
    limit = longest_prompt(model.config, args.max_prompt_length, args.response_length)

    def ids(dataset, name):
        return encode_prompts(dataset, tokenizer, limit, args.dataset_num_proc, name).select_columns("input_ids")

    tokenizer.padding_side = "left"
    return trainer_class(
        args=trl_ppo_config(args),
        processing_class=tokenizer,
        model=model,
        ref_model=policy(),
        reward_model=load_reward_model(reward, model_args),
        value_model=make_trainable(load_reward_model(reward, model_args)),
        train_dataset=ids(train, "train"),
        eval_dataset=None if test is None else ids(test, "eval"),
        callbacks=[MetricsCallback(args.output_dir)],
    )
