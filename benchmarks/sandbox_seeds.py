"""All stages of the sandbox with several seeds, to show how far the demo's numbers depend on chance.

    python benchmarks/sandbox_seeds.py --seeds 1 2 3

A seed is that of the data (demonstrations, rankings, prompts), of training and of sampling. The world and its base
model stay the same. The settings were chosen on seed 0, so do not report seed 0. Writes to runs/sandbox-seeds/<seed>,
and skips stages that have finished there. `taskset -c 0` before the command limits it to one core. The last line is
JSON.
"""

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path

from rlhf.evaluation.summary import over_runs

ROOT = Path(__file__).parent.parent
STAGES = ("sft", "reward", "choose", "ppo", "evaluate")


def options(stage: str, run: Path, seed: int) -> dict[str, object]:
    """Options of a stage besides its recipe: the seed, and the folders of this run."""
    folders = {
        "sft": {"output_dir": run / "sft"},
        "reward": {"output_dir": run / "reward", "sft_model_path": run / "sft"},
        "choose": {"sft_path": run / "sft", "reward_model_path": run / "reward"},
        "ppo": {"output_dir": run / "ppo", "sft_model_path": run / "sft", "reward_model_path": run / "reward"},
        "evaluate": {
            "output_dir": run / "evaluate",
            **{f"{name}_model_path": run / name for name in ("sft", "reward", "ppo")},
        },
    }[stage]
    return {"dataset_seed": seed} | ({} if stage == "choose" else {"seed": seed}) | folders


def run_stage(stage: str, run: Path, seed: int) -> None:
    """Runs a stage, unless it has finished already."""
    done = run / f"{stage}.done"
    if done.exists():
        return
    run.mkdir(parents=True, exist_ok=True)
    own_options = [text for name, value in options(stage, run, seed).items() for text in (f"--{name}", str(value))]
    command = [sys.executable, f"recipes/{stage}.py", "--config", f"recipes/sandbox/{stage}.yaml", *own_options]
    print(f"seed {seed}: {stage}", flush=True)
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": str(len(os.sched_getaffinity(0)))}
    with (run / f"{stage}.log").open("w") as log:
        if subprocess.run(command, cwd=ROOT, env=environment, stdout=log, stderr=log).returncode:
            sys.exit(f"{stage} of seed {seed} failed. Read {log.name}.")
    done.touch()


def row(seed: int, run: Path) -> dict:
    """Numbers of one seed, as in the README's table."""
    summary = json.loads((run / "summary.json").read_text())
    gold = summary["judges"]["gold"]
    return {
        "seed": seed,
        "gold": {system: estimate["mean"] for system, estimate in gold["mean"].items()},
        "win_rate": gold["win_rate"],
        "categories_with_higher_gold": gold["categories_with_higher_mean"]["ppo"],
        "kl": summary["systems"]["ppo"]["kl"],
        "reward_model": summary["reward_model"],
        "seconds": summary["seconds"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--folder", type=Path, default=Path("runs/sandbox-seeds"))
    args = parser.parse_args()
    rows = []
    for seed in args.seeds:
        run = args.folder.absolute() / str(seed)
        for stage in STAGES:
            run_stage(stage, run, seed)
        rows.append(row(seed, run))
        print(json.dumps(rows[-1], indent=2), flush=True)
    summaries = [json.loads((args.folder / str(seed) / "summary.json").read_text()) for seed in args.seeds]
    print(json.dumps({"runs": rows, "over_runs": over_runs(summaries)}))


if __name__ == "__main__":
    main()
