"""`--sweep`: the grid, the folders of its points, what is refused, failures, and going on after a stop."""

import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from test_command import started  # noqa: F401  (a fixture)

import rlhf.command
from rlhf.errors import InputError
from rlhf.runs import sweep
from rlhf.runs.listing import find_runs
from rlhf.runs.sweep import find_points, point_name, read_grid, run_sweep, take_sweep

ROOT = Path(__file__).resolve().parent.parent
PPO = ROOT / "recipes" / "ppo.py"

# Stands for a stage: fails with the exit code that kl_coef names, if it is 1 or more, after a checkpoint.
STAGE = """
import json, pathlib, sys
given = dict(arg.removeprefix("--").split("=") for arg in sys.argv[1:])
folder, code = pathlib.Path(given["output_dir"]), int(float(given.get("kl_coef", 0)))
folder.mkdir(parents=True, exist_ok=True)
with open(folder / "calls.jsonl", "a") as file:
    file.write(json.dumps(given) + "\\n")
(folder / "environment.json").write_text(json.dumps({"stage": "ppo"}))
(folder / "config.yaml").write_text(json.dumps(given))
if code and "resume_from_checkpoint" not in given:
    (folder / "checkpoint-1").mkdir(exist_ok=True)
    (folder / "checkpoint-1" / "trainer_state.json").write_text("{}")
    sys.exit(code)
(folder / "result.json").write_text(json.dumps({"objective/score": 1.0}))
"""


