"""Ctrl-C on `make <stage>`: the launcher waits for the stage, whose sentence is the last."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

LAUNCHER = Path(__file__).parent.parent / "accelerate_configs" / "launch.py"
STAGE = """
import pathlib, signal, sys, time
signal.signal(signal.SIGTERM, signal.default_int_handler)
try:
    pathlib.Path(sys.argv[1]).touch()
    time.sleep(300)
except KeyboardInterrupt:
    time.sleep(2)  # a stage needs its time to stop
    print("Go on from step 2.", file=sys.stderr)
    sys.exit(130)
"""


@pytest.mark.slow
@pytest.mark.parametrize(("number", "kill"), [(signal.SIGINT, os.killpg), (signal.SIGTERM, os.kill)])
def test_seam_f21_the_launcher_prints_no_traceback_when_a_stage_is_stopped(tmp_path, number, kill):
    """A terminal signals the group; `kill` and schedulers the launcher alone, whose stage must not go on without it."""
    (tmp_path / "stage.py").write_text(STAGE)
    command = [sys.executable, LAUNCHER, "--quiet", "--config_file", LAUNCHER.with_name("cpu.yaml")]
    command += ["--num_cpu_threads_per_process", "1", tmp_path / "stage.py", tmp_path / "started"]
    process = subprocess.Popen(
        command,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,  # a group of its own, as a terminal signals it
    )
    deadline = time.monotonic() + 120
    while not (tmp_path / "started").exists() and time.monotonic() < deadline:
        time.sleep(0.1)
    kill(process.pid, number)
    _, errors = process.communicate(timeout=60)
    assert process.returncode != 0
    assert errors.strip() == "Go on from step 2."
