"""A checkpoint is complete or absent, whenever the process dies while it writes one."""

import os
import shutil

import pytest
import torch
from datasets import Dataset
from toys import bpe_model
from transformers import Trainer, TrainingArguments
from transformers.trainer_utils import get_last_checkpoint

import rlhf.runs.checkpoints
from rlhf.errors import InputError
from rlhf.runs.checkpoints import PARTIAL, AtomicCheckpoints
from rlhf.runs.resume import complete_checkpoints, find_checkpoint


class AtomicTrainer(AtomicCheckpoints, Trainer):
    pass


class Killed(BaseException):
    """In place of SIGKILL: nothing catches it, and nothing cleans up after it."""


def trainer(folder, cls=AtomicTrainer, **changes):
    rows = Dataset.from_dict({"input_ids": [[i % 40 + 1] * 4 for i in range(12)]})
    rows = rows.map(lambda row: {"labels": row["input_ids"]})
    options = {
        "max_steps": 4, "save_steps": 1, "per_device_train_batch_size": 3, "report_to": "none", "use_cpu": True,
        "disable_tqdm": True, "logging_steps": 1, "learning_rate": 1e-2, **changes,
    }  # fmt: skip
    rows = rows.with_format("torch")
    return cls(bpe_model(), TrainingArguments(str(folder), **options), train_dataset=rows, eval_dataset=rows)


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_the_checkpoint_is_the_trainers_own(tmp_path):
    trainer(tmp_path / "ours").train()
    trainer(tmp_path / "theirs", Trainer).train()
    assert names(tmp_path / "ours") == [f"checkpoint-{k}" for k in (1, 2, 3, 4)]
    for k in (1, 4):
        ours, theirs = (tmp_path / who / f"checkpoint-{k}" for who in ("ours", "theirs"))
        assert names(ours) == names(theirs)
        assert (ours / "model.safetensors").read_bytes() == (theirs / "model.safetensors").read_bytes()


@pytest.mark.parametrize("moment", ["model.safetensors", "optimizer.pt", "trainer_state.json", "fsync", "rename"])
def test_killed_while_saving_it_resumes_from_the_last_complete_checkpoint(tmp_path, monkeypatch, moment):
    uninterrupted = trainer(tmp_path / "uninterrupted")
    uninterrupted.train()

    def dies(*args, **kwargs):
        raise Killed

    class Dying(AtomicTrainer):
        def _save_checkpoint(self, model, trial):
            if self.state.global_step == 3:
                if moment in ("fsync", "rename"):
                    monkeypatch.setattr(
                        rlhf.runs.checkpoints, {"fsync": "fsync", "rename": "commit_folder"}[moment], dies
                    )
                target = {
                    "model.safetensors": "save_model",
                    "optimizer.pt": "_save_optimizer_and_scheduler",
                    "trainer_state.json": "_save_rng_state",
                }.get(moment)
                if target:
                    setattr(self, target, dies)
            super()._save_checkpoint(model, trial)

    with pytest.raises(Killed):
        trainer(tmp_path / "run", Dying).train()
    monkeypatch.undo()
    assert [path.name for path in complete_checkpoints(tmp_path / "run")] == ["checkpoint-1", "checkpoint-2"]
    assert get_last_checkpoint(str(tmp_path / "run")).endswith("checkpoint-2")  # plain transformers is not misled

    resumed = trainer(tmp_path / "run", resume_from_checkpoint="true")
    resumed.train(resume_from_checkpoint=find_checkpoint(resumed.args))
    assert len(complete_checkpoints(tmp_path / "run")) == 4
    for name, weight in uninterrupted.model.state_dict().items():
        assert torch.equal(weight, resumed.model.state_dict()[name])


def test_a_damaged_checkpoint_is_skipped(tmp_path):
    run = trainer(tmp_path, resume_from_checkpoint="true")
    run.train()
    (tmp_path / "checkpoint-4" / "trainer_state.json").write_text('{"global_st')
    shutil.rmtree(tmp_path / "checkpoint-3")
    (tmp_path / "checkpoint-3").mkdir()
    assert find_checkpoint(run.args) == str(tmp_path / "checkpoint-2")
    run.args.resume_from_checkpoint = str(tmp_path / "checkpoint-4")
    with pytest.raises(InputError, match="not the folder of a checkpoint"):
        find_checkpoint(run.args)


def test_old_checkpoints_are_deleted_and_the_best_one_stays(tmp_path):
    options = {"eval_strategy": "steps", "eval_steps": 1, "load_best_model_at_end": True, "save_total_limit": 2}
    run = trainer(tmp_path, metric_for_best_model="loss", greater_is_better=True, **options)  # the first is the best
    run.train()
    assert [path.name for path in complete_checkpoints(tmp_path)] == ["checkpoint-1", "checkpoint-4"]
    assert run.state.best_model_checkpoint == str(tmp_path / "checkpoint-1")
    state = (tmp_path / "checkpoint-4" / "trainer_state.json").read_text()
    assert PARTIAL not in state
    assert "checkpoint-1" in state


def test_every_file_is_synchronized_before_the_rename(tmp_path, monkeypatch):
    events = []
    fsync, rename = os.fsync, type(tmp_path).rename

    def record_fsync(descriptor):
        events.append(os.readlink(f"/proc/self/fd/{descriptor}"))
        fsync(descriptor)

    def record_rename(self, target):
        events.append(("renamed", str(target)))
        return rename(self, target)

    monkeypatch.setattr(os, "fsync", record_fsync)
    monkeypatch.setattr(type(tmp_path), "rename", record_rename)
    (tmp_path / PARTIAL / "new" / "deep").mkdir(parents=True)
    for name in ("new/a", "new/deep/b"):
        (tmp_path / PARTIAL / name).write_text("x")
    rlhf.runs.checkpoints.commit_folder(tmp_path / PARTIAL / "new", tmp_path / "done")
    at = events.index(("renamed", str(tmp_path / "done")))
    inside = {str(tmp_path / PARTIAL / name) for name in ("new", "new/a", "new/deep", "new/deep/b")}
    assert set(events[:at]) == inside
    assert events[at + 1 :] == [str(tmp_path)]
    assert (tmp_path / "done" / "deep" / "b").read_text() == "x"
