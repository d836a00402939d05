"""Names of a stage's run in TensorBoard, Trackio and Weights & Biases, so that the stages of a recipe are one group.

`report_to` chooses among them, and transformers' callbacks write. Metrics have the names of metrics.jsonl in all three,
after `train/` or `eval/`.
"""

import os
from importlib.util import find_spec
from pathlib import Path

from transformers import Trainer, TrainingArguments
from transformers.integrations import TensorBoardCallback

from rlhf.errors import InputError

PACKAGES = ("tensorboard", "trackio", "wandb")  # of the extra `track`; the options have the same names
OWN: dict[str, str] = {}  # variables of the environment that `name_runs` has set, not the user


def check_tracker(name: str) -> None:
    """Raises InputError if `report_to` names a tracker of the extra `track` that is not installed."""
    if name in PACKAGES and find_spec(name) is None:
        raise InputError(
            f"report_to {name} needs the package {name}. Install it: pip install 'instruct-rlhf[track]'; or leave "
            "report_to out."
        )


def name_runs(trainer: Trainer, stage: str) -> None:
    """Names the run and its group, where the user has not: runs/mine/sft is the run mine/sft of the group mine.

    The group is a project in Trackio and a group in Weights & Biases (project `rlhf`). TensorBoard reads the folder
    tensorboard/ of the stage, so `tensorboard --logdir runs/mine` shows the stages side by side.
    """
    args, folder = trainer.args, Path(str(trainer.args.output_dir)).resolve()
    group = folder.parent.name or folder.name
    if args.run_name in (None, args.output_dir):
        args.run_name = f"{group}/{stage}"
    if args.project == TrainingArguments.project:
        args.project = group
    if "wandb" in (args.report_to or ()):
        for name, value in {"WANDB_PROJECT": "rlhf", "WANDB_RUN_GROUP": group}.items():
            if os.environ.get(name) in (None, OWN.get(name)):
                os.environ[name] = OWN[name] = value
    for callback in trainer.callback_handler.callbacks:
        if isinstance(callback, TensorBoardCallback) and callback.logging_dir is None:
            callback.logging_dir = str(folder / "tensorboard")
