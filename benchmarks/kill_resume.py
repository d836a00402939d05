"""Kills a PPO run with SIGKILL at random moments, resumes it each time, and compares its weights byte by byte.

    python benchmarks/kill_resume.py --kills 20

The run is recipes/ppo.py through its own command line, on toy models. It saves a checkpoint after every optimizer step,
so the kills hit rollouts, updates and checkpoints. The last output is JSON.
"""

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from rlhf.runs.checkpoints import PARTIAL
from rlhf.runs.resume import complete_checkpoints

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests"))
from toys import prompts, save_word_stages  # noqa: E402

OPTIONS = {
    "per_device_train_batch_size": 2, "mini_batch_size": 4, "batch_size": 16, "num_ppo_epochs": 2,
    "response_length": 8, "learning_rate": 1e-3, "warmup_rollouts": 2, "bf16": False, "use_cpu": True,
    "gradient_checkpointing": False, "report_to": "none", "save_strategy": "steps", "save_steps": 1,
    "save_total_limit": 3, "disable_tqdm": True, "num_sample_generations": 2, "ema_decay": 0.9, "ptx_coef": 2.0,
    "ptx_length": 12, "ptx_examples_per_episode": 1,
}  # fmt: skip
COMPARED = ("adapter_model.safetensors", "raw/adapter_model.safetensors", "value/adapter_model.safetensors")


def make_stages(folder: Path) -> dict[str, Path]:
    """Writes a base, two adapters, prompts and pretraining text; returns their paths by option of the recipe."""
    save_word_stages(folder)
    prompts(16).to_json(folder / "prompts" / "train.jsonl")
    prompts(50, seed=3).rename_column("prompt", "text").to_json(folder / "text.jsonl")
    names = {"dataset_name": "prompts", "sft_model_path": "sft", "reward_model_path": "reward"}
    return {option: folder / name for option, name in {**names, "pretrain_dataset_name": "text.jsonl"}.items()}


def start(output_dir: Path, options: dict) -> subprocess.Popen:
    """Starts the recipe in its own process; it resumes from the last checkpoint, if there is one."""
    if complete_checkpoints(output_dir):
        options = {**options, "resume_from_checkpoint": True}
    arguments = [str(text) for name, value in options.items() for text in (f"--{name}", value)]
    command = [sys.executable, "recipes/ppo.py", *arguments, "--output_dir", str(output_dir)]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}
    output = output_dir.with_suffix(".log").open("a")
    return subprocess.Popen(command, cwd=ROOT, env=environment, stdout=output, stderr=output)


def finish(process: subprocess.Popen, output_dir: Path) -> None:
    if process.wait() != 0:
        sys.exit(f"the run failed:\n{output_dir.with_suffix('.log').read_text()[-3000:]}")


def training_begins(process: subprocess.Popen, output_dir: Path, before: set) -> bool:
    """Waits until the run writes a checkpoint; returns False if it ends first."""
    while process.poll() is None:
        if {path.name for path in output_dir.glob("*checkpoint*")} != before:
            return True
        time.sleep(0.001)
    return False


def kill_at_random(output_dir: Path, options: dict, kills: int, longest_wait: float, seed: int) -> list[dict]:
    """Kills and restarts the run `kills` times, then lets it end; returns the state of the checkpoints at each kill."""
    rng, states = random.Random(seed), []
    while len(states) < kills:
        before = {path.name for path in output_dir.glob("*checkpoint*")}
        process = start(output_dir, options)
        if not training_begins(process, output_dir, before):
            finish(process, output_dir)
            sys.exit(f"the run ended after {len(states)} kills. Give it more steps with --steps.")
        time.sleep(rng.uniform(0, longest_wait))
        process.send_signal(signal.SIGKILL)
        process.wait()
        complete = complete_checkpoints(output_dir)
        states.append({"last": complete[-1].name if complete else None, "partial": (output_dir / PARTIAL).exists()})
    finish(start(output_dir, options), output_dir)
    return states


def main(kills: int, steps: int, seed: int, folder: Path) -> dict:
    options = {**OPTIONS, **make_stages(folder), "max_steps": steps}
    began = time.monotonic()
    finish(start(folder / "whole", options), folder / "whole")
    seconds = (time.monotonic() - began) / steps
    states = kill_at_random(folder / "killed", options, kills, longest_wait=min(0.5, 2 * seconds), seed=seed)
    files = {name: [(folder / run / name).read_bytes() for run in ("whole", "killed")] for name in COMPARED}
    identical = {name: whole == killed for name, (whole, killed) in files.items()}
    return {
        "kills": kills,
        "steps": steps,
        "kills_while_saving": sum(state["partial"] for state in states),
        "resumed_from": [state["last"] for state in states],
        "identical": identical,
        "all_identical": all(identical.values()),
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        result = main(args.kills, args.steps, args.seed, Path(temporary))
    print(json.dumps(result, indent=2))
    sys.exit(not result["all_identical"])
