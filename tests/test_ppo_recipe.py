"""recipes/ppo.py through its own command line, on a toy base with SFT and reward adapters."""

import json
import runpy
import sys
from pathlib import Path

import pytest
import torch
import trl
from packaging.version import Version
from peft import AutoPeftModelForCausalLM
from toys import lora, prompts, save_word_stages

from rlhf.models.stages import stage_folders
from rlhf.runs.artifacts import read_metrics, read_result

RECIPE = Path(__file__).parent.parent / "recipes" / "ppo.py"


@pytest.fixture(scope="module")
def stages(tmp_path_factory) -> Path:
    """Returns a folder with base/, sft/, reward/, reward-other/ and prompts/."""
    folder = tmp_path_factory.mktemp("stages")
    base = save_word_stages(folder)
    base.add_adapter("other", lora_config=lora(init_lora_weights=False), head=True)
    base.save_adapter("other", folder / "reward-other")
    prompts(20).to_json(folder / "prompts" / "train.jsonl")
    prompts(40, seed=9).to_json(folder / "prompts" / "validation.jsonl")  # a tenth is used
    return folder


def run(monkeypatch, stages: Path, output_dir: Path, **options) -> None:
    options = {
        "dataset_name": stages / "prompts", "sft_model_path": stages / "sft", "reward_model_path": stages / "reward",
        "output_dir": output_dir, "per_device_train_batch_size": 2, "mini_batch_size": 4, "batch_size": 8,
        "total_episodes": 16, "response_length": 5, "learning_rate": 1e-3, "warmup_rollouts": 0, "bf16": False,
        "use_cpu": True, "gradient_checkpointing": False, "report_to": "none", "save_strategy": "no",
        "disable_tqdm": True, "num_sample_generations": 1, **options,
    }  # fmt: skip
    arguments = [text for name, value in options.items() if value is not None for text in (f"--{name}", str(value))]
    monkeypatch.setattr(sys, "argv", [str(RECIPE), *arguments])
    runpy.run_path(str(RECIPE), run_name="__main__")


def test_the_recipe_trains_and_writes_its_files(monkeypatch, stages, tmp_path):
    run(monkeypatch, stages, tmp_path, eval_strategy="steps", ema_decay=0.5)
    rows = [row for row in read_metrics(tmp_path) if "objective/score" in row]
    assert [row["episode"] for row in rows] == [8, 16]
    result = read_result(tmp_path)
    assert {"seconds", "objective/kl", "objective/score", "eval_objective/score"} <= result.keys()
    assert {"config.yaml", "environment.json", "samples.jsonl", "raw", "value", "tokenizer.json"} <= {
        path.name for path in tmp_path.iterdir()
    }
    samples = [json.loads(line) for line in (tmp_path / "samples.jsonl").read_text().splitlines()]
    assert {sample["source"] for sample in samples} == {"train", "eval"}
    ids = torch.tensor([[5, 6, 7]])
    trained, before = (AutoPeftModelForCausalLM.from_pretrained(str(p))(ids).logits for p in (tmp_path, stages / "sft"))
    assert not torch.equal(trained, before)


@pytest.mark.parametrize(
    ("options", "logs"),
    [({"logging_steps": 100}, [16]), ({"logging_strategy": "no"}, [16]), ({"logging_steps": 3}, [24, 32])],
    ids=str,
)
def test_seam_d12_a_run_that_logs_little_has_the_last_rollouts_in_its_result(
    monkeypatch, stages, tmp_path, options, logs
):
    run(monkeypatch, stages, tmp_path, total_episodes=logs[-1], **options)
    rows = [row for row in read_metrics(tmp_path) if "objective/score" in row]
    assert [row["episode"] for row in rows] == logs
    result = read_result(tmp_path)
    assert result["objective/score"] == rows[-1]["objective/score"]
    assert {"objective/kl", "loss/policy", "val/explained_variance"} <= result.keys()


def test_the_recipe_mixes_pretraining_text_in(monkeypatch, stages, tmp_path):
    text = tmp_path / "text.jsonl"
    prompts(30, seed=4).rename_column("prompt", "text").to_json(text)
    options = {"ptx_coef": 2.0, "ptx_length": 8, "ptx_examples_per_episode": 1, "pretrain_dataset_name": text}
    run(monkeypatch, stages, tmp_path / "ppo", **options)
    assert read_result(tmp_path / "ppo")["loss/ptx"] > 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"ptx_coef": 1.0}, "ptx_coef is 1.0 and there is no pretraining text"),
        ({"reward_model_path": None}, "reward_model_path or reward_funcs are needed"),
        ({"sft_model_path": "/nowhere/sft"}, "/nowhere/sft does not exist"),
        ({"reward_ensemble_paths": "/nowhere/reward"}, "/nowhere/reward does not exist"),
        ({"reward_ensemble": "max"}, "invalid choice"),
        ({"batch_size": 10}, "batch_size is 10, not a multiple of mini_batch_size 4"),
        ({"max_prompt_length": 3}, "more than max_prompt_length (3 tokens"),
        ({"max_prompt_length": 60}, "exceeds the model's context of 64"),
        ({"learning_rte": 1.0}, "learning_rte"),
    ],
)
def test_mistakes_end_in_one_sentence(monkeypatch, capsys, stages, tmp_path, options, message):
    with pytest.raises(SystemExit) as error:
        run(monkeypatch, stages, tmp_path, **options)
    assert error.value.code == 2
    printed = capsys.readouterr().err.strip().splitlines()[-1]
    assert printed.startswith("error: ")
    assert message in printed


