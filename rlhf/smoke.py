"""`--smoke`: a stage on a few rows, for a few steps, with short answers, in under a minute, to see that it holds.

The options below take the place of those in the YAML of the recipe; options on the command line take precedence. A run
writes into a folder `smoke` beside that of the stage (runs/mine/smoke/sft), so that no result is overwritten, and the
smoke run of the next stage starts from it.
"""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

HELP = """\
  --smoke
      Try the stage in under a minute: few rows and steps, short answers, into the folder smoke beside its own."""
FEW_ROWS = {
    "dataset_size": 64,
    "dataset_eval_size": 4,
    "on_bad_rows": "skip",
}  # rows above a limit of `AT_MOST` are bad
TRAINING = {
    "max_steps": 2, "logging_steps": 1, "report_to": "none", "push_to_hub": False, "overwrite_output_dir": True,
    "per_device_eval_batch_size": 4,
}  # fmt: skip
SMOKE: dict[str, dict[str, Any]] = {
    "sft": FEW_ROWS | TRAINING | {"num_train_epochs": 1},
    "reward": FEW_ROWS | TRAINING | {"calibration_size": 4, "completions_per_forward": 8},
    "choose": FEW_ROWS | {"choice_prompts": 2, "choice_batch_size": 2},
    "ppo": FEW_ROWS
    | {name: value for name, value in TRAINING.items() if name != "max_steps"}
    | {"local_rollout_forward_batch_size": 4, "warmup_rollouts": 0, "value_warmup_rollouts": 0}
    | {"num_sample_generations": 2, "ptx_examples_per_episode": 1, "pretrain_dataset_size": 100},
    "evaluate": {"dataset_eval_size": 2, "batch_size": 2, "best_of_n": 0},
    "benchmark": {"limit": 4, "continuations": 2},
    "pretrain": {
        **{name: value for name, value in TRAINING.items() if name not in ("push_to_hub", "overwrite_output_dir")},
        "n_documents": 2000, "tokenizer_documents": 2000,
    },
}  # fmt: skip
# Limits in tokens, and the value without one in the YAML.
AT_MOST: dict[str, dict[str, int]] = {
    "sft": {"max_length": 512},
    "reward": {"max_length": 512},
    "choose": {"choice_max_new_tokens": 16},
    "ppo": {"response_length": 16, "ptx_length": 64},
    "evaluate": {"max_new_tokens": 16},
}
PROMPTS_AT_MOST = 256  # tokens; without a limit in the YAML it is the model's context
READ = ("sft_model_path", "reward_model_path", "ppo_model_path")  # adapters of other stages
WRITTEN = ("output_dir", "sft_path", "recipe_dir")


def smoke_line(stage: str, args: list[str]) -> list[str]:
    """Returns a command line with the options of a smoke run in place of --smoke.

    Args:
        stage: key of `SMOKE`; the line of any other command stays as it is.
        args: with `--config file` as two arguments.

    Raises:
        OSError, yaml.YAMLError: the config file cannot be read.
    """
    if stage not in SMOKE:
        return args
    args = [arg for arg in args if arg != "--smoke"]
    config, rest = [], args
    if "--config" in args:
        place = args.index("--config")
        config, rest = args[place : place + 2], args[:place] + args[place + 2 :]
    read = yaml.safe_load(Path(config[1]).read_text(encoding="utf-8")) if config else {}
    settings = read if isinstance(read, dict) else {}
    options = smoke_options(stage, settings)
    if stage == "benchmark" and rest[:1] == ["--run"]:
        options["output_dir"] = str(Path(rest[1]) / "smoke" / "benchmark")
    given = [
        text
        for name, value in options.items()
        for text in (f"--{name}", *(map(str, value) if isinstance(value, list) else [str(value)]))
    ]
    return [*config, *given, *rest]


def smoke_options(stage: str, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Returns what a smoke run changes in the settings of a YAML."""
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    step = -(-2 // processes) * processes  # rows, a multiple of the processes
    options = dict(SMOKE[stage])
    for name, limit in AT_MOST.get(stage, {}).items():
        options[name] = _at_most(settings.get(name), limit)
    if stage in ("sft", "reward"):
        options["batch_size"] = step if stage == "sft" else processes  # a ranking has several answers
    if stage == "ppo":
        options |= {"batch_size": 2 * step, "mini_batch_size": step, "total_episodes": 4 * step}
        if settings.get("max_prompt_length"):
            options["max_prompt_length"] = _at_most(settings["max_prompt_length"], PROMPTS_AT_MOST)
    # Without greedy answers: half of a minute.
    if stage == "evaluate" and settings.get("sft_model_path") and not settings.get("systems"):
        options["systems"] = ["base", *(name for name in ("sft", "ppo") if settings.get(f"{name}_model_path"))]
    for name in READ:
        if settings.get(name) and _reads_smoke(Path(settings[name]), settings):
            options[name] = smoke_folder(str(settings[name]))
    for name in WRITTEN:
        if settings.get(name):
            options[name] = smoke_folder(str(settings[name]))
    return options


def _at_most(value: Any, limit: int) -> Any:
    """Returns a limit that is not above another; one that is no number stays, for the parser to refuse it."""
    return min(value, limit) if isinstance(value, int | float) and value else value or limit


def _reads_smoke(parent: Path, settings: Mapping[str, Any]) -> bool:
    """True if a smoke run reads another stage's smoke run: there is one, or neither this one, of the same recipe."""
    if Path(smoke_folder(str(parent))).is_dir():
        return True
    run = Path(str(settings.get("output_dir") or settings.get("sft_path") or "")).parent
    return run == parent.parent and run != Path() and not parent.exists()


def smoke_folder(folder: str) -> str:
    """Returns runs/mine/smoke/sft for runs/mine/sft."""
    return str(Path(folder).parent / "smoke" / Path(folder).name)