@pytest.fixture
def run(tmp_path, monkeypatch, capsys):
    """Returns a function that runs a sweep of the stage above; it returns the exit code and the output."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("NNODES", raising=False)
    monkeypatch.setattr(sweep, "ProcessPoolExecutor", lambda *args: ThreadPoolExecutor(1))
    Path("stage.py").write_text(STAGE)

    def function(*words, options=()):
        given = ["--config", str(ROOT / "recipes/sandbox/ppo.yaml"), *options]
        try:
            run_sweep("ppo", PPO, given, words, [sys.executable, "stage.py"])
            code = 0
        except SystemExit as end:
            code = end.code
        printed = capsys.readouterr()
        return code, printed.out + printed.err

    return function


def calls(point):
    path = Path("runs/sandbox/ppo-sweep", point, "ppo", "calls.jsonl")
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


# ---- Running


def test_each_point_runs_once_in_its_own_folder(run):
    code, text = run("kl_coef=0.02,5e-2", "seed=0,1")
    assert code == 0
    names = ["kl_coef-0.02_seed-0", "kl_coef-0.02_seed-1", "kl_coef-0.05_seed-0", "kl_coef-0.05_seed-1"]
    assert [r.name for r in find_runs("runs/sandbox/ppo-sweep")] == names
    assert calls(names[2]) == [{"output_dir": f"runs/sandbox/ppo-sweep/{names[2]}/ppo", "kl_coef": "5e-2", "seed": "0"}]
    assert all(name in text for name in names) and "rlhf report runs/sandbox/ppo-sweep" in text
    assert run("kl_coef=0.02,0.05", "seed=1,2")[0] == 0
    assert [len(calls(name)) for name in names] == [1, 1, 1, 1], "finished points are skipped"
    assert len(calls("kl_coef-0.05_seed-2")) == 1


def test_the_others_run_on_after_a_failure_which_is_said_at_the_end(run):
    code, text = run("kl_coef=0.1,3,0.2")
    assert code == 1
    assert "error: 1 of 3 points failed: kl_coef-3.0 (exit code 3)" in text.splitlines()[-1]
    assert "not finished, has checkpoint-1" in text and len(calls("kl_coef-0.2")) == 1
    code, text = run("kl_coef=0.1,3,0.2")
    assert code == 0 and "failed" not in text
    assert calls("kl_coef-3.0")[1]["resume_from_checkpoint"] == "true", "a half point resumes"
    assert "resume_from_checkpoint" not in calls("kl_coef-3.0")[0]


def test_ctrl_c_in_a_point_stops_the_sweep(run):
    code, text = run("kl_coef=0.1,130,0.2")
    assert code == 130 and "The same command goes on" in text
    assert calls("kl_coef-0.2") == []


def test_sigterm_is_passed_to_the_stage_and_ends_the_sweep(tmp_path):
    stage, code = tmp_path / "stage.py", tmp_path / "sweep.py"
    stage.write_text(
        textwrap.dedent("""
        import os, signal, subprocess, sys, time
        if len(sys.argv) == 1:  # the launcher, which has no handler
            sys.exit(subprocess.run([sys.executable, "stage.py", "stage"]).returncode)
        def end(number, frame):
            open("ended", "w")
            sys.exit(130)
        signal.signal(signal.SIGTERM, end)
        open("started", "w")
        time.sleep(60)
    """)
    )
    code.write_text(
        textwrap.dedent("""
        import sys, pathlib
        from rlhf.runs.sweep import Point, run_point
        point = Point("a", pathlib.Path("a/ppo"), [], {}, False)
        sys.exit(run_point(point, [sys.executable, "stage.py"]))
    """)
    )
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    process = subprocess.Popen([sys.executable, code], cwd=tmp_path, env=environment, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while not (tmp_path / "started").exists():
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 130 and (tmp_path / "ended").exists()


# ---- What is refused, before the first point


@pytest.mark.parametrize(
    ("words", "options", "part"),
    [
        (["kl_koef=0.1"], [], "did you mean --kl_coef"),
        (["kl_coef=0.1,high"], [], "kl_coef=high: .*invalid float"),
        (["seed=0,1.5"], [], "seed=1.5: .*invalid int"),
        (["temperature=1,-1"], [], "temperature"),
        (["kl_coef=0.1,0.10"], [], "point kl_coef-0.1 twice"),
        (["kl_coef=0.1"], ["--learning_rat", "1"], "^--learning_rat in the command line"),
        (["kl_coef=0.1"], ["--push_to_hub", "true"], "rlhf push"),
        (["kl_coef=0.1"], ["--overwrite_output_dir", "true"], "overwrite_output_dir does not go with --sweep"),
    ],
)
def test_a_mistake_in_any_point_is_refused_before_the_first_starts(run, words, options, part):
    with pytest.raises(InputError, match=part):
        run(*words, options=options)
    assert not Path("runs").exists()


@pytest.mark.parametrize(
    ("words", "part"),
    [
        ([], "needs options"),
        (["kl_coef"], "write an option"),
        (["kl_coef=0.1,,0.2"], "write an option"),
        (["kl_coef="], "write an option"),
        (["lora_target_modules=[q_proj,v_proj]"], "one word"),
        (["lr_scheduler_kwargs={a: 1}"], "one word"),
        (["optimizer.lr=1"], "write an option"),
        (["seed=1", "seed=2"], "seed twice"),
        (["output_dir=a,b"], "cannot differ"),
        (["resume-from-checkpoint=true"], "cannot differ"),
    ],
)
def test_words_of_another_form_are_refused(words, part):
    with pytest.raises(InputError, match=part):
        read_grid(words)


def test_a_folder_of_other_options_is_not_taken_for_a_point(run):
    assert run("seed=0,1")[0] == 0
    with pytest.raises(InputError, match=r"seed-0/ppo is of a sweep with kl_coef 0.08, and this one has 0.1"):
        run("seed=0,1", options=["--kl_coef", "0.1"])
    assert run("seed=0,1", options=["--logging_steps", "3"])[0] == 0, "an option that changes no result"
    Path("runs/sandbox/ppo-sweep/seed-2/ppo").mkdir(parents=True)
    with pytest.raises(InputError, match="no sweep has written it"):
        run("seed=2,3")
    assert calls("seed-3") == []


def test_stages_that_do_not_train_and_several_machines_are_refused(monkeypatch):
    with pytest.raises(InputError, match=r"sft, reward, ppo\. Run evaluate once for each value"):
        run_sweep("evaluate", PPO, [], ["seed=1"], [])
    with pytest.raises(InputError, match="--smoke tries one run"):
        run_sweep("ppo", PPO, ["--smoke"], ["seed=1"], [])
    monkeypatch.setenv("NNODES", "2")
    with pytest.raises(InputError, match="NNODES is 2"):
        run_sweep("ppo", PPO, [], ["seed=1"], [])


# ---- Names and words


def test_names_of_points():
    assert point_name({"learning_rate": 1e-5, "seed": 0}) == "learning_rate-1e-05_seed-0"
    assert point_name({"bf16": False, "lora_target_modules": ["q", "v"]}) == "bf16-False_lora_target_modules-q+v"
    assert point_name({"sft_model_path": "../runs/a b"}) == "sft_model_path-runs-a-b"
    with pytest.raises(InputError, match="too long"):
        point_name({"sft_model_path": "x" * 300})


def test_values_that_are_the_default_have_a_name_too():
    (point,) = find_points("ppo", str(PPO), ["--config", str(ROOT / "recipes/sandbox/ppo.yaml")], {"seed": ["42"]})
    assert (point.name, point.arguments[1], point.checkpoint) == ("seed-42", "--seed=42", False)


def test_the_words_end_at_the_next_option():
    args = ["mine", "--sweep", "kl_coef=0.1,0.2", "seed=0", "--bf16", "true"]
    assert take_sweep(args) == (["kl_coef=0.1,0.2", "seed=0"], ["mine", "--bf16", "true"])
    assert take_sweep(["mine", "--sweep=seed=0,1"]) == (["seed=0,1"], ["mine"])


def test_the_command_starts_itself_for_each_point(started, monkeypatch):  # noqa: F811
    swept = []
    monkeypatch.setattr(sweep, "run_sweep", lambda *args: swept.append(args))
    rlhf.command.run(["ppo", "sandbox", "--accelerate", "cpu", "--kl_coef", "1", "--sweep", "seed=0,1"])
    ((stage, script, options, words, command),) = swept
    assert (stage, script.name, words) == ("ppo", "ppo.py", ["seed=0,1"])
    assert options[2:] == ["--kl_coef", "1"] and options[1].endswith("sandbox/ppo.yaml")
    assert command == [sys.executable, "-m", "rlhf.command", "ppo", "sandbox", "--accelerate", "cpu", "--kl_coef", "1"]
    assert started == []
