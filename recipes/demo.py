"""The whole recipe on the sandbox, from the base model to the report.

    make demo

It does what `make sft reward choose ppo evaluate` does, in one launch: the same processes run one stage's recipe after
the other, so the libraries are loaded once and not five times, which would take a minute. A batch is that of the
stage's YAML, shared out among the processes.
"""

import argparse
import runpy
import sys
import time
from pathlib import Path

import yaml

import rlhf.startup  # noqa: F401
from rlhf.runs.processes import process_state

RECIPES = Path(__file__).parent
STAGES = {"sft": "sft.py", "reward": "reward.py", "choose": "choose.py", "ppo": "ppo.py", "evaluate": "evaluate.py"}
BATCH = "per_device_train_batch_size"


def main() -> None:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    state, begun, seconds = process_state(), time.monotonic(), {}
    for stage, recipe in STAGES.items():
        started, config = time.monotonic(), RECIPES / "sandbox" / f"{stage}.yaml"
        if state.is_main_process:
            print(f"\n=== make {stage} ===", flush=True)
        sys.argv = [str(RECIPES / recipe), "--config", str(config)]
        settings = yaml.safe_load(config.read_text(encoding="utf-8"))
        if BATCH in settings:
            sys.argv += [f"--{BATCH}", str(settings[BATCH] // state.num_processes)]
        runpy.run_path(sys.argv[0], run_name="__main__")
        state.wait_for_everyone()  # the next stage reads what the first process may still be writing
        seconds[stage] = time.monotonic() - started
    if state.is_main_process:
        rows = seconds | {"total": time.monotonic() - begun}
        print("\n" + "\n".join(f"{stage:<10} {spent:5.0f} s" for stage, spent in rows.items()))


if __name__ == "__main__":
    main()
