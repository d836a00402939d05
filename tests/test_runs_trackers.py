"""Trackers: the stages of a recipe are one group, in each of them, without a network."""

import os

import pytest
from datasets import Dataset
from transformers import Trainer, TrainingArguments

from rlhf.errors import InputError
from rlhf.runs import trackers
from rlhf.runs.checks import check_reporters
from rlhf.runs.progress import watch
from rlhf.runs.trackers import PACKAGES, name_runs
from tests.toys import bpe_model


@pytest.fixture(autouse=True)
def no_variables(monkeypatch):
    for name in ("TENSORBOARD_LOGGING_DIR", "WANDB_PROJECT", "WANDB_RUN_GROUP", "WANDB_MODE"):
        monkeypatch.setenv(name, "")  # so that what the test sets is undone
        monkeypatch.delenv(name)


def toy_trainer(folder, **options) -> Trainer:
    rows = Dataset.from_dict({"input_ids": [[1, 2, 3]] * 4, "labels": [[1, 2, 3]] * 4})
    plain = {"use_cpu": True, "logging_steps": 1, "max_steps": 2, "save_strategy": "no", "report_to": "none"}
    return Trainer(bpe_model(), TrainingArguments(str(folder), **plain | options), train_dataset=rows)


@pytest.mark.parametrize("name", PACKAGES)
def test_a_missing_package_is_one_sentence(monkeypatch, name):
    monkeypatch.setattr(trackers, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=rf"report_to {name} needs the package {name}. Install it: pip install 'inst"):
        check_reporters(name)


def test_a_run_is_named_after_its_recipe_and_stage(tmp_path):
    args = toy_trainer(tmp_path / "mine" / "sft")
    name_runs(args, "sft")
    assert args.args.run_name == "mine/sft" and args.args.project == "mine"
    named = toy_trainer(tmp_path / "mine" / "sft", run_name="first", project="all")
    name_runs(named, "sft")
    assert named.args.run_name == "first" and named.args.project == "all"
    assert "WANDB_RUN_GROUP" not in os.environ


def test_wandb_gets_project_and_group(tmp_path):
    trainer = toy_trainer(tmp_path / "mine" / "sft")
    trainer.args.report_to = ["wandb"]  # without its callback, which needs the package
    name_runs(trainer, "sft")
    assert (os.environ["WANDB_PROJECT"], os.environ["WANDB_RUN_GROUP"]) == ("rlhf", "mine")


def test_the_next_recipe_in_a_process_is_a_group_of_its_own_unless_the_user_names_it(tmp_path, monkeypatch):
    for recipe in ("first", "second"):
        trainer = toy_trainer(tmp_path / recipe / "sft")
        trainer.args.report_to = ["wandb"]
        name_runs(trainer, "sft")
        assert os.environ["WANDB_RUN_GROUP"] == recipe
    monkeypatch.setenv("WANDB_RUN_GROUP", "mine")
    name_runs(trainer, "sft")
    assert os.environ["WANDB_RUN_GROUP"] == "mine"


def test_tensorboard_reads_the_stages_folder(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    trainer = toy_trainer(tmp_path / "mine" / "sft", report_to="tensorboard")
    watch(trainer, "sft", "toy")
    trainer.train()
    events = EventAccumulator(str(tmp_path / "mine" / "sft" / "tensorboard")).Reload()
    assert {"train/loss", "train/learning_rate"} <= set(events.Tags()["scalars"])


def test_trackio_gets_project_and_name(tmp_path, monkeypatch):
    trackio = pytest.importorskip("trackio")
    given = {}

    def init(**options):
        given.update(options)
        raise KeyboardInterrupt

    monkeypatch.setattr(trackio, "init", init)
    trainer = toy_trainer(tmp_path / "mine" / "ppo", report_to="trackio")
    watch(trainer, "ppo", "toy")
    with pytest.raises(KeyboardInterrupt):
        trainer.train()
    assert given["project"] == "mine" and given["name"] == "mine/ppo" and given["space_id"] is None
