"""docs/faults.md, section D: every option is obeyed, refused before a model is loaded, or listed as without effect."""

import dataclasses
import json
import os
import re
import subprocess
from functools import cache
from pathlib import Path

import pytest
import torch
import transformers.trainer
import transformers.trainer_callback
import transformers.trainer_optimizer
import transformers.training_args
import trl.trainer.reward_trainer
import trl.trainer.sft_trainer
import yaml
from datasets import Dataset
from small_stages import refusal, run_recipe, write_rows
from transformers.integrations import integration_utils
from trl import ModelConfig

from rlhf.cli import parse
from rlhf.data import DataArguments
from rlhf.errors import InputError
from rlhf.models.loading import LoraModelConfig, check_lora, load_base, lora_config
from rlhf.option_parser import OptionParser
from rlhf.options import PPO, READ_ADAPTERS, REWARD, SFT
from rlhf.ppo import PPOConfig
from rlhf.ppo.optimization import check_ppo_training
from rlhf.reward import KWiseRewardConfig
from rlhf.runs.artifacts import read_result
from rlhf.runs.checks import check_model_options, check_training, check_writable
from rlhf.sft.select_checkpoint import ChoiceArguments, check_choice, checkpoint_table, choose_checkpoint
from rlhf.sft.trainer import SFTArguments, SFTModelConfig, SFTTrainer, tokenize_demonstrations

ROOT = Path(__file__).parent.parent
RECIPES = {
    "sft": ((SFTArguments, SFTModelConfig), SFT),
    "reward": ((KWiseRewardConfig, LoraModelConfig), REWARD),
    "ppo": ((PPOConfig, ModelConfig), PPO),
    "evaluate": ((ModelConfig,), READ_ADAPTERS),
}
NOTHING = ["--output_dir", "unused", "--use_cpu", "true", "--bf16", "false"]


def words(text):
    return text.split()


# Options that are obeyed. A new field of transformers or TRL is in no list: look at it, and put it here or into
# rlhf/options.py. The Trainer gets the configs as they are, so what its source reads, it obeys.
TRAINER = words("""
    per_device_train_batch_size num_train_epochs max_steps learning_rate lr_scheduler_type lr_scheduler_kwargs
    warmup_steps optim optim_args weight_decay adam_beta1 adam_beta2 adam_epsilon gradient_accumulation_steps
    average_tokens_across_devices max_grad_norm bf16 fp16 tf32 activation_checkpointing
    activation_checkpointing_kwargs gradient_checkpointing gradient_checkpointing_kwargs neftune_noise_alpha
    torch_empty_cache_steps logging_strategy logging_steps logging_first_step log_on_each_node
    logging_nan_inf_filter include_num_input_tokens_seen log_level log_level_replica disable_tqdm report_to
    run_name project trackio_space_id trackio_bucket_id trackio_static_space_id eval_strategy eval_steps
    eval_delay per_device_eval_batch_size prediction_loss_only eval_on_start eval_accumulation_steps
    save_only_model save_strategy save_steps save_total_limit load_best_model_at_end
    metric_for_best_model greater_is_better ignore_data_skip restore_callback_states_from_checkpoint
    full_determinism seed data_seed use_cpu dataloader_num_workers dataloader_pin_memory
    dataloader_persistent_workers dataloader_prefetch_factor dataloader_multiprocessing_context
    dataloader_in_order train_sampling_strategy ddp_find_unused_parameters ddp_bucket_cap_mb
    ddp_broadcast_buffers ddp_static_graph ddp_backend ddp_timeout debug skip_memory_metrics output_dir
    router_aux_loss_coef activation_offloading shuffle_dataset pad_to_multiple_of completion_only_loss loss_type
    disable_dropout
""")
OURS = words("""
    push_to_hub hub_token hub_private_repo hub_model_id hub_revision resume_from_checkpoint eos_token batch_size
    dataset_num_proc max_length pretrain_mix pretrain_mix_weights center_rewards_coefficient
    completions_per_forward shuffled_pairs cross_validate sft_model_path calibration_dataset
    calibration_dataset_config calibration_size total_episodes mini_batch_size num_mini_batches num_ppo_epochs
    local_rollout_forward_batch_size max_prompt_length response_length temperature stop_token_id kl_coef
    adaptive_kl_target adaptive_kl_horizon kl_estimator missing_eos_penalty missing_eos_reward scale_scores
    score_clip reward_weights whiten_rewards cliprange vf_coef cliprange_value gamma lam whiten_advantages
    target_kl ptx_coef ptx_examples_per_episode ptx_length ptx_weights value_learning_rate warmup_rollouts
    value_warmup_rollouts ema_decay num_sample_generations reward_model_path reward_ensemble_paths
    reward_ensemble model_name_or_path model_revision dtype attn_implementation load_in_4bit load_in_8bit
    lora_dropout compile
""")
PEFT_AND_BNB = words("""
    lora_r lora_alpha lora_target_modules lora_target_parameters lora_modules_to_save use_rslora use_dora
    bnb_4bit_quant_type use_bnb_nested_quant bnb_4bit_quant_storage
""")  # read by trl.get_peft_config and trl.get_quantization_config, which rlhf.models.loading calls


