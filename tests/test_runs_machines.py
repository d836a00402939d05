"""Two launchers on this machine's loopback, as on two machines: the options, the run, and the folder they share."""

import json
import os
import runpy
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file
from small_stages import ROOT, options_of

LAUNCHER = ROOT / "accelerate_configs" / "launch.py"
MACHINES = {"NNODES": "2", "NODE_RANK": "1", "MASTER_ADDR": "node-a", "NPROC_PER_NODE": "4"}


@pytest.fixture(scope="module")
def machine_options():
    return runpy.run_path(str(LAUNCHER))["machine_options"]


def test_the_environment_names_the_machines(machine_options):
    assert machine_options(MACHINES) == [
        "--num_machines=2", "--machine_rank=1", "--main_process_ip=node-a", "--main_process_port=29500",
        "--num_processes=8",
    ]  # fmt: skip
    assert "--main_process_port=1234" in machine_options(MACHINES | {"MASTER_PORT": "1234"})
    assert machine_options({}) == machine_options({"NNODES": "1", "MASTER_ADDR": "node-a"}) == []


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"NODE_RANK": ""}, "NODE_RANK is not set"),
        ({"NODE_RANK": "2"}, "NODE_RANK is 2, and there are 2 machines"),
        ({"MASTER_ADDR": ""}, "MASTER_ADDR is not set"),
        ({"NNODES": "two"}, "NNODES is two"),
        ({"MASTER_PORT": "http"}, "MASTER_PORT is http"),
    ],
)
def test_a_wrong_environment_is_refused(machine_options, changes, message):
    with pytest.raises(ValueError, match=message):
        machine_options(MACHINES | changes)


def free_port() -> int:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return server.getsockname()[1]


