"""Two processes give the same episodes, global moments, counts and weights as one."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from toys import lora, ppo_config, prompts, separate, shared_base, trainer

TEXT = prompts(13, seed=3).rename_column("prompt", "text")
LAYOUTS = {
    "shared": shared_base,
    "separate": separate,
    "peft": lambda: separate() | {"ref_model": None, "peft_config": lora()},
}


def train(folder: Path, processes: int) -> None:
    """Trains each layout for 8 steps in 2 rollouts of 16 episodes, with evaluation and checkpoints."""
    for layout, models in LAYOUTS.items():
        args = ppo_config(
            folder / layout, per_device_train_batch_size=4 // processes, total_episodes=32, num_ppo_epochs=2,
            whiten_rewards=True, gradient_checkpointing=layout == "shared", eval_strategy="steps", eval_steps=4,
            save_strategy="steps", save_steps=8, num_sample_generations=2, ptx_coef=2.0, ptx_length=9,
            ptx_examples_per_episode=1,
        )  # fmt: skip
        ppo = trainer(args, models(), train_dataset=prompts(11), eval_dataset=prompts(5), pretrain_dataset=TEXT)
        ppo.train()
        ppo.save_model()


# docs/trl-faults.md, faults 11, 15 and 17
@pytest.mark.slow
def test_fault_11_15_17_two_processes_are_one(tmp_path):
    train(tmp_path / "1", 1)
    here = Path(__file__).parent
    environment = os.environ | {"PYTHONPATH": f"{here}:{here.parent}", "OMP_NUM_THREADS": "1"}
    code = f"from pathlib import Path; from test_ppo_distributed import train; train(Path({str(tmp_path / '2')!r}), 2)"
    (tmp_path / "run.py").write_text(code)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", tmp_path / "run.py"]
    result = subprocess.run(list(map(str, command)), env=environment, capture_output=True, text=True, timeout=600)
    assert result.returncode == 0, result.stderr[-3000:]

    for layout in LAYOUTS:
        one, two = (load_file(tmp_path / n / layout / "checkpoint-8" / "ppo_state.safetensors") for n in "12")
        assert one.keys() == two.keys()
        for name in one:
            torch.testing.assert_close(one[name], two[name], atol=3e-5, rtol=1e-3)
        for n in "12":
            assert {path.name for path in (tmp_path / n / layout).iterdir()} >= {"raw", "value"}  # fault 15
        episodes = [_train_samples(tmp_path / n / layout / "samples.jsonl") for n in "12"]
        assert len(episodes[0]) == 2 * 4
        assert [e["response"] for e in episodes[0]] == [e["response"] for e in episodes[1]]


def _train_samples(path: Path) -> list[dict]:
    rows = map(json.loads, path.read_text().splitlines())
    return [row for row in rows if row["source"] == "train"]