def fields_of(recipe):
    return {field.name: field for config in RECIPES[recipe][0] for field in dataclasses.fields(config) if field.init}


def cases(kind):
    """Yields (recipe, name) of the fields that a recipe refuses, or that are without effect."""
    for recipe, (_, options) in RECIPES.items():
        yield from ((recipe, name) for name in getattr(options, kind) if name in fields_of(recipe))


def another_value(recipe, name):
    """Returns a value for a YAML that is not the default."""
    parser = OptionParser(RECIPES[recipe][0])
    action = next(action for action in parser._actions if action.dest == name)
    if action.choices:
        return next(choice for choice in action.choices if choice != action.default)
    kinds = {"string_to_bool": action.default is not True, "int": 7, "float": 7, "dict": {}, "ParallelismConfig": {}}
    return kinds.get(action.type.__name__, "x")


@pytest.mark.parametrize("recipe", RECIPES)
def test_seam_d1_every_option_is_known(recipe):
    options, names = RECIPES[recipe][1], fields_of(recipe).keys()
    obeyed = {*TRAINER, *OURS, *PEFT_AND_BNB} - options.refused.keys() - options.without_effect.keys()
    assert names - obeyed - options.refused.keys() - options.without_effect.keys() == set()
    assert options.refused.keys() & options.without_effect.keys() == set()


def test_seam_d1_no_list_names_an_option_that_is_gone():
    names = {name for recipe in RECIPES for name in fields_of(recipe)}
    listed = {name for _, options in RECIPES.values() for name in (*options.refused, *options.without_effect)}
    assert {*TRAINER, *OURS, *PEFT_AND_BNB} - names == set()
    assert listed - names == set()


@cache
def source(*modules):
    return "\n".join(Path(module.__file__).read_text(encoding="utf-8") for module in modules)


@pytest.mark.parametrize("name", TRAINER)
def test_seam_d1_the_trainer_reads_the_options_that_it_obeys(name):
    text = source(
        transformers.trainer, transformers.trainer_callback, transformers.trainer_optimizer, transformers.training_args,
        integration_utils, trl.trainer.sft_trainer, trl.trainer.reward_trainer,
    )  # fmt: skip
    assert re.search(rf"(args|self)\.{name}\b", text)


@pytest.mark.parametrize("name", OURS)
def test_seam_d1_the_library_reads_the_options_that_it_obeys(name):
    paths = [*(ROOT / "rlhf").rglob("*.py"), *(ROOT / "recipes").glob("*.py")]
    text = "\n".join(path.read_text(encoding="utf-8") for path in paths)
    assert re.search(rf"(args|choice|self)\.{name}\b", text)


@pytest.mark.parametrize(("recipe", "name"), list(cases("refused")))
def test_seam_d2_refused_with_a_reason(recipe, name, tmp_path):
    configs, options = RECIPES[recipe]
    (tmp_path / "config.yaml").write_text(yaml.safe_dump({name: another_value(recipe, name)}))
    with pytest.raises(InputError) as error:
        parse(*configs, args=["--config", str(tmp_path / "config.yaml")], options=options)
    assert str(error.value).startswith(f"{name} is ")
    assert f"{options.refused[name]}. Leave {name} out" in str(error.value)


