"""Kills a PPO run with SIGKILL at random moments, resumes it each time, and compares what it leaves byte by byte.

    python benchmarks/kill_resume.py --kills 20

The run is recipes/ppo.py through its own command line, on toy models, with a checkpoint after every optimizer step, so
that it is killed in the middle of rollouts, updates and checkpoints. Prints JSON last.
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

import torch
from transformers import AutoModelForCausalLM

from rlhf.models.shared_base import SharedBase
from rlhf.runs.checkpoints import PARTIAL, complete_checkpoints

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests"))
from toys import causal, lora, prompts, word_tokenizer  # noqa: E402

OPTIONS = {
    "per_device_train_batch_size": 2, "mini_batch_size": 4, "batch_size": 16, "num_ppo_epochs": 2,
    "response_length": 8, "learning_rate": 1e-3, "warmup_rollouts": 2, "bf16": False, "use_cpu": True,
    "gradient_checkpointing": False, "report_to": "none", "save_strategy": "steps", "save_steps": 1,
    "save_total_limit": 3, "disable_tqdm": True, "num_sample_generations": 2, "ema_decay": 0.9, "ptx_coef": 2.0,
    "ptx_length": 12, "ptx_examples_per_episode": 1,
}  # fmt: skip
COMPARED = ("adapter_model.safetensors", "raw/adapter_model.safetensors", "value/adapter_model.safetensors")


def make_stages(folder: Path) -> dict[str, Path]:
    """A base, an SFT and a reward adapter, prompts and pretraining text, as options of the recipe."""
    causal().save_pretrained(folder / "base")
    word_tokenizer().save_pretrained(folder / "base")
    torch.manual_seed(0)
    base = SharedBase(AutoModelForCausalLM.from_pretrained(folder / "base"))
    base.add_adapter("sft", lora_config=lora(init_lora_weights=False))
    base.add_adapter("reward", lora_config=lora(init_lora_weights=False), head=True)
    base.save_adapter("sft", folder / "sft")
    base.save_adapter("reward", folder / "reward")
    prompts(16).to_json(folder / "prompts" / "train.jsonl")
    prompts(50, seed=3).rename_column("prompt", "text").to_json(folder / "text.jsonl")
    names = {"dataset_name": "prompts", "sft_model_path": "sft", "reward_model_path": "reward"}
    return {option: folder / name for option, name in {**names, "pretrain_dataset_name": "text.jsonl"}.items()}


def start(output_dir: Path, options: dict) -> subprocess.Popen:
    """The recipe as a process of its own; it goes on from the last checkpoint if there is one."""
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
    """Waits until the run has done something new in its folder; False if it has ended."""
    while process.poll() is None:
        if {path.name for path in output_dir.glob("*checkpoint*")} != before:
            return True
        time.sleep(0.001)
    return False


def kill_at_random(output_dir: Path, options: dict, kills: int, longest_wait: float, seed: int) -> list[dict]:
    """Starts the run, kills it, starts it again, ... and lets it end; what each kill met."""
    rng, met = random.Random(seed), []
    while len(met) < kills:
        before = {path.name for path in output_dir.glob("*checkpoint*")}
        process = start(output_dir, options)
        if not training_begins(process, output_dir, before):
            finish(process, output_dir)
            sys.exit(f"the run ended after {len(met)} kills; give it more steps with --steps.")
        time.sleep(rng.uniform(0, longest_wait))
        process.send_signal(signal.SIGKILL)
        process.wait()
        whole = complete_checkpoints(output_dir)
        met.append({"last": whole[-1].name if whole else None, "partial": (output_dir / PARTIAL).exists()})
    finish(start(output_dir, options), output_dir)
    return met


def main(kills: int, steps: int, seed: int, folder: Path) -> dict:
    options = {**OPTIONS, **make_stages(folder), "max_steps": steps}
    began = time.monotonic()
    finish(start(folder / "whole", options), folder / "whole")
    seconds = (time.monotonic() - began) / steps
    met = kill_at_random(folder / "killed", options, kills, longest_wait=min(0.5, 2 * seconds), seed=seed)
    files = {name: [(folder / run / name).read_bytes() for run in ("whole", "killed")] for name in COMPARED}
    same = {name: whole == killed for name, (whole, killed) in files.items()}
    return {
        "kills": kills,
        "steps": steps,
        "kills_while_saving": sum(kill["partial"] for kill in met),
        "resumed_from": [kill["last"] for kill in met],
        "identical": same,
        "all_identical": all(same.values()),
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
