"""rlhf.runs.artifacts: the files of a run can be read back and used again, and hold no secret."""

import json
import math
from dataclasses import dataclass, field

import pytest
import yaml
from transformers import TrainerControl, TrainerState
from trl import ModelConfig, SFTConfig

import rlhf.cli
from rlhf.errors import InputError
from rlhf.runs.artifacts import MetricsCallback, read_metrics, read_result, resolved_config, start_run, write_result


@dataclass
class Arguments(SFTConfig):
    adam_beta2: float = 0.95
    rows: int = 4
    kwargs: dict = field(default_factory=dict)


Arguments.__module__ = "rlhf.somewhere"  # as a stage's own config


def make_arguments(tmp_path, **kwargs):
    return Arguments(output_dir=str(tmp_path / "out"), report_to="none", use_cpu=True, bf16=False, **kwargs)


def test_resolved_config_holds_our_fields_and_what_differs_from_the_library(tmp_path):
    resolved = resolved_config(make_arguments(tmp_path, learning_rate=3e-4))
    assert resolved["rows"] == 4  # our field, though default
    assert resolved["adam_beta2"] == 0.95  # our default in place of the library's
    assert resolved["learning_rate"] == 3e-4  # the user's value
    assert "adam_beta1" not in resolved  # the library's default


def test_config_can_be_used_again(tmp_path):
    arguments = make_arguments(tmp_path, num_train_epochs=16, lr_scheduler_kwargs={"min_lr_rate": 0.1}, rows=7)
    model = ModelConfig(model_name_or_path="toy", use_peft=True, lora_target_modules=["q_proj", "v_proj"])
    start_run(tmp_path, arguments, model, stage="sft")
    again, model_again = rlhf.cli.parse(Arguments, ModelConfig, args=["--config", str(tmp_path / "config.yaml")])
    assert model_again == model
    assert resolved_config(again) == resolved_config(arguments)
    assert again.learning_rate == arguments.learning_rate
    assert again.num_train_epochs == 16
    assert again.lr_scheduler_kwargs == {"min_lr_rate": 0.1}
    assert again.bf16 is False


def test_a_library_default_in_place_of_ours_is_written(tmp_path):
    start_run(tmp_path, make_arguments(tmp_path, adam_beta2=0.999), stage="sft")
    (again,) = rlhf.cli.parse(Arguments, args=["--config", str(tmp_path / "config.yaml")])
    assert again.adam_beta2 == 0.999  # left out, it would come back as our 0.95


def test_no_secret_is_written(tmp_path):
    secret = "hf_" + "a" * 34
    kwargs = {"token": "open sesame", "url": "https://me:open-sesame@example.org", "note": secret, "max_tokens": 3}
    start_run(tmp_path, make_arguments(tmp_path, hub_token=secret, eos_token="<|end|>", kwargs=kwargs), stage="sft")
    text = (tmp_path / "config.yaml").read_text()
    assert secret not in text
    assert "sesame" not in text
    assert yaml.safe_load(text)["eos_token"] == "<|end|>"  # a token of text, not a secret
    assert yaml.safe_load(text)["kwargs"] == {"url": "https://***@example.org", "note": "***", "max_tokens": 3}


def test_environment(tmp_path):
    start_run(tmp_path, stage="reward")
    environment = json.loads((tmp_path / "environment.json").read_text())
    assert environment["stage"] == "reward"
    assert environment["packages"]["trl"]
    assert environment["packages"]["torch"]


def test_only_the_first_process_writes(tmp_path, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    start_run(tmp_path, stage="sft")
    write_result(tmp_path, {"loss": 1.0})
    assert not list(tmp_path.iterdir())


def log(callback, step, first=True, **logs):
    state = TrainerState(global_step=step, epoch=step / 10, is_world_process_zero=first)
    callback.on_log(None, state, TrainerControl(), logs=logs)


def begin(callback, step):
    callback.on_train_begin(None, TrainerState(global_step=step, is_world_process_zero=True), TrainerControl())


def test_metrics_are_appended_and_not_finite_is_null(tmp_path):
    callback = MetricsCallback(tmp_path)
    begin(callback, 0)
    log(callback, 1, loss=2.0)
    log(callback, 2, loss=math.nan)
    log(callback, 3, first=False, loss=1.0)
    rows = read_metrics(tmp_path)
    assert [(row["step"], row["loss"]) for row in rows] == [(1, 2.0), (2, None)]
    assert rows[0]["epoch"] == 0.1
    assert rows[1]["seconds"] >= rows[0]["seconds"] >= 0


def test_resumed_metrics_read_as_if_never_stopped(tmp_path):
    first = MetricsCallback(tmp_path)
    begin(first, 0)
    for step in (1, 2, 3):
        log(first, step, loss=float(step))
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 4, "lo')  # killed while writing
    second = MetricsCallback(tmp_path)
    begin(second, 2)
    log(second, 3, loss=30.0)
    assert [(row["step"], row["loss"]) for row in read_metrics(tmp_path)] == [(1, 1.0), (2, 2.0), (3, 30.0)]
    begin(MetricsCallback(tmp_path), 0)  # a new run
    assert read_metrics(tmp_path) == []


def test_result_round_trip_and_errors(tmp_path):
    write_result(tmp_path / "sft", {"loss": 0.5, "seconds": 3})
    assert read_result(tmp_path / "sft") == {"loss": 0.5, "seconds": 3}
    with pytest.raises(InputError, match=r"result\.json is missing"):
        read_result(tmp_path / "ppo")
    (tmp_path / "sft" / "result.json").write_text("{")
    with pytest.raises(InputError, match="not valid JSON"):
        read_result(tmp_path / "sft")