@pytest.mark.parametrize(("recipe", "name"), list(cases("without_effect")))
def test_seam_d3_without_effect_is_said(recipe, name, caplog):
    configs, options = RECIPES[recipe]
    parser = OptionParser(configs)
    parser.leave_out(options)
    parser.set_defaults_with_config(**{name: another_value(recipe, name)})
    parser.parse_known_args([])
    assert f"{name} is without effect: {options.without_effect[name]}" in caplog.text
    assert next(action.help for action in parser._actions if action.dest == name).startswith("Without effect: ")


@pytest.mark.parametrize(
    "line", ["max_length: 2.5", "max_length: true", "gradient_checkpointing: 3", "dataset_num_proc: [2]"]
)
def test_seam_d2_a_yaml_has_the_types_of_the_fields(line, tmp_path):
    (tmp_path / "config.yaml").write_text(line)
    with pytest.raises(InputError, match=f"key {line.split(':')[0]}"):
        parse(SFTArguments, args=["--config", str(tmp_path / "config.yaml"), *NOTHING])


def test_seam_d2_defaults_pass(tmp_path):
    for configs, options in RECIPES.values():
        nothing = NOTHING if hasattr(configs[0], "output_dir") else []
        assert len(parse(*configs, args=nothing, options=options)) == len(configs)


# ---- What a missing package, a wrong combination or a folder would end, after the model was loaded or at the end

REFUSED = [
    ({"report_to": "wandb"}, "report_to wandb needs the package wandb"),
    ({"report_to": "wand"}, "report_to wand is unknown"),
    ({"optim": "galore_adamw"}, "optim galore_adamw cannot be used"),
    ({"optim": "lomo"}, "optim lomo cannot be used"),
    ({"lr_scheduler_type": "linear", "lr_scheduler_kwargs": {"min_lr_rate": 0.1}}, "linear.* cannot be used"),
    ({"save_strategy": "best", "eval_strategy": "no"}, "save_strategy best needs an eval_strategy"),
]


@pytest.mark.parametrize("config", [SFTArguments, KWiseRewardConfig, PPOConfig])
@pytest.mark.parametrize(("changes", "message"), REFUSED, ids=str)
def test_seam_d4_refused_before_a_model_is_loaded(config, changes, message, tmp_path, monkeypatch):
    monkeypatch.setattr(integration_utils, "is_wandb_available", lambda: False)
    args = config(output_dir=str(tmp_path), bf16=False, use_cpu=True, **changes)
    with pytest.raises(InputError, match=message):
        check_training(args)


def test_seam_d4_no_offloading_without_a_gpu(tmp_path):
    args = SFTArguments(output_dir=str(tmp_path), bf16=False, use_cpu=True, activation_offloading=True)
    with pytest.raises(InputError, match="activation_offloading"):
        check_training(args)


def test_seam_d4_the_defaults_can_be_made(tmp_path):
    for config in (SFTArguments, KWiseRewardConfig, PPOConfig):
        check_training(config(output_dir=str(tmp_path), bf16=False, use_cpu=True))


@pytest.mark.parametrize("config", [SFTArguments, KWiseRewardConfig, PPOConfig])
def test_no_batch_that_changes_while_a_stage_runs(config, tmp_path):
    with pytest.raises(InputError, match="Lower per_device_train_batch_size instead"):
        config(output_dir=str(tmp_path), bf16=False, use_cpu=True, auto_find_batch_size=True)


def test_seam_d4_a_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot be written"):
        check_writable(tmp_path / "file" / "run")


def test_seam_d4_packages_of_the_model_options(monkeypatch):
    monkeypatch.setattr("rlhf.runs.checks.find_spec", lambda name: None)
    for changes in ({"attn_implementation": "flash_attention_2"}, {"load_in_4bit": True}, {"load_in_8bit": True}):
        with pytest.raises(InputError, match="needs the package"):
            check_model_options(ModelConfig(**changes))
    check_model_options(ModelConfig(attn_implementation="sdpa"))


def test_seam_d4_ppo_has_schedules_of_the_step_and_its_own_metrics(tmp_path):
    plain = dict(output_dir=str(tmp_path), bf16=False, use_cpu=True, eval_strategy="steps")
    with pytest.raises(InputError, match="reduce_lr_on_plateau is not a function of the step"):
        check_ppo_training(PPOConfig(**plain, lr_scheduler_type="reduce_lr_on_plateau"))
    with pytest.raises(InputError, match="Set metric_for_best_model to eval_objective/score"):
        check_ppo_training(PPOConfig(**plain, load_best_model_at_end=True, save_strategy="steps", save_steps=8))


