"""`--smoke`: what it changes, where it writes, and what it starts from."""

import runpy
import sys
from pathlib import Path

import pytest
import yaml
from small_stages import write_rows

from rlhf.cli import parse
from rlhf.data import DataArguments
from rlhf.errors import InputError
from rlhf.runs.console import next_command
from rlhf.runs.folders import RunFolderArguments
from rlhf.sft.trainer import SFTArguments
from rlhf.smoke import SMOKE, smoke_folder, smoke_line, smoke_options

TYPES = (SFTArguments, DataArguments, RunFolderArguments)


@pytest.fixture
def config(tmp_path, monkeypatch):
    """Writes an SFT recipe; makes this process its script."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["sft.py"])
    settings = {"dataset_name": "a.csv", "max_length": 128, "bf16": False, "output_dir": "runs/mine/sft"}
    path = tmp_path / "recipes" / "mine" / "sft.yaml"
    path.parent.mkdir(parents=True)
    path.write_text(yaml.safe_dump(settings))
    return str(path)


def test_a_stage_is_short_and_writes_into_a_folder_of_its_own(config):
    args, data, _ = parse(*TYPES, args=["--config", config, "--smoke"])
    assert (args.output_dir, args.max_steps, args.batch_size, args.max_length) == ("runs/mine/smoke/sft", 2, 2, 128)
    assert (data.dataset_name, data.dataset_size) == ("a.csv", 64)


def test_options_on_the_command_line_take_precedence(config):
    args, _, _ = parse(*TYPES, args=["--smoke", f"--config={config}", "--max_steps", "5"])
    assert (args.max_steps, args.output_dir) == (5, "runs/mine/smoke/sft")


def test_a_command_that_is_no_stage_refuses_it(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["data.py"])
    with pytest.raises(InputError, match="--smoke in the command line is not an option"):
        parse(DataArguments, args=["--dataset_name", "a.csv", "--smoke"])


def test_a_stage_starts_from_the_smoke_run_before_it_if_there_is_one(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    settings = {"sft_model_path": "runs/mine/sft", "reward_model_path": "me/reward", "output_dir": "runs/mine/ppo"}
    Path("runs/mine/sft").mkdir(parents=True)
    assert "sft_model_path" not in smoke_options("ppo", settings)  # the real one
    Path("runs/mine/smoke/sft").mkdir(parents=True)
    options = smoke_options("ppo", settings)
    assert options["sft_model_path"] == "runs/mine/smoke/sft" and "reward_model_path" not in options
    assert options["output_dir"] == "runs/mine/smoke/ppo"


def test_a_stage_that_is_missing_is_named_as_a_smoke_run_if_it_is_of_the_same_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    settings = {"sft_model_path": "runs/mine/sft", "reward_model_path": "runs/theirs/reward"}
    options = smoke_options("ppo", settings | {"output_dir": "runs/mine/ppo"})
    assert options["sft_model_path"] == "runs/mine/smoke/sft" and "reward_model_path" not in options
    chosen = smoke_options("choose", {"sft_path": "runs/mine/sft", "reward_model_path": "runs/mine/reward"})
    assert chosen["reward_model_path"] == "runs/mine/smoke/reward"


def test_choose_never_writes_into_the_real_run():
    assert smoke_options("choose", {"sft_path": "runs/mine/sft"})["sft_path"] == "runs/mine/smoke/sft"


def test_limits_are_the_recipes_if_they_are_lower():
    assert smoke_options("ppo", {"response_length": 8})["response_length"] == 8
    assert smoke_options("ppo", {"response_length": 500})["response_length"] == 16
    assert smoke_options("ppo", {"max_prompt_length": 1000})["max_prompt_length"] == 256
    assert "max_prompt_length" not in smoke_options("ppo", {})  # the model's context may be shorter


def test_a_value_of_the_wrong_type_is_left_to_the_parser():
    assert smoke_options("ppo", {"response_length": "many"})["response_length"] == "many"
    assert smoke_options("sft", {"output_dir": 5})["output_dir"] == "smoke/5"


def test_batches_fit_the_processes(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "8")
    assert smoke_options("sft", {})["batch_size"] == 8
    options = smoke_options("ppo", {})
    assert (options["batch_size"], options["mini_batch_size"], options["total_episodes"]) == (16, 8, 32)


def test_the_benchmark_of_a_run_is_written_beside_its_smoke_runs():
    line = smoke_line("benchmark", ["--run", "runs/mine", "--tasks", "rte", "--smoke"])
    assert line[line.index("--output_dir") + 1] == "runs/mine/smoke/benchmark" and "--smoke" not in line


def test_the_next_command_stays_a_smoke_run(config):
    Path(config).with_name("reward.yaml").write_text("")
    assert next_command("sft", ["sft.py", "--config", config, "--smoke"]) == "rlhf reward mine --smoke"


def test_folders_and_stages():
    assert smoke_folder("runs/mine/sft") == "runs/mine/smoke/sft"
    assert SMOKE.keys() == {"sft", "reward", "choose", "ppo", "evaluate", "benchmark", "pretrain"}


@pytest.mark.slow
def test_all_stages_of_a_written_recipe_hold_one_after_another(tmp_path, monkeypatch, toy_folder):
    monkeypatch.chdir(tmp_path)
    rows = [
        {"prompt": f"Question {i}?", "completions": [f"Bad {i}.", f"Good {i} it is.", "No."], "ranks": [1, 0, 2]}
        for i in range(120)
    ]
    write_rows(tmp_path / "rankings.jsonl", rows)
    recipes = Path(__file__).resolve().parent.parent / "recipes"

    def start(command: str, *args: str) -> None:
        monkeypatch.setattr(sys, "argv", [str(recipes / f"{command}.py"), *args])
        runpy.run_path(sys.argv[0], run_name="__main__")

    start("new", "mine", "--model", toy_folder, "--data", "rankings.jsonl")
    for stage in ("sft", "reward", "choose", "ppo", "evaluate"):
        start(stage, "--config", f"recipes/mine/{stage}.yaml", "--smoke")
    assert sorted(path.name for path in Path("runs/mine").iterdir()) == ["smoke"]
    made = {path.name for path in Path("runs/mine/smoke").iterdir()}
    assert {"sft", "reward", "ppo", "evaluate", "summary.json", "report.html"} <= made


def test_a_smoke_evaluation_samples_from_the_stages_that_there_are():
    assert smoke_options("evaluate", {"sft_model_path": "runs/a/sft"})["systems"] == ["base", "sft"]
    both = {"sft_model_path": "runs/a/sft", "ppo_model_path": "runs/a/ppo"}
    assert smoke_options("evaluate", both)["systems"] == ["base", "sft", "ppo"]
    assert "systems" not in smoke_options("evaluate", both | {"systems": ["ppo"]})
    line = smoke_line("evaluate", ["--smoke", "--systems", "ppo"])
    assert line[-2:] == ["--systems", "ppo"]
