"""PPOConfig: batch sizes, refused values, and the paper's defaults."""

import copy
import dataclasses

import pytest
from toys import ppo_config, prompts, shared_base, trainer

from rlhf.errors import InputError
from rlhf.ppo import PPOConfig


def test_defaults_are_the_papers(tmp_path):
    args = PPOConfig(output_dir=str(tmp_path), use_cpu=True)
    assert (args.kl_coef, args.cliprange, args.cliprange_value, args.gamma, args.lam) == (0.02, 0.2, 0.2, 1.0, 0.95)
    assert (args.temperature, args.ema_decay, args.num_ppo_epochs) == (1.0, 0.992, 1)
    assert (args.adam_beta1, args.adam_beta2, args.adam_epsilon) == (0.9, 0.95, 1e-8)
    assert args.lr_scheduler_type == "constant"
    assert args.logging_steps == 1  # once a rollout


def test_batch_sizes_give_the_factors(tmp_path):
    args = ppo_config(tmp_path, per_device_train_batch_size=4, mini_batch_size=64, batch_size=512, num_mini_batches=8)
    assert (args.micro_batches_per_step, args.num_mini_batches) == (16, 8)
    assert (args.rollout_size, args.steps_per_rollout, args.micro_steps_per_rollout) == (512, 8, 128)
    args = ppo_config(tmp_path, per_device_train_batch_size=4, mini_batch_size=6, batch_size=12)
    assert (args.per_device_train_batch_size, args.micro_batches_per_step) == (3, 2)


def test_episodes_are_rounded_up_to_rollouts(tmp_path):
    args = ppo_config(tmp_path, total_episodes=17, num_ppo_epochs=3)  # rollouts of 8, 6 steps each
    assert args.total_steps(num_prompts=100) == 18
    assert ppo_config(tmp_path, total_episodes=None, num_train_epochs=2).total_steps(num_prompts=16) == 8
    assert ppo_config(tmp_path, max_steps=5).total_steps(num_prompts=16) == 5


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"mini_batch_size": 7}, "x 1 processes is 8, not a multiple of mini_batch_size 7"),
        ({"batch_size": 9}, "batch_size is 9, not a multiple of num_mini_batches 2"),
        ({"batch_size": 12, "mini_batch_size": 4}, "is 3 minibatches, and num_mini_batches is 2; leave one"),
        ({"num_mini_batches": 0}, "num_mini_batches is 0"),
        ({"response_length": 0}, "response_length is 0"),
        ({"total_episodes": 0}, "total_episodes is 0"),
        ({"temperature": 0.0}, "temperature is 0.0"),
        ({"kl_estimator": "k3"}, "kl_estimator is k3"),
        ({"missing_eos_penalty": -1.0}, "missing_eos_penalty is -1.0"),
        ({"missing_eos_penalty": 1.0, "missing_eos_reward": 0.0}, "both set"),
        ({"stop_token": "eos", "stop_token_id": 3}, "both set"),
        ({"ema_decay": 1.0}, "ema_decay is 1.0"),
        ({"score_clip": 0.0}, "score_clip is 0.0"),
    ],
)
def test_impossible_values_are_refused_with_the_numbers(tmp_path, changes, message):
    with pytest.raises(InputError, match=message):
        ppo_config(tmp_path, **changes)


# docs/trl-faults.md, fault 13
def test_fault_13_k3_is_no_reward(tmp_path):
    with pytest.raises(InputError, match="k1"):
        ppo_config(tmp_path, kl_estimator="k3")


# docs/trl-faults.md, fault 24
def test_fault_24_arguments_are_not_changed(tmp_path):
    args = ppo_config(tmp_path)
    before = copy.deepcopy({f.name: getattr(args, f.name) for f in dataclasses.fields(args)})
    output = trainer(args, shared_base(), train_dataset=prompts(5)).train()
    assert {f.name: getattr(args, f.name) for f in dataclasses.fields(args)} == before
    assert output.global_step == 2  # and train() returns a TrainOutput
