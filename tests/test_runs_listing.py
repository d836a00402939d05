"""`rlhf runs`: which folders are runs, what state they are in, in which settings they differ, their results."""

import json
import os
import subprocess
import sys

import pytest
import yaml

from rlhf.errors import InputError
from rlhf.runs.artifacts import start_run
from rlhf.runs.differences import differing_settings, runs_json, runs_table
from rlhf.runs.digests import file_digest
from rlhf.runs.listing import EVALUATED, OUTDATED, WEIGHTS, find_runs
from rlhf.runs.results import Result, result_of

SUMMARY = {
    "baseline": "sft",
    "judges": {
        "reward": {"optimized": True, "win_rate": {"ppo": {"mean": 0.9, "low": 0.8, "high": 1.0}},
                   "mean": {"ppo": {"mean": 1.5, "low": 1.4, "high": 1.6}}},
        "gold": {"win_rate": {"ppo": {"mean": 0.74, "low": 0.71, "high": 0.76}}, "mean": None},
    },
}  # fmt: skip


def write_stage(folder, stage=None, result=None, started=1_790_000_000, recipe=None, **settings):
    """Writes the files with which a stage begins and, with a result, ends; returns its folder."""
    folder.mkdir(parents=True, exist_ok=True)
    environment = {"stage": stage or folder.name, "recipe": recipe, "started": started}
    (folder / "environment.json").write_text(json.dumps(environment))
    settings = {"model_name_or_path": "org/base", "output_dir": str(folder), "logging_steps": 1, **settings}
    (folder / "config.yaml").write_text(yaml.safe_dump(settings))
    if result is not None:
        (folder / "result.json").write_text(json.dumps(result))
    return folder


def names(root):
    return {run.name: list(run.stages) for run in find_runs(root)}


def test_stages_that_are_named_after_themselves_are_one_run(tmp_path):
    for stage in ("ppo", "reward", "sft"):
        write_stage(tmp_path / "mine" / stage)
    write_stage(tmp_path / "mine" / "ppo-sweep" / "seed-10" / "ppo")
    write_stage(tmp_path / "mine" / "ppo-sweep" / "seed-9" / "ppo")
    write_stage(tmp_path / "beta", "ppo")
    write_stage(tmp_path / "mine" / "ppo" / "checkpoint-4")  # a checkpoint is none
    expected = {"beta": ["ppo"], "mine": ["sft", "reward", "ppo"]}
    points = {f"mine/ppo-sweep/seed-{seed}": ["ppo"] for seed in (9, 10)}
    assert names(tmp_path) == expected | points
    assert list(names(tmp_path)) == sorted(expected) + list(points), "seed-9 comes before seed-10"
    assert names(tmp_path / "mine" / "ppo-sweep") == {"seed-9": ["ppo"], "seed-10": ["ppo"]}
    assert names(tmp_path / "mine")["mine"] == ["sft", "reward", "ppo"]
    assert names(tmp_path / "mine" / "sft") == {"mine": ["sft"]}


def test_what_a_recipe_starts_is_listed_with_its_recipe(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["recipes/sft.py", "--config", "recipes/mine/sft.yaml", "--seed", "1"])
    start_run(tmp_path / "other" / "sft", stage="sft")
    (run,) = find_runs(tmp_path)
    assert (run.name, run.recipe) == ("other", "mine")
    assert "other  mine    20" in runs_table([run])


@pytest.mark.parametrize(
    ("file", "text", "state"),
    [
        ("result.json", "{", "result.json is damaged"),
        ("result.json", "[1]", "result.json is damaged"),
        ("result.json", "\udcff", "result.json is damaged"),
        ("config.yaml", "a: [", "config.yaml is damaged"),
        ("environment.json", "", "environment.json is damaged"),
        ("metrics.jsonl", '{"step": 4, "loss": 1}\n{"step": 8, "lo', "not finished, at step 8"),
        ("checkpoint-12/x", "", "not finished, has checkpoint-12"),
    ],
)
def test_a_stage_that_is_damaged_or_not_finished_is_listed_with_a_word(tmp_path, file, text, state):
    folder = write_stage(tmp_path / "mine" / "sft", result=None if "not finished" in state else {"eval_loss": 1.0})
    (folder / file).parent.mkdir(exist_ok=True)
    (folder / file).write_bytes(text.encode("utf-8", "surrogateescape"))
    (run,) = find_runs(tmp_path)
    assert run.stages["sft"].state == state
    assert state in runs_table([run])
    json.dumps(runs_json([run]))


