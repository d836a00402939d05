"""Runs all stages of a recipe on a model of two layers and a few rows, so that nothing fails hours later.

    rlhf check smollm2-135m
    rlhf check recipes/mine --accelerate fsdp

First reads the YAML of every stage as it is: options, packages, batches over all processes, lengths, the output
folder. Then runs the stages one after another, each on the result of the one before, with the recipe's own options but
few rows, one step and short answers. The model is a short one of the same architecture, with the base's tokenizer; no
weights are loaded. Local data and the sandbox are read; made-up rows take the place of data on the Hub. Writes nothing
but temporary files, and prints a line for each stage.
"""

import contextlib
import io
import json
import runpy
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import HfApi

import rlhf.cli
from rlhf.data.label_stores import is_label_store
from rlhf.errors import InputError, require_at_least
from rlhf.models.loading import load_config
from rlhf.models.short_base import save_short_base
from rlhf.noise import without_log
from rlhf.ppo.rollout import longest_prompt
from rlhf.runs.batches import divide_batch
from rlhf.runs.checks import check_model_options, check_training
from rlhf.runs.installation import find_recipe
from rlhf.runs.launch import read_launch
from rlhf.runs.parsed_options import parsed_options

RECIPES = Path(__file__).parent
STAGES = ("sft", "reward", "choose", "ppo", "evaluate")
QUIET = {"report_to": "none", "push_to_hub": False, "resume_from_checkpoint": None, "disable_tqdm": True}
ONE_STEP = {
    "num_train_epochs": 1,
    "max_steps": -1,
    "batch_size": 2,
    "per_device_train_batch_size": 1,
    "per_device_eval_batch_size": 1,
    "gradient_accumulation_steps": None,
}
FEW_ROWS = {"dataset_size": 4, "dataset_eval_size": 2}


@dataclass
class CheckArguments:
    recipe: str = field(metadata={"help": "Name of a recipe, or folder with the YAMLs of the stages."})
    accelerate: str | None = field(
        default=None,
        metadata={"help": "Launch whose number of processes the batches must fit, as for a stage. None: by the GPUs."},
    )
    processes: int | None = field(default=None, metadata={"help": "Number of processes, instead of accelerate."})

    def __post_init__(self):
        require_at_least(self, 1, "processes")


def main() -> None:
    (args,) = rlhf.cli.parse(CheckArguments, positional="recipe")
    recipe, processes = find_recipe(args.recipe), args.processes or read_launch(args.accelerate)[1]["num_processes"]
    yamls = {stage: recipe / f"{stage}.yaml" for stage in STAGES}
    stages = {stage: path for stage, path in yamls.items() if path.exists()}
    failed = False
    with tempfile.TemporaryDirectory(prefix="rlhf-check-") as folder:
        for stage, path in stages.items():
            started = time.monotonic()
            missing = [name for name in needs(stage, path) if not (Path(folder) / name / "result.json").exists()]
            if missing:
                print(f"{stage:<10} not checked: {' and '.join(missing)} failed")
                continue
            error = failure(lambda stage=stage, path=path: check_stage(stage, path, Path(folder), processes))
            failed |= error is not None
            print(f"{stage:<10} {f'ok, {time.monotonic() - started:.0f} s' if error is None else f'error: {error}'}")
    if failed:
        sys.exit(2)


def check_stage(stage: str, path: Path, folder: Path, processes: int) -> None:
    """Checks the YAML as it is, then runs the stage in `folder`.

    Raises:
        InputError: what the stage would end with. Other exceptions are bugs of this library.
    """
    check_options(stage, parsed_options(RECIPES / f"{stage}.py", ["--config", str(path)]), processes)
    settings = yaml.safe_load(path.read_text(encoding="utf-8"))
    (folder / f"{stage}.yaml").write_text(yaml.safe_dump(settings | shortened(stage, settings, folder)))
    run_recipe(stage, folder / f"{stage}.yaml")


def check_options(stage: str, configs: tuple, processes: int) -> None:
    """Checks what the short run changes: batches, lengths, reporters, the output folder, the login."""
    values = {name: value for config in configs for name, value in vars(config).items()}
    args = next((config for config in configs if hasattr(config, "per_device_train_batch_size")), None)
    for config in configs:
        if hasattr(config, "attn_implementation"):
            check_model_options(config)
    if args is None:
        return
    check_training(args)
    size = "mini_batch_size" if stage == "ppo" else "batch_size"
    if values[size] is not None:
        divide_batch(values[size], processes, args.per_device_train_batch_size, size)
    if stage == "ppo" and values["model_name_or_path"] is not None:
        base = load_config(values["model_name_or_path"], values["model_revision"])
        longest_prompt(base, values["max_prompt_length"], values["response_length"])
    if args.push_to_hub:
        try:
            HfApi(token=args.hub_token).whoami()
        except Exception as error:  # no token, no network
            raise InputError("push_to_hub needs a login, or the Hub cannot be reached. Run `hf auth login`.") from error