# ---- The choice of an epoch


@pytest.mark.parametrize("changes", [{"save_strategy": "no"}, {"eval_strategy": "no"}, {"save_total_limit": 2}])
def test_seam_d5_a_reward_model_chooses_among_all_epochs_or_not_at_all(changes, tmp_path):
    args = SFTArguments(output_dir=str(tmp_path), bf16=False, use_cpu=True, **changes)
    with pytest.raises(InputError, match=next(iter(changes))):
        check_choice(args, ChoiceArguments(reward_model_path="runs/x/reward"))
    check_choice(args, ChoiceArguments())


@pytest.mark.parametrize("option", ["save_strategy", "eval_strategy"])
def test_seam_d5_without_a_choice_the_last_weights_are_said_to_be_the_result(option, tmp_path, caplog):
    args = SFTArguments(output_dir=str(tmp_path), bf16=False, use_cpu=True, **{option: "no"})
    check_choice(args, ChoiceArguments())
    assert f"{option} is no: no epoch is chosen, the last weights are the result" in caplog.text
    assert choose_checkpoint(tmp_path, []) == {"chosen": None, "chosen_by": "last", "epochs": []}


# ---- Effects on SFT's rows and loss, in places that tokenized rows could pass by

DEMONSTRATIONS = Dataset.from_list(
    [
        {"prompt": [{"role": "user", "content": f"{i}?"}], "completion": [{"role": "assistant", "content": "a" * i}]}
        for i in range(1, 9)
    ]
)


def sft(base, tokenizer, folder, **changes):
    plain = dict(bf16=False, use_cpu=True, gradient_checkpointing=False, disable_tqdm=True, report_to="none", seed=0)
    sizes = dict(num_train_epochs=1, batch_size=4, learning_rate=1e-2, save_strategy="no", logging_steps=1)
    args = SFTArguments(output_dir=str(folder), **plain | sizes | changes)
    rows = tokenize_demonstrations(DEMONSTRATIONS, tokenizer, args.dataset_num_proc)
    model_args = SFTModelConfig(base, lora_r=4, lora_dropout=0.0)
    torch.manual_seed(0)
    return SFTTrainer(
        load_base(model_args, tokenizer),
        args,
        train_dataset=rows,
        eval_dataset=rows,
        processing_class=tokenizer,
        peft_config=lora_config(model_args),
    )


@pytest.mark.parametrize(
    "changes",
    [
        {"neftune_noise_alpha": 50.0},
        {"loss_type": "dft"},
        {"completion_only_loss": False},
        {"shuffle_dataset": True, "train_sampling_strategy": "sequential"},
        {"train_sampling_strategy": "sequential"},
        {"weight_decay": 10.0},
        {"data_seed": 3},
    ],
    ids=str,
)
def test_seam_d6_sft_obeys(changes, toy_folder, toy_tokenizer, tmp_path, sft_losses):
    run = sft(toy_folder, toy_tokenizer, tmp_path, **changes)
    run.train()
    assert losses(run) != sft_losses


@pytest.fixture(scope="module")
def sft_losses(toy_folder, tmp_path_factory):
    from rlhf.models.loading import load_tokenizer

    run = sft(toy_folder, load_tokenizer(toy_folder), tmp_path_factory.mktemp("plain"))
    run.train()
    return losses(run)


def losses(run):
    return [round(log[name], 6) for log in run.state.log_history for name in ("loss", "eval_loss") if name in log]


def test_seam_d6_rows_are_padded_to_a_multiple_and_tokenized_by_several_processes(toy_folder, toy_tokenizer, tmp_path):
    run = sft(toy_folder, toy_tokenizer, tmp_path, pad_to_multiple_of=16, dataset_num_proc=2)
    batch = next(iter(run.get_train_dataloader()))
    assert batch["input_ids"].shape[1] % 16 == 0
    assert len(run.train_dataset) == len(DEMONSTRATIONS)