def test_the_worst_case_of_several_reward_models(monkeypatch, stages, tmp_path):
    """The first rollout comes from the same policy, so its mean score is at most that of each member alone."""
    other = stages / "reward-other"
    runs = {
        "one": {},
        "other": {"reward_model_path": other},
        "mean": {"reward_ensemble_paths": other},
        "min": {"reward_ensemble_paths": other, "reward_ensemble": "min"},
    }
    scores = {}
    for name, options in runs.items():
        run(monkeypatch, stages, tmp_path / name, total_episodes=8, **options)
        scores[name] = next(row["objective/score"] for row in read_metrics(tmp_path / name) if "objective/score" in row)
    assert scores["mean"] == pytest.approx((scores["one"] + scores["other"]) / 2, abs=1e-5)
    assert scores["min"] <= min(scores["one"], scores["other"]) + 1e-6
    assert scores["min"] < scores["mean"] - 1e-4


def test_long_prompts_can_be_skipped(monkeypatch, stages, tmp_path):
    run(monkeypatch, stages, tmp_path, max_prompt_length=5, on_bad_rows="skip", total_episodes=8)
    assert read_result(tmp_path)["episode"] == 8
    skipped = [json.loads(line) for line in (tmp_path / "skipped_rows.jsonl").read_text().splitlines()]
    assert len(skipped) > 1
    assert all("more than max_prompt_length (5 tokens" in row["reason"] for row in skipped)


@pytest.mark.skipif(Version(trl.__version__) >= Version("1.13"), reason="TRL's PPOTrainer was deleted in 1.13")
def test_trls_own_trainer_runs_the_same_recipe(monkeypatch, stages, tmp_path):
    run(monkeypatch, stages, tmp_path, ppo_trainer="trl", num_sample_generations=0)
    rows = [row for row in read_metrics(tmp_path) if "objective/kl" in row]
    assert [row["episode"] for row in rows] == [8, 16]
    assert (tmp_path / "model.safetensors").exists()


@pytest.mark.skipif(Version(trl.__version__) < Version("1.13"), reason="this TRL has a PPOTrainer")
def test_a_trl_without_ppo_is_said_so(monkeypatch, capsys, stages, tmp_path):
    with pytest.raises(SystemExit):
        run(monkeypatch, stages, tmp_path, ppo_trainer="trl")
    assert "has no PPOTrainer" in capsys.readouterr().err


# docs/trl-faults.md, fault 18
@pytest.mark.slow
def test_fault_18_a_run_killed_twice_ends_as_if_it_had_not_been(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(RECIPE.parent.parent / "benchmarks")
    import kill_resume

    result = kill_resume.main(kills=2, steps=20, seed=0, folder=tmp_path)
    assert result["all_identical"], result


def test_without_sft_the_base_is_the_reference_and_the_policy_a_new_adapter(monkeypatch, stages, tmp_path, capsys):
    """For those who have a reward function and nothing else."""
    (tmp_path / "rewards.py").write_text(
        "def short(completions, **columns):\n    return [-float(len(str(c))) for c in completions]\n"
    )
    options = {
        "sft_model_path": "", "reward_model_path": "", "reward_funcs": f"{tmp_path / 'rewards.py'}:short", "lora_r": 2,
        "model_name_or_path": stages / "base",
    }  # fmt: skip
    folder = tmp_path / "run" / "ppo"
    run(monkeypatch, stages, folder, **options)
    config = json.loads((folder / "adapter_config.json").read_text())
    assert (config["r"], config["lora_dropout"]) == (2, 0.0)
    kl = [row["objective/kl"] for row in read_metrics(folder) if "objective/kl" in row]
    assert kl[0] == 0 and kl[1] != 0  # the policy starts as the base, and moves
    assert stage_folders(tmp_path / "run") == {"ppo": str(folder)}
    for change, refusal in (
        ({"sft_model_path": stages / "sft"}, f"lora_r is 2, but the adapter {stages / 'sft'} is trained already"),
        ({"sft_model_path": None}, 'or "" to start from the base'),
        ({"lora_dropout": 0.1}, "lora_dropout is 0.1, but the policy that is trained must be the one that has sampled"),
    ):
        with pytest.raises(SystemExit):
            run(monkeypatch, stages, tmp_path / "refused", **options | change)
        assert refusal in capsys.readouterr().err and not (tmp_path / "refused").exists()
