"""docs/faults.md, section F: checkpoints that were replaced, moved, or belong to another run's folder."""

import pytest
from small_stages import options_of, refusal, run_stage
from test_runs_checkpoints import AtomicTrainer, trainer
from toys import save_toy

from rlhf.runs.contract import Contract, differences
from rlhf.runs.folders import clear_folder
from rlhf.runs.resume import COMPARED, complete_checkpoints
from rlhf.sft.select_checkpoint import checkpoint_table


class Worse(AtomicTrainer):
    """Its first evaluation is its best."""

    def evaluate(self, *args, **kwargs):
        metrics = {"eval_loss": float(self.state.global_step)}
        self.log(metrics)
        return metrics


def names(folder):
    return [path.name for path in complete_checkpoints(folder)]


def test_seam_f13_the_checkpoint_that_a_run_resumed_from_may_be_replaced(tmp_path):
    trainer(tmp_path, max_steps=2, save_total_limit=1).train()
    resumed = trainer(tmp_path, max_steps=4, save_total_limit=1)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert (names(tmp_path), resumed.steps_taken) == (["checkpoint-4"], 2)


def test_seam_f14_a_parent_that_was_added_or_left_out_is_a_difference(own_run, capsys):
    other = own_run / "reward" / "checkpoint-3"
    error = refusal(capsys, "ppo", own_run, resume_from_checkpoint="true", reward_ensemble_paths=own_run / "reward")
    assert "parents.reward_2 None" in error and other.is_dir()
    error = refusal(capsys, "reward", own_run, resume_from_checkpoint="true", sft_model_path=None)
    assert "parents.sft" in error and "this run has None" in error
    named, unnamed = Contract("reward", parents={"sft": "a"}), Contract("reward", parents={"frozen_weights": "b"})
    assert differences(named, unnamed, COMPARED) == []  # the trainer of a script cannot tell


def test_seam_f15_a_checkpoint_of_one_folder_does_not_mix_into_the_run_of_another(own_run, capsys):
    before = {path: path.read_bytes() for path in (own_run / "ppo").rglob("*") if path.is_file()}
    for stage, other in (("sft", "ppo"), ("reward", "ppo")):
        checkpoint = complete_checkpoints(own_run / stage)[0]
        error = refusal(capsys, stage, own_run, resume_from_checkpoint=checkpoint, output_dir=own_run / other)
        assert f"{own_run / other} holds a finished run" in error and "overwrite_output_dir" in error
    assert before == {path: path.read_bytes() for path in (own_run / "ppo").rglob("*") if path.is_file()}


def test_seam_f16_the_best_checkpoint_of_a_moved_run_is_kept(tmp_path):
    options = {"save_total_limit": 2, "eval_strategy": "steps", "eval_steps": 1, "metric_for_best_model": "eval_loss"}
    options["greater_is_better"] = False
    trainer(tmp_path / "run", Worse, max_steps=2, **options).train()
    assert names(tmp_path / "run") == ["checkpoint-1", "checkpoint-2"]
    (tmp_path / "run").rename(tmp_path / "moved")
    trainer(tmp_path / "moved", Worse, max_steps=4, **options).train(resume_from_checkpoint=True)
    assert names(tmp_path / "moved") == ["checkpoint-1", "checkpoint-4"]


@pytest.mark.parametrize("there", [(1, 2), (2,)])
def test_seam_f17_a_lost_best_epoch_is_said(tmp_path, caplog, there):
    logs = [{"epoch": 1.0, "step": 1, "eval_loss": 1.5}, {"epoch": 2.0, "step": 2, "eval_loss": 1.7}]
    for step in there:
        (tmp_path / f"checkpoint-{step}").mkdir()
    assert len(checkpoint_table(logs, tmp_path)) == len(there)
    assert ("the lowest validation loss, 1.5000, is that of step 1" in caplog.text) == (1 not in there)


@pytest.mark.parametrize(
    ("stage", "option"), [("sft", "model_name_or_path"), ("sft", "dataset_name"), ("ppo", "sft_model_path")]
)
def test_seam_f18_a_run_never_deletes_its_own_input(own_run, capsys, stage, option):
    folder = options_of(stage, own_run)[option]
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    error = refusal(capsys, stage, own_run, output_dir=folder, overwrite_output_dir="true")
    assert f"output_dir is {folder}, which {option} names, too" in error
    assert before == {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_seam_f19_files_of_the_user_stay_where_no_run_was(tmp_path):
    (tmp_path / "raw").mkdir()
    mine = [tmp_path / "raw" / "data.csv", tmp_path / "README.md", tmp_path / "model.safetensors"]
    for path in mine:
        path.write_text("mine")
    clear_folder(tmp_path, resume=False)
    assert all(path.exists() for path in mine)
    (tmp_path / "environment.json").write_text("{}")  # a run was here
    clear_folder(tmp_path, resume=False)
    assert not any(path.exists() for path in mine)


@pytest.mark.slow
def test_seam_f20_folds_of_another_base_are_not_averaged(own_run, capsys):
    folds = {"cross_validate": "prompts", "sft_model_path": None, "output_dir": own_run / "folds"}
    run_stage("reward", own_run, **folds, max_steps=1)
    (own_run / "base" / "model.safetensors").unlink()
    save_toy(own_run / "base", seed=5)
    options = folds | {"max_steps": 1, "model_name_or_path": own_run / "base"}
    assert "was trained with base" in refusal(capsys, "reward", own_run, resume_from_checkpoint="true", **options)
