"""Runs all stages of the sandbox, from the base model to the report.

    rlhf demo    # two processes on the CPU: on a model this small quicker than one process with two threads
    rlhf demo --accelerate single_gpu

Does the same as `rlhf sft sandbox` to `rlhf evaluate sandbox` in one launch. The same processes run all stages, so they
load the libraries once instead of five times, which saves a minute. Reads recipes/sandbox/*.yaml and writes to
runs/sandbox.
"""

import runpy
import sys
import time
from pathlib import Path

from rlhf.errors import PlainParser
from rlhf.runs import console
from rlhf.runs.console import show
from rlhf.runs.processes import process_state

RECIPES = Path(__file__).parent
STAGES = {"sft": "sft.py", "reward": "reward.py", "choose": "choose.py", "ppo": "ppo.py", "evaluate": "evaluate.py"}


def main() -> None:
    PlainParser(__doc__).parse_args()
    state, seconds = process_state(), {}
    console.SHOW_NEXT = False
    for stage, recipe in STAGES.items():
        started, config = time.monotonic(), RECIPES / "sandbox" / f"{stage}.yaml"
        sys.argv = [str(RECIPES / recipe), "--config", str(config)]
        if stage in ("sft", "reward", "ppo"):
            sys.argv += ["--overwrite_output_dir", "true"]
        runpy.run_path(sys.argv[0], run_name="__main__")
        state.wait_for_everyone()  # the first process may still be writing what the next stage reads
        seconds[stage] = time.monotonic() - started
    if state.is_main_process:
        seconds["total"] = sum(seconds.values())
        show("seconds", ", ".join(f"{stage} {spent:.0f}" for stage, spent in seconds.items()))
        show("report", str(Path("runs/sandbox/report.html").resolve()))


if __name__ == "__main__":
    main()