def test_seam_d5_a_limit_on_checkpoints_keeps_the_best_epoch(toy_folder, toy_tokenizer, tmp_path, monkeypatch):
    changes = dict(num_train_epochs=5, save_strategy="epoch", eval_strategy="epoch", save_total_limit=1)
    run = sft(toy_folder, toy_tokenizer, tmp_path, **changes)
    losses, evaluate = iter([3.0, 1.0, 2.0, 4.0, 5.0]), run.evaluation_loop

    def evaluation_loop(*args, **kwargs):  # a loss that falls and rises
        output = evaluate(*args, **kwargs)
        output.metrics["eval_loss"] = next(losses)
        return output

    monkeypatch.setattr(run, "evaluation_loop", evaluation_loop)
    run.train()
    chosen = choose_checkpoint(tmp_path, checkpoint_table(run.state.log_history, tmp_path))
    assert [row["eval_loss"] for row in chosen["epochs"]] == [1.0]
    assert (chosen["chosen"], chosen["chosen_by"]) == ("checkpoint-4", "eval_loss")


@pytest.mark.slow
def test_seam_d5_an_sft_run_without_checkpoints_ends_with_its_result(load_recipe, toy_folder, tmp_path, monkeypatch):
    rows = []
    for i, row in enumerate(DEMONSTRATIONS):
        rows += [{"prompt": f"{i} {j}?", "completion": row["completion"][0]["content"]} for j in range(4)]
    Dataset.from_list(rows).to_json(tmp_path / "train.jsonl")
    options = {"model_name_or_path": toy_folder, "dataset_name": tmp_path / "train.jsonl"}
    options |= {"output_dir": tmp_path / "run"}
    options |= {"use_cpu": "true", "bf16": "false", "report_to": "none", "num_train_epochs": 1, "save_strategy": "no"}
    command = ["sft.py", *(str(word) for name, value in options.items() for word in (f"--{name}", value))]
    monkeypatch.setattr("sys.argv", command)
    load_recipe("sft").main()
    assert read_result(tmp_path / "run")["chosen_by"] == "last"
    assert (tmp_path / "run" / "adapter_model.safetensors").exists() and (tmp_path / "run" / "README.md").exists()


# ---- Numbers out of range: refused before a model is loaded, and what trains nothing or half is never silent

OUT_OF_RANGE = [
    {"num_train_epochs": 0.0}, {"num_train_epochs": -1.0}, {"max_grad_norm": None}, {"learning_rate": None},
    {"weight_decay": -0.1}, {"adam_beta1": 1.5}, {"adam_epsilon": -1.0}, {"seed": -1}, {"seed": 2**40},
    {"data_seed": -1}, {"dataloader_num_workers": -1}, {"dataloader_persistent_workers": True},
    {"per_device_eval_batch_size": 0}, {"dataset_num_proc": 0}, {"save_total_limit": 0},
    {"save_strategy": "steps", "save_steps": 0}, {"logging_steps": -1}, {"eval_strategy": "steps", "eval_steps": -2},
]  # fmt: skip


@pytest.mark.parametrize("config", [SFTArguments, KWiseRewardConfig, PPOConfig])
@pytest.mark.parametrize("changes", OUT_OF_RANGE, ids=str)
def test_seam_d8_numbers_out_of_range_are_refused_before_a_model_is_loaded(config, changes, tmp_path):
    args = config(output_dir=str(tmp_path), bf16=False, use_cpu=True, **changes)
    with pytest.raises(InputError, match=list(changes)[-1].split("_")[0]):
        check_training(args)


@pytest.mark.parametrize("changes", [{"pad_to_multiple_of": 0}, {"neftune_noise_alpha": -5.0}], ids=str)
def test_seam_d8_numbers_of_sft_out_of_range(changes, tmp_path):
    with pytest.raises(InputError, match=next(iter(changes))):
        check_training(SFTArguments(output_dir=str(tmp_path), bf16=False, use_cpu=True, **changes))


