"""Evaluation by two processes of a launch gives the results of one process."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from datasets import Dataset
from toys import save_toy
from trl import ModelConfig

from rlhf.evaluation.answers import judged_answers
from rlhf.models.loading import load_base, load_tokenizer, lora_config
from rlhf.models.shared_base import SharedBase
from rlhf.runs.processes import map_across_processes, process_state

CONFIG = "accelerate_configs/multi_cpu.yaml"


def judge(prompt: str, response: str, ended: bool) -> dict:
    return {"overall": len(response) / 100, "process": process_state().process_index}


def evaluated(folder: str) -> list[dict]:
    """Returns the rows of an evaluation of toy models with random adapters, by all processes."""
    tokenizer = load_tokenizer(folder)
    shared = SharedBase(load_base(ModelConfig(model_name_or_path=folder), tokenizer))
    torch.manual_seed(0)
    for name in ("sft", "ppo", "reward"):
        shared.add_adapter(name, lora_config=lora_config(ModelConfig(lora_r=4)), head=name == "reward")
    for key, parameter in shared.named_parameters():
        if "lora_B." in key:
            torch.nn.init.normal_(parameter, std=0.1)
    prompts = Dataset.from_dict({"prompt": [f"Name {n} things" for n in ("two", "three", "four", "five", "more")]})
    options = {"models": ["base", "sft", "ppo"], "max_new_tokens": 6, "batch_size": 2, "best_of": 2}
    return judged_answers(shared.eval(), tokenizer, prompts, judge=judge, **options)


def main(folder: str, output: str) -> None:
    for n in range(4):  # also fewer rows than processes
        done = []
        assert map_across_processes(n, lambda rows, done=done: [done.append(i) or 10 * i for i in rows]) == [
            10 * i for i in range(n)
        ]
        assert done == list(range(process_state().process_index, n, 2))
    rows = evaluated(folder)
    Path(f"{output}-{process_state().process_index}.json").write_text(json.dumps(rows))


@pytest.mark.slow
def test_two_processes_answer_as_one(tmp_path):
    folder = str(save_toy(tmp_path / "llama"))
    command = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", CONFIG]
    command += ["--num_cpu_threads_per_process", "1", "tests/test_runs_processes.py", folder, str(tmp_path / "rows")]
    root = Path(__file__).parent.parent
    environment = os.environ | {"PYTHONPATH": str(root), "ACCELERATE_USE_CPU": "true"}
    result = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr[-3000:]

    first, second = (json.loads((tmp_path / f"rows-{process}.json").read_text()) for process in (0, 1))
    assert first == second  # each process has all rows
    judged_by = [row["gold"].pop("process") for row in first]
    assert set(judged_by) == {0, 1}
    alone = evaluated(folder)
    for row, other in zip(alone, first, strict=True):
        row["gold"].pop("process")
        assert row | {"reward": None, "kl": None} == other | {"reward": None, "kl": None}
        assert row["reward"] == pytest.approx(other["reward"], abs=1e-5)
        assert row.get("kl") == pytest.approx(other.get("kl"), abs=1e-5)


if __name__ == "__main__":
    main(*sys.argv[1:])