def test_folders_without_a_run_are_listed_with_a_word(tmp_path):
    write_stage(tmp_path / "mine" / "sft")
    for name in ("empty", "foreign", "trl/adapter"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "foreign" / "notes.txt").touch()
    (tmp_path / "trl" / "adapter" / "adapter_config.json").write_text("{}")
    (tmp_path / "report.html").touch()
    states = {run.name: run.state for run in find_runs(tmp_path)}
    trl = "an adapter of another library, or of an old version"
    assert states == {"empty": "empty", "foreign": "no run", "mine": "", "trl": trl}


def test_a_folder_that_cannot_be_read_is_a_mistake(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    with pytest.raises(InputError, match=r"cannot be read\. Check its permissions"):
        find_runs(tmp_path)


def test_a_missing_folder_is_a_mistake(tmp_path):
    (tmp_path / "file").touch()
    for name, words in (("file", "is a file"), ("none", "does not exist")):
        with pytest.raises(InputError, match=words):
            find_runs(tmp_path / name)


# ---- Settings


def differences(root):
    runs = find_runs(root)
    return {run.name: differs for run, differs in zip(runs, differing_settings(runs), strict=True)}


def test_settings_that_differ_and_may_change_a_result_are_shown(tmp_path):
    write_stage(tmp_path / "a" / "ppo", kl_coef=0.05, seed=1, lr=1.0, sft_model_path=str(tmp_path / "a" / "sft"))
    write_stage(tmp_path / "b" / "ppo", kl_coef=0.1, seed=1, lr=1.0, sft_model_path=str(tmp_path / "b" / "sft"))
    assert differences(tmp_path) == {"a": {"kl_coef": 0.05}, "b": {"kl_coef": 0.1}}
    write_stage(tmp_path / "c" / "ppo", kl_coef=0.1, seed=2, logging_steps=9, lr=None, sft_model_path="other/sft")
    assert differences(tmp_path)["c"] == {"kl_coef": 0.1, "seed": 2, "lr": None, "sft_model_path": "other/sft"}
    assert differences(tmp_path)["a"]["sft_model_path"] == "./sft"


def test_an_option_that_one_run_leaves_out_has_its_default(tmp_path):
    write_stage(tmp_path / "a" / "ppo", lora_r=8, systems=None)
    write_stage(tmp_path / "b" / "ppo")  # of a version without `systems`
    assert differences(tmp_path) == {"a": {"lora_r": 8}, "b": {"lora_r": "default"}}


def test_a_setting_of_several_stages_has_their_names_where_it_differs_among_them(tmp_path):
    for seed in (1, 2):
        for stage in ("sft", "ppo"):
            write_stage(tmp_path / str(seed) / stage, seed=seed, kl=seed if stage == "ppo" else 0)
    assert differences(tmp_path)["2"] == {"seed": 2, "kl": 2}
    write_stage(tmp_path / "2" / "ppo", seed=3, kl=2)
    assert differences(tmp_path)["2"] == {"sft.seed": 2, "ppo.seed": 3, "kl": 2}


def test_runs_on_other_models_are_compared_with_their_own_kind(tmp_path):
    write_stage(tmp_path / "a" / "sft", seed=1, lr=1)
    write_stage(tmp_path / "b" / "sft", seed=2, lr=1)
    write_stage(tmp_path / "c" / "sft", model_name_or_path="/models/other", lr=2)
    assert differences(tmp_path) == {
        "a": {"model": "org/base", "seed": 1}, "b": {"model": "org/base", "seed": 2}, "c": {"model": "other"},
    }  # fmt: skip


def test_settings_are_beside_the_result_or_below(tmp_path):
    for seed in (1, 2):
        write_stage(tmp_path / f"run-{seed}" / "ppo", seed=seed, result={"objective/score": 1.0})
    lines = runs_table(find_runs(tmp_path), 200).splitlines()
    assert lines[0].endswith("settings") and lines[1].endswith("reward in training 1.00  seed 1") and len(lines) == 3
    lines = runs_table(find_runs(tmp_path), 60).splitlines()
    assert [line.strip() for line in lines[2::2]] == ["seed 1", "seed 2"] and "settings" not in lines[0]


def test_the_name_of_a_point_has_its_settings(tmp_path):
    for name in ("lr-1e-05_seed-1", "lr-0.0005_seed-1", "lr-0.002_seed-1"):
        write_stage(tmp_path / name / "ppo", lr=float(name.split("_")[0][3:]), seed=1, kl=len(name))
    lines = runs_table(find_runs(tmp_path), 200).splitlines()
    assert [line.split()[0] for line in lines[1:]] == ["lr-1e-05_seed-1", "lr-0.0005_seed-1", "lr-0.002_seed-1"]
    assert lines[1].endswith("kl 15"), "and only what the name does not say stands beside it"


# ---- Results


@pytest.mark.parametrize(
    ("stage", "result", "text"),
    [
        ("reward", {"accuracy": 0.748, "low": 0.736, "high": 0.76}, "accuracy 74.8 % (73.6 to 76.0)"),
        ("reward", {"accuracy": None}, None),
        ("sft", {"chosen": None, "epochs": []}, None),
        ("pretrain", {"train_loss": 1.5, "validation_loss": 1.25}, "validation loss 1.250"),
        ("sft", {"chosen": "c", "epochs": [{"checkpoint": "c", "eval_loss": 0.5}]}, "validation loss 0.500"),
        (
            "sft",
            {"chosen": "c", "epochs": [{"checkpoint": "c", "eval_loss": 0.5, "rm_score": 1.0, "rm_score_se": 0.5}]},
            "reward of the chosen epoch 1.00 (0.02 to 1.98)",
        ),
        ("sft", {"chosen": "c", "epochs": [{"checkpoint": "c", "rm_score": 1.0}]}, "reward of the chosen epoch 1.00"),
        (
            "ppo",
            {f"{prefix}objective/score{end}": x for prefix, y in (("", 9), ("eval_", 0))
             for end, x in (("", y + 1), ("_low", y), ("_high", y + 2))},
            "held-out reward 1.00 (0.00 to 2.00)",
        ),
        ("ppo", {"objective/score": 1.0}, "reward in training 1.00"),
        ("ppo", {"seconds": 1.0}, None),
        ("data", {"rows": 3}, None),
    ],
)  # fmt: skip
def test_the_number_of_a_stage(stage, result, text):
    found = result_of(stage, result)
    assert (found.text() if found else None) == text


def test_an_evaluated_run_has_the_win_rate_of_the_judge_that_nobody_was_trained_to_please():
    assert result_of("evaluate", {}, SUMMARY) == Result("RLHF over SFT, gold:", 0.74, 0.71, 0.76, share=True)
    assert result_of("ppo", {"objective/score": 1.0}, SUMMARY) == Result("test reward", 1.5, 1.4, 1.6)
    own = {"objective/score": 1.0, "objective/score_low": 0.9, "objective/score_high": 1.1}
    assert result_of("ppo", own, SUMMARY).name == "reward in training", "the run's own interval comes first"
    assert result_of("evaluate", {}, None) is None


def test_a_win_rate_by_the_reward_model_of_the_training_says_so():
    summary = {"baseline": "sft", "judges": {"reward": SUMMARY["judges"]["reward"]}}
    assert result_of("evaluate", {}, summary).text() == "RLHF over SFT, reward (optimized): 90.0 % (80.0 to 100.0)"


def test_a_greedy_system_is_named_with_the_greedy_baseline_that_it_was_compared_with():
    wins = {"ppo_greedy": {"mean": 0.6, "low": 0.5, "high": 0.7}}
    summary = {"baseline": "sft", "judges": {"gold": {"win_rate": wins}}}
    both = summary | {"systems": {"sft": {}, "sft_greedy": {}, "ppo_greedy": {}}}
    assert result_of("evaluate", {}, both).name == "RLHF, greedy over SFT, greedy, gold:"
    sampled = summary | {"systems": {"sft": {}, "ppo_greedy": {}}}
    assert result_of("evaluate", {}, sampled).name == "RLHF, greedy over SFT, gold:"


@pytest.fixture
def evaluated(tmp_path):
    """Writes a run whose stages began at 10, 20 and 30, with an adapter each of that date; returns its folder."""
    for stage, started in {"sft": 10, "ppo": 20, "evaluate": 30}.items():
        write_stage(tmp_path / "mine" / stage, result={"objective/score": 1.0}, started=started)
        if stage != "evaluate":
            write_weights(tmp_path / "mine" / stage, stage, started)
    (tmp_path / "mine" / "summary.json").write_text(json.dumps(SUMMARY))
    return tmp_path / "mine"


def write_weights(folder, content, written):
    """Writes an adapter's file with a date, in seconds since 1970."""
    (folder / WEIGHTS).write_text(content)
    os.utime(folder / WEIGHTS, (written, written))


def test_an_evaluation_of_earlier_versions_is_outdated_by_the_dates(evaluated):
    (run,) = find_runs(evaluated.parent)
    assert run.last_result().name == "RLHF over SFT, gold:" and run.results()["ppo"].name == "test reward"
    write_stage(evaluated / "ppo", result={"objective/score": 2.0}, started=40)
    (run,) = find_runs(evaluated.parent)
    assert run.last_result() == Result("reward in training", 2.0) and run.summary is None
    assert "evaluate is of adapters that have changed since" in runs_table([run])
    write_stage(evaluated / "ppo", result={"objective/score": 2.0}, started=None)
    assert find_runs(evaluated.parent)[0].summary, "of an older version, which does not say when it began"


def test_an_evaluation_is_outdated_if_an_adapter_has_another_digest(evaluated):
    digests = {stage: file_digest(evaluated / stage / WEIGHTS) for stage in ("sft", "ppo")}
    write_stage(evaluated / "evaluate", result={EVALUATED: digests}, started=30)
    write_stage(evaluated / "ppo", result={"objective/score": 2.0}, started=40)
    write_weights(evaluated / "ppo", "ppo", written=45)
    assert find_runs(evaluated.parent)[0].summary, "trained again, to the same weights"
    write_weights(evaluated / "sft", "another epoch", written=50)  # by `rlhf choose`: the stage did not begin again
    assert find_runs(evaluated.parent)[0].stages["evaluate"].state == OUTDATED
    write_weights(evaluated / "sft", "never evaluated", written=10)  # an evaluation of the SFT of another run
    assert find_runs(evaluated.parent)[0].summary


def test_a_stage_alone_does_not_show_the_numbers_of_an_outdated_evaluation(evaluated):
    assert find_runs(evaluated / "ppo")[0].summary
    write_stage(evaluated / "sft", result={}, started=40)
    assert find_runs(evaluated / "ppo")[0].summary is None


# ---- The command


def test_the_command_prints_table_and_json_without_loading_a_library(tmp_path):
    write_stage(tmp_path / "runs" / "mine" / "ppo", result={"objective/score": 1.0})
    code = "import sys; from rlhf import command; sys.argv = ['rlhf', 'runs', *sys.argv[1:]]\ntry: command.main()\n"
    code += "finally: print(sorted({'torch', 'trl', 'numpy', 'transformers'} & sys.modules.keys()))"

    def run(*args):
        command = [sys.executable, "-c", code, *args]
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
        return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, env=environment)

    table = run()
    assert "mine" in table.stdout and "reward in training 1.00" in table.stdout and table.stdout.endswith("[]\n")
    (row,) = json.loads(run("--json").stdout.removesuffix("[]\n"))
    assert row["stages"]["ppo"]["result"] == {"objective/score": 1.0}
    wrong = run("nowhere")
    assert wrong.returncode == 2 and wrong.stderr.startswith("error: nowhere does not exist")
