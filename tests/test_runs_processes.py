"""Evaluation by two processes of a launch gives the results of one process."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from small_systems import answered, toy_run, write_run

from rlhf.runs.processes import map_across_processes, process_state

CONFIG = "accelerate_configs/multi_cpu.yaml"


def evaluated(folder: str, output: str) -> list[dict]:
    """Returns the rows of an evaluation of a toy run, by all processes."""
    prompts = [f"Name {n} things" for n in ("two", "three", "four", "five", "more")]
    return answered(toy_run(Path(folder)), ["base", "sft", "ppo", "sft,best_of=2"], prompts, Path(output), batch_size=2)


def main(folder: str, output: str) -> None:
    for n in range(4):  # also fewer rows than processes
        done = []
        assert map_across_processes(n, lambda rows, done=done: [done.append(i) or 10 * i for i in rows]) == [
            10 * i for i in range(n)
        ]
        assert done == list(range(process_state().process_index, n, 2))
    rows = evaluated(folder, f"{output}-answers")
    assert rows == evaluated(folder, f"{output}-answers")  # kept, and read again by all processes
    Path(f"{output}-{process_state().process_index}.json").write_text(json.dumps(rows))


@pytest.mark.slow
def test_two_processes_answer_as_one(tmp_path):
    folder = str(write_run(tmp_path / "run"))
    command = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", CONFIG]
    command += ["--num_cpu_threads_per_process", "1", "tests/test_runs_processes.py", folder, str(tmp_path / "rows")]
    root = Path(__file__).parent.parent
    environment = os.environ | {"PYTHONPATH": str(root), "ACCELERATE_USE_CPU": "true"}
    result = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr[-3000:]

    first, second = (json.loads((tmp_path / f"rows-{process}.json").read_text()) for process in (0, 1))
    assert first == second  # each process has all rows
    alone = evaluated(folder, str(tmp_path / "alone"))
    for row, other in zip(alone, first, strict=True):
        assert row | {"kl": None} == other | {"kl": None}
        assert row["kl"] == pytest.approx(other["kl"], abs=1e-5)


if __name__ == "__main__":
    main(*sys.argv[1:])