def start(config: str, options: dict, environment: dict, folder: Path = ROOT) -> subprocess.Popen:
    """Starts a launcher of PPO on the CPU."""
    command = [sys.executable, LAUNCHER, "--quiet", "--config_file", ROOT / "accelerate_configs" / config]
    command += ["--num_cpu_threads_per_process", "1", ROOT / "recipes" / "ppo.py"]
    command += [text for name, value in options.items() for text in (f"--{name}", value)]
    common = {"PYTHONPATH": str(ROOT), "ACCELERATE_USE_CPU": "true"}
    return subprocess.Popen(
        list(map(str, command)), cwd=folder, env=os.environ | common | environment,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip


def start_two(options: dict, folders: tuple[Path, Path] = (ROOT, ROOT)) -> list[subprocess.Popen]:
    """Starts the launchers of two machines with one process each."""
    machines = {"NNODES": "2", "NPROC_PER_NODE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    return [
        start("multi_node.yaml", options, machines | {"NODE_RANK": str(rank)}, folder)
        for rank, folder in enumerate(folders)
    ]


def finish(launchers: list[subprocess.Popen]) -> tuple[list[int], list[str]]:
    """Returns exit codes and outputs; stops launchers that do not end."""
    try:
        outputs = [launcher.communicate(timeout=300)[0] for launcher in launchers]
    finally:
        for launcher in launchers:
            launcher.terminate()
    return [launcher.returncode for launcher in launchers], outputs


@pytest.mark.slow
def test_two_machines_are_two_processes(small_run, tmp_path):
    together, apart, resumed = (tmp_path / name for name in ("together", "apart", "resumed"))
    options = options_of("ppo", small_run) | {"save_steps": 0.25}  # after each of the four steps
    codes, outputs = finish([start("multi_cpu.yaml", options | {"output_dir": together}, {})])
    assert codes == [0], outputs
    codes, outputs = finish(start_two(options | {"output_dir": apart}))
    assert codes == [0, 0], outputs
    for name in ("adapter_model.safetensors", "raw/adapter_model.safetensors", "value/adapter_model.safetensors"):
        one, two = load_file(together / name), load_file(apart / name)
        assert one.keys() == two.keys()
        assert all(torch.equal(one[key], two[key]) for key in one), name
    assert json.loads((apart / "environment.json").read_text())["processes"] == 2

    # A checkpoint in the middle of a rollout has the files of both machines, and both resume from it.
    shutil.copytree(apart / "checkpoint-1", resumed / "checkpoint-1")
    parts = {path.name for path in (apart / "checkpoint-1").iterdir()}
    assert parts >= {"rng_state_0.pth", "rng_state_1.pth", "rollout_0.safetensors", "rollout_1.safetensors"}
    codes, outputs = finish(start_two(options | {"output_dir": resumed, "resume_from_checkpoint": "true"}))
    assert codes == [0, 0], outputs
    one, two = (load_file(folder / "adapter_model.safetensors") for folder in (apart, resumed))
    assert all(torch.equal(one[key], two[key]) for key in one)


@pytest.mark.slow
def test_machines_with_folders_of_their_own_are_refused(small_run, tmp_path):
    for name in ("a", "b"):
        (tmp_path / name / "runs").mkdir(parents=True)
    options = options_of("ppo", small_run) | {"output_dir": "runs/ppo"}
    codes, outputs = finish(start_two(options, (tmp_path / "a", tmp_path / "b")))
    assert codes == [2, 2]
    for output in outputs:
        assert "error: output_dir runs/ppo is not the same folder on all machines: machine 1" in output
        assert "Traceback" not in output
    assert not any((tmp_path / name / "runs" / "ppo").exists() for name in ("a", "b"))
    assert [path for name in ("a", "b") for path in (tmp_path / name / "runs").iterdir()] == []


# ---- The examples, with a stub in the place of `rlhf`, which prints its arguments


@pytest.fixture
def commands(tmp_path, monkeypatch):
    """Puts stubs of Slurm's commands on the path; the stub of `rlhf` prints the machines and its arguments."""
    stubs = {
        "scontrol": "echo node-a; echo node-b",
        "srun": 'shift; for rank in 0 1; do SLURM_NODEID=$rank "$@"; done',
        "launcher": 'echo "$NNODES $NODE_RANK $MASTER_ADDR ${MASTER_PORT:-} $*"',
    }
    for name, script in stubs.items():
        (tmp_path / name).write_text(f"#!/bin/bash\n{script}\n")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setenv("RLHF", str(tmp_path / "launcher"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def printed(command: list, **environment: str) -> list[str]:
    return subprocess.check_output(list(map(str, command)), env=os.environ | environment, text=True).splitlines()


def test_slurm_starts_the_stage_on_each_machine_and_resumes_after_a_requeue(commands):
    script = ["bash", ROOT / "examples" / "slurm" / "stage.sbatch", "ppo", "mine", "--kl_coef", "0.05"]
    slurm = {"SLURM_NNODES": "2", "SLURM_JOB_NODELIST": "node-[a-b]", "SLURM_JOB_ID": "70007"}
    stage = "ppo mine --kl_coef 0.05"
    expected = [f"2 {rank} node-a 30007 {stage} --accelerate multi_node" for rank in (0, 1)]
    assert printed(script, **slurm) == expected
    assert printed(script, **slurm, ACCELERATE="fsdp")[0].endswith("--accelerate fsdp")
    assert printed(script, **slurm, SLURM_RESTART_COUNT="1") == expected  # stopped before a checkpoint
    (commands / "runs" / "mine" / "ppo" / "checkpoint-8").mkdir(parents=True)
    assert printed(script, **slurm) == expected
    assert f"{stage} --resume_from_checkpoint true" in printed(script, **slurm, SLURM_RESTART_COUNT="1")[0]


def test_skypilot_starts_the_stage_on_each_machine(commands):
    task = yaml.safe_load((ROOT / "examples" / "skypilot.yaml").read_text())
    sky = {"SKYPILOT_NUM_NODES": "2", "SKYPILOT_NODE_RANK": "1", "SKYPILOT_NUM_GPUS_PER_NODE": "8"}
    sky |= task["envs"] | {
        "SKYPILOT_NODE_IPS": "10.0.0.1\n10.0.0.2",
        "SHARED": str(commands / "shared"),
        "ARGS": "--a b",
    }
    expected = "2 1 10.0.0.1  sft llama-3.2-1b --accelerate multi_node --a b"
    assert printed(["bash", "-c", task["run"]], **sky) == [expected]
    assert (commands / "runs").resolve() == (commands / "shared" / "runs").resolve()
    for variable in ("STAGE", "RECIPE", "ACCELERATE"):
        assert task["envs"][variable]