def needs(stage: str, path: Path) -> list[str]:
    """Returns the stages whose result the YAML names."""
    settings = yaml.safe_load(path.read_text(encoding="utf-8"))
    paths = {"sft_model_path": "sft", "sft_path": "sft", "reward_model_path": "reward", "ppo_model_path": "ppo"}
    return [name for option, name in paths.items() if settings.get(option) and name != stage]


def shortened(stage: str, settings: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Returns what the short run changes in a stage's YAML."""
    changes: dict[str, Any] = dict(FEW_ROWS)
    if settings.get("model_name_or_path"):
        changes["model_name_or_path"] = short_base(settings, folder)
    for option in ("sft_model_path", "sft_path", "reward_model_path", "ppo_model_path"):
        if settings.get(option):
            changes[option] = str(folder / option.split("_")[0])
    if stage in ("sft", "reward", "ppo"):
        changes |= QUIET | ONE_STEP
    if stage != "choose":
        changes["output_dir"] = str(folder / stage)
    kind = {"sft": "demonstrations", "choose": "demonstrations", "reward": "comparisons"}.get(stage, "prompts")
    changes |= data(settings, "dataset", kind, folder)
    if settings.get("pretrain_dataset_name"):
        changes |= data(settings, "pretrain_dataset", "documents", folder) | {"pretrain_dataset_size": 20}
    if stage == "reward":
        changes |= {"calibration_size": 2, "cross_validate": None, "completions_per_forward": 4}
        if settings.get("calibration_dataset"):
            changes |= data(settings, "calibration_dataset", "demonstrations", folder)
    if stage == "ppo":
        del changes["gradient_accumulation_steps"]  # follows from mini_batch_size
        changes |= {"mini_batch_size": 2, "total_episodes": 2, "local_rollout_forward_batch_size": 2}
        changes |= {"response_length": 4, "max_prompt_length": 64, "ptx_length": 16, "ptx_examples_per_episode": 1}
        changes |= {"reward_ensemble_paths": None, "on_bad_rows": "skip"}
        changes["value_warmup_rollouts"] = 0  # of the one rollout
    if stage == "choose":
        changes |= {"choice_prompts": 2, "choice_max_new_tokens": 4, "choice_batch_size": 2}
    if stage == "evaluate":
        changes |= {"max_new_tokens": 4, "batch_size": 2, "best_of_n": 0}
    return changes


def short_base(settings: dict[str, Any], folder: Path) -> str:
    """Returns the folder of the short model, which is made once for each base."""
    name, revision = settings["model_name_or_path"], settings.get("model_revision", "main")
    base = folder / "base" / f"{name}-{revision}".replace("/", "--")
    if not (base / "config.json").exists():
        save_short_base(name, revision, base)
    return str(base)


def data(settings: dict[str, Any], prefix: str, kind: str, folder: Path) -> dict[str, Any]:
    """Returns the options of the source: its own if it is on this machine, else those of a file of made-up rows."""
    option = f"{prefix}_name" if prefix != "calibration_dataset" else prefix
    names = settings[option] if isinstance(settings[option], list) else [settings[option]]
    if all(name == "sandbox" or Path(name).exists() or is_label_store(name) for name in names):
        return {}
    row = {
        "demonstrations": {"completion": "It is blue."},
        "comparisons": {"completions": ["It is blue.", "No."], "ranks": [0, 1]},
    }.get(kind, {})
    path = folder / f"{kind}.jsonl"
    with open(path, "w", encoding="utf-8") as file:
        for number in range(60):
            prompt = {"prompt": f"Color {number}?", **row}
            text = {"text": f"Document {number}. " * 20} if kind == "documents" else prompt
            file.write(json.dumps(text) + "\n")
    changes: dict[str, Any] = {option: str(path), f"{prefix}_config": None}
    if prefix == "dataset":
        changes |= {"dataset_format": None, "dataset_train_split": "train", "dataset_test_split": None, "columns": None}
    return {name: value for name, value in changes.items() if name == option or name in settings}


# ---- Recipes as functions


def run_recipe(stage: str, path: Path) -> None:
    """Runs recipes/<stage>.py with a YAML."""
    argv, sys.argv = sys.argv, [f"{stage}.py", "--config", str(path)]
    try:
        runpy.run_path(str(RECIPES / f"{stage}.py"), run_name=stage)["main"]()
    finally:
        sys.argv = argv


def failure(work: Callable[[], None]) -> str | None:
    """Returns the error of `work` in one line, or None; what `work` prints is dropped."""
    output = io.StringIO()
    try:
        with without_log(), contextlib.redirect_stdout(output), contextlib.redirect_stderr(output):
            work()
    except InputError as error:
        return " ".join(str(error).split())
    except Exception as error:
        return f"{type(error).__name__}: {' '.join(str(error).split())}"
    return None


if __name__ == "__main__":
    rlhf.cli.run(main)
