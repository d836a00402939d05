"""docs/faults.md, section F: a run resumes its own checkpoints alone, and its folder holds no other run."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest
from small_stages import ROOT, options_of, refusal, run_stage, write_data, write_rows
from toys import logged, ppo_config, prompts, shared_base, trainer

from rlhf.data.splits import split_of
from rlhf.errors import InputError
from rlhf.runs.artifacts import read_result
from rlhf.runs.contract import read_contract
from rlhf.runs.resume import complete_checkpoints
from rlhf.runs.timed import SaveByTime, is_timed


def rows_of(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_seam_f1_a_run_resumed_with_fewer_rows_is_refused(own_run, capsys):
    for stage, kind in (("sft", "demonstrations"), ("reward", "comparisons"), ("ppo", "prompts")):
        path = own_run / kind / "train.jsonl"
        rows = rows_of(path)
        dropped = [row for row in rows if split_of(row) == "train"][::2]
        write_rows(path, [row for row in rows if row not in dropped])
        error = refusal(capsys, stage, own_run, resume_from_checkpoint="true")
        assert "rows.train" in error and error.count("rows with digest") == 2 and "contract.json" in error
        write_rows(path, rows)


@pytest.mark.parametrize(
    ("stage", "option", "value"),
    [
        ("sft", "learning_rate", 0.5),
        ("sft", "seed", 5),
        ("sft", "per_device_train_batch_size", 4),
        ("reward", "lora_dropout", 0.5),
        ("ppo", "temperature", 0.5),
        ("ppo", "batch_size", 4),
        ("ppo", "kl_coef", 0.3),
    ],
)
def test_seam_f2_a_run_resumed_with_another_option_is_refused(own_run, capsys, stage, option, value):
    error = refusal(capsys, stage, own_run, resume_from_checkpoint="true", **{option: value})
    name = {"per_device_train_batch_size": "rows_per_step", "batch_size": "episodes_per_rollout"}.get(option, option)
    assert f"was trained with {name} " in error and f"and this run has {value}" in error


def test_seam_f3_a_run_resumed_with_another_reward_model_is_refused(own_run, capsys):
    other = run_stage("reward", own_run, output_dir=own_run / "other", seed=3)
    error = refusal(capsys, "ppo", own_run, resume_from_checkpoint="true", reward_model_path=other)
    assert "parents.reward" in error


def test_seam_f4_the_checkpoint_of_another_stage_is_refused(own_run, capsys):
    checkpoint = complete_checkpoints(own_run / "sft")[-1]
    error = refusal(capsys, "reward", own_run, resume_from_checkpoint=checkpoint, output_dir=own_run / "new")
    assert "stage sft, and this run has reward" in error


def test_a_checkpoint_without_its_optimizer_is_refused(own_run, capsys):
    checkpoint = complete_checkpoints(own_run / "sft")[-1]
    (checkpoint / "optimizer.pt").unlink()
    error = refusal(capsys, "sft", own_run, resume_from_checkpoint="true")
    assert f"{checkpoint.name} has no optimizer.pt" in error and "Resume from another checkpoint" in error


def test_seam_f5_what_decides_nothing_may_change_and_no_step_is_said(own_run, caplog):
    changes = {"logging_steps": 3, "save_steps": 5, "per_device_train_batch_size": 4, "gradient_accumulation_steps": 2}
    run_stage("sft", own_run, resume_from_checkpoint="true", **changes)
    assert "no step was taken" in caplog.text
    assert read_result(own_run / "sft")["steps_taken"] == 0


def test_seam_f6_a_trainer_alone_knows_its_rows_and_options(tmp_path):
    trainer(ppo_config(tmp_path, save_strategy="steps", save_steps=1)).train()
    with pytest.raises(InputError, match=r"rows\.train"):
        trainer(ppo_config(tmp_path), train_dataset=prompts(8)).train(resume_from_checkpoint=True)
    with pytest.raises(InputError, match=r"temperature 1\.0, and this run has 0\.5"):
        trainer(ppo_config(tmp_path, temperature=0.5)).train(resume_from_checkpoint=True)
    other = shared_base()
    other.heads["reward"].weight.data += 1.0
    with pytest.raises(InputError, match=r"parents\.frozen_weights"):
        trainer(ppo_config(tmp_path), other).train(resume_from_checkpoint=True)
    trainer(ppo_config(tmp_path)).train(resume_from_checkpoint=True)


def test_seam_f7_a_folder_with_another_run_is_refused(small_run, own_run, capsys):
    error = refusal(capsys, "sft", small_run, learning_rate=0.5)
    assert "holds a finished run with learning_rate 0.01, and this one has 0.5" in error
    assert "--overwrite_output_dir true" in error
    (own_run / "sft" / "result.json").unlink()
    assert "--resume_from_checkpoint true to go on" in refusal(capsys, "sft", own_run)


def test_seam_f8_nothing_of_an_overwritten_run_remains(own_run):
    stale = [own_run / "reward" / name for name in ("samples.jsonl", "skipped_rows.jsonl")]
    stale += [own_run / "reward" / "checkpoint-999" / "trainer_state.json"]
    for path in stale:
        path.parent.mkdir(exist_ok=True)
        path.write_text("{}")
    write_data(own_run, n=20)
    run_stage("reward", own_run, calibration_dataset=None, overwrite_output_dir="true", learning_rate=0.02)
    assert not any(path.exists() for path in [*stale, own_run / "reward" / "calibration.json"])


def test_seam_f9_bad_data_leaves_the_earlier_run_as_it_was(own_run, capsys):
    before = (own_run / "sft" / "adapter_model.safetensors").read_bytes()
    write_rows(own_run / "demonstrations" / "train.jsonl", [{"prompt": ""}])
    refusal(capsys, "sft", own_run)
    assert (own_run / "sft" / "adapter_model.safetensors").read_bytes() == before
    assert read_result(own_run / "sft")


def test_seam_f10_a_checkpoint_is_saved_by_the_clock_and_replaced(tmp_path):
    args = ppo_config(tmp_path, total_episodes=24, save_strategy="steps", save_steps=4)
    ppo = trainer(args, callbacks=[SaveByTime(minutes=0)])
    ppo.train()
    assert [path.name for path in complete_checkpoints(tmp_path)] == ["checkpoint-4", "checkpoint-6"]  # 5 is replaced
    assert not any(map(is_timed, complete_checkpoints(tmp_path)))
    assert logged(ppo, "objective/score")


def test_seam_f11_the_clock_saves_nothing_if_nothing_is_to_be_saved(tmp_path):
    trainer(ppo_config(tmp_path), callbacks=[SaveByTime(minutes=0)]).train()
    assert not complete_checkpoints(tmp_path)


def test_seam_f24_another_text_or_reward_function_is_refused(own_run, capsys):
    text, rewards = own_run / "text" / "train.jsonl", own_run / "my_rewards.py"
    write_rows(text, [{"text": f"Document {i} of some words."} for i in range(40)])
    rewards.write_text("def short(completions, **kwargs):\n    return [-float(len(str(c))) for c in completions]\n")
    options = {
        "output_dir": own_run / "mixed", "pretrain_dataset_name": text.parent, "ptx_coef": 1, "ptx_length": 8,
        "ptx_examples_per_episode": 1, "reward_funcs": f"{rewards}:short",
    }  # fmt: skip
    run_stage("ppo", own_run, **options)
    assert str(own_run) not in json.dumps(read_contract(own_run / "mixed").parents)
    for path, name in ((text, "rows.text_1"), (rewards, "parents.my_rewards.py:short")):
        before = path.read_text()
        path.write_text(before.replace("some", "other").replace("-float", "-2 * float"))
        error = refusal(capsys, "ppo", own_run, resume_from_checkpoint="true", **options)
        assert f"was trained with {name} " in error
        path.write_text(before)
    run_stage("ppo", own_run, resume_from_checkpoint="true", **options)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_seam_f12_a_stopped_run_says_how_to_go_on(own_run, number):
    options = options_of("sft", own_run) | {"output_dir": own_run / "stopped", "num_train_epochs": 4000}
    arguments = [text for name, value in options.items() for text in (f"--{name}", str(value))]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(
        [sys.executable, "recipes/sft.py", *arguments], cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True
    )
    deadline = time.monotonic() + 300
    while not complete_checkpoints(own_run / "stopped") and time.monotonic() < deadline:
        time.sleep(0.2)
    process.send_signal(number)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Traceback" not in errors
    assert "--resume_from_checkpoint true." in errors.strip().splitlines()[-1]