def test_seam_d8_options_of_one_stage_that_end_late(tmp_path):
    plain = dict(output_dir=str(tmp_path), bf16=False, use_cpu=True)
    with pytest.raises(InputError, match="group_by_length"):
        KWiseRewardConfig(**plain, train_sampling_strategy="group_by_length")
    with pytest.raises(InputError, match="chosen by eval_objective/nope, which PPO does not measure"):
        check_ppo_training(PPOConfig(**plain, eval_strategy="steps", metric_for_best_model="eval_objective/nope"))
    check_ppo_training(PPOConfig(**plain, eval_strategy="steps", metric_for_best_model="objective/rlhf_reward"))
    with pytest.raises(InputError, match="attn_implementation nope is unknown"):
        check_model_options(ModelConfig(attn_implementation="nope"))
    for name in ("eager", "sdpa", "flex_attention"):
        check_model_options(ModelConfig(attn_implementation=name))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"lora_target_modules": ["q_proj", "nope"]}, "no module is named nope, which lora_target_modules wants"),
        ({"lora_target_modules": "q_proj,nope"}, "no module is named nope"),
        ({"lora_target_parameters": ["nope"]}, "no parameter is named nope"),
        ({"lora_modules_to_save": ["nope"]}, "no module is named nope, which lora_modules_to_save wants"),
        ({"lora_alpha": 0}, "lora_alpha is 0"),
        ({"lora_dropout": 1.0}, "lora_dropout is 1"),
    ],
    ids=str,
)
def test_seam_d9_lora_that_would_train_nothing_or_half_is_refused(changes, message, toy_folder):
    with pytest.raises(InputError, match=message):
        check_lora(SFTModelConfig(str(toy_folder), **changes))


def test_seam_d9_one_name_of_a_layer_is_a_name_and_no_pattern(toy_folder):
    for given in (["q_proj"], "q_proj"):
        model_args = SFTModelConfig(str(toy_folder), lora_target_modules=given)
        check_lora(model_args)
        assert lora_config(model_args).target_modules == {"q_proj"}
    assert lora_config(SFTModelConfig(lora_target_modules="q_proj, v_proj")).target_modules == {"q_proj", "v_proj"}
    assert lora_config(SFTModelConfig(lora_target_modules=r".*\.(q|v)_proj")).target_modules == r".*\.(q|v)_proj"
    check_lora(SFTModelConfig(str(toy_folder), lora_target_modules=r".*\.(q|v)_proj"))


def test_seam_d10_options_of_an_upload_without_an_upload_are_said(tmp_path, caplog):
    check_training(SFTArguments(output_dir=str(tmp_path), bf16=False, use_cpu=True, hub_model_id="me/model"))
    assert "hub_model_id without push_to_hub: nothing will be uploaded" in caplog.text


@pytest.mark.parametrize(
    "changes",
    [
        {"save_strategy": "steps", "save_steps": 2, "eval_strategy": "epoch"},
        {"save_strategy": "steps", "save_steps": 2, "eval_strategy": "steps", "eval_steps": 3},
    ],
)
def test_seam_d5_checkpoints_that_are_not_evaluated_are_said(changes, tmp_path, caplog):
    check_choice(SFTArguments(output_dir=str(tmp_path), bf16=False, use_cpu=True, **changes), ChoiceArguments())
    assert "only checkpoints of steps that are evaluated, too, can be chosen" in caplog.text
    (tmp_path / "checkpoint-2").mkdir()
    assert choose_checkpoint(tmp_path, [])["chosen_by"] == "last"
    assert "no checkpoint was evaluated" in caplog.text


IMPOSSIBLE = {
    "cliprange": -0.1, "cliprange_value": -1.0, "vf_coef": -1.0, "kl_coef": -1.0, "value_learning_rate": -1e-5,
    "gamma": 2.0, "lam": -1.0, "ptx_length": 1,
}  # fmt: skip


@pytest.mark.parametrize(
    ("name", "value"), [*IMPOSSIBLE.items(), ("gamma", -0.1), ("lam", 1.1), ("kl_coef", float("nan"))]
)
def test_seam_d11_impossible_numbers_of_ppo_are_refused(name, value, tmp_path):
    with pytest.raises(InputError, match=f"{name} is {value}; it must be at least"):
        PPOConfig(output_dir=str(tmp_path), bf16=False, use_cpu=True, **{name: value})


def test_seam_d11_zeros_of_ppo_that_mean_something_pass(tmp_path):
    names = IMPOSSIBLE.keys() - {"ptx_length"}
    args = PPOConfig(output_dir=str(tmp_path), bf16=False, use_cpu=True, **dict.fromkeys(names, 0.0))
    assert {getattr(args, name) for name in names} == {0.0}
    assert PPOConfig(output_dir=str(tmp_path), bf16=False, use_cpu=True, gamma=1.0, lam=1.0).lam == 1.0


