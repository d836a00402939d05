"""The stages of a toy through their own recipes, in this process: data, and a run of each stage."""

import json
import runpy
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
COMMON = {
    "bf16": False, "use_cpu": True, "gradient_checkpointing": False, "report_to": "none", "disable_tqdm": True,
    "logging_steps": 1, "learning_rate": 1e-2,
}  # fmt: skip


def write_rows(path: Path, rows: list[dict]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def messages(text: str) -> list[dict]:
    return [{"role": "user", "content": text}]


def write_data(home: Path, n: int = 24, style=messages) -> None:
    """Writes demonstrations/, comparisons/ and prompts/ with n conversations, and as many others for validation."""
    for split, first in (("train", 0), ("validation", 1000)):
        questions = [f"Question {i}?" for i in range(first, first + n)]
        prompts = [{"prompt": style(question)} for question in questions]
        answers = [{"completion": f"Answer {i} it is."} for i in range(n)]
        pairs = [{"completions": [f"Answer {i} it is.", "no"], "ranks": [0, 1]} for i in range(n)]
        write_rows(home / "prompts" / f"{split}.jsonl", prompts)
        write_rows(home / "demonstrations" / f"{split}.jsonl", [p | a for p, a in zip(prompts, answers, strict=True)])
        write_rows(home / "comparisons" / f"{split}.jsonl", [p | c for p, c in zip(prompts, pairs, strict=True)])


def options_of(stage: str, home: Path) -> dict:
    """Returns the options of a short run of one stage; `home` holds the data, the base and the runs."""
    own = {
        "sft": {
            "model_name_or_path": home / "base", "dataset_name": home / "demonstrations", "num_train_epochs": 2,
            "per_device_train_batch_size": 8, "gradient_accumulation_steps": 1, "max_length": 64, "lora_r": 4,
        },
        "reward": {
            "model_name_or_path": home / "base", "dataset_name": home / "comparisons", "lora_r": 4,
            "per_device_train_batch_size": 8, "gradient_accumulation_steps": 1, "max_length": 64,
            "sft_model_path": home / "sft", "calibration_dataset": home / "demonstrations",
        },
        "ppo": {
            "dataset_name": home / "prompts", "sft_model_path": home / "sft", "reward_model_path": home / "reward",
            "per_device_train_batch_size": 4, "mini_batch_size": 4, "batch_size": 8, "total_episodes": 16,
            "response_length": 4, "save_strategy": "steps", "save_steps": 1, "num_sample_generations": 0,
        },
    }[stage]  # fmt: skip
    return COMMON | own | {"output_dir": home / stage}


def run_recipe(recipe: str, options: dict) -> None:
    """Runs recipes/<recipe>.py with the options on its command line; an option that is None is left out."""
    given = {name: value for name, value in options.items() if value is not None}
    arguments = [text for name, value in given.items() for text in (f"--{name}", str(value))]
    before = sys.argv
    sys.argv = [f"recipes/{recipe}.py", *arguments]
    try:
        runpy.run_path(str(ROOT / "recipes" / f"{recipe}.py"), run_name="__main__")
    finally:
        sys.argv = before


def run_stage(stage: str, home: Path, **changes) -> Path:
    """Runs one stage on the toy; returns its folder."""
    options = options_of(stage, home) | changes
    run_recipe(stage, options)
    return Path(options["output_dir"])


def refusal(capsys, stage: str, home: Path, **changes) -> str:
    """Returns the one line with which a stage ends that refuses to start."""
    try:
        run_stage(stage, home, **changes)
    except SystemExit as end:
        assert end.code == 2
        lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
        assert len(lines) == 1
        return lines[0]
    raise AssertionError(f"{stage} was not refused")