@pytest.mark.parametrize("name", ["choice_prompts", "choice_max_new_tokens", "choice_batch_size"])
def test_seam_d11_a_choice_without_answers_is_refused(name):
    with pytest.raises(InputError, match=f"{name} is 0; it must be at least 1"):
        ChoiceArguments(**{name: 0})


def test_seam_d13_a_prompt_without_room_for_an_answer_is_a_bad_row_of_evaluate(own_run, monkeypatch, capsys):
    """Found before the base is loaded, and left out with `--on_bad_rows skip`."""
    prompts = [{"prompt": [{"role": "user", "content": "word " * n}]} for n in (3, 5000)]
    options = {
        "output_dir": own_run / "evaluate", "sft_model_path": own_run / "sft", "max_new_tokens": 4,
        "dataset_name": write_rows(own_run / "new" / "test.jsonl", prompts).parent, "dataset_test_split": "test",
    }  # fmt: skip
    with monkeypatch.context() as without_models:
        without_models.setattr("rlhf.models.loading._load", lambda *args, **kwargs: pytest.fail("a model was loaded"))
        with pytest.raises(SystemExit):
            run_recipe("evaluate", options)
    assert "row 2" in (error := capsys.readouterr().err) and "tokens, more than the context less max_new" in error
    run_recipe("evaluate", options | {"on_bad_rows": "skip"})
    assert json.loads((own_run / "summary.json").read_text())["prompts"] == 1


def test_seam_d14_a_run_whose_policy_is_never_trained_is_refused(own_run, monkeypatch, capsys):
    monkeypatch.setattr("rlhf.models.loading._load", lambda *args, **kwargs: pytest.fail("a model was loaded"))
    error = refusal(capsys, "ppo", own_run, value_warmup_rollouts=2, output_dir=own_run / "other")
    assert "the run has 2 rollouts" in error and "the policy would never be trained" in error


def test_seam_d15_a_key_twice_in_a_yaml_is_refused(tmp_path):
    (tmp_path / "a.yaml").write_text("dataset_name: a\nseed: 1\ndataset_name: b\n")
    with pytest.raises(InputError, match=r"a\.yaml sets dataset_name twice, in lines 1 and 3"):
        parse(DataArguments, SFTArguments, args=["--config", str(tmp_path / "a.yaml"), "--output_dir", str(tmp_path)])


@pytest.mark.parametrize(("line", "message"), [("dataset_config: no", "YAML reads the value as false")])
def test_seam_d15_yaml_makes_no_truth_values_of_text(tmp_path, line, message):
    (tmp_path / "a.yaml").write_text(f"dataset_name: a\n{line}\n")
    with pytest.raises(InputError, match=f"key {line.split(':')[0]}: {message}; write it in quotes"):
        parse(DataArguments, args=["--config", str(tmp_path / "a.yaml")])


def test_seam_d15_no_is_a_strategy(tmp_path):
    (tmp_path / "a.yaml").write_text("save_strategy: no\neval_strategy: no\n")
    options = ["--config", str(tmp_path / "a.yaml"), "--output_dir", str(tmp_path), "--use_cpu", "--bf16", "false"]
    [args] = parse(SFTArguments, args=options)
    assert args.save_strategy == "no" and args.eval_strategy == "no"


def test_seam_d16_make_hands_the_prompt_over_as_it_is(tmp_path):
    stub = tmp_path / "bin" / "python"
    stub.parent.mkdir()
    stub.write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
    stub.chmod(0o755)
    prompt = 'What is $5 plus $HOME ($(date))? `ls` "it\'s" \\n'
    command = ["make", "-f", ROOT / "Makefile", "compare", f"VENV={tmp_path}", f"INSTALLED={stub}", f"PROMPT={prompt}"]
    for given in (command, command[:-1]):
        environment = os.environ | ({} if given is command else {"PROMPT": prompt})
        printed = subprocess.run(given, cwd=ROOT, env=environment, capture_output=True, text=True, check=True).stdout
        assert f"--prompt={prompt}" in printed
