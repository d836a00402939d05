"""A run's folder holds the files of one run: never an adapter of one beside numbers of another."""

import logging
import re
import shutil
from dataclasses import dataclass, field
from os.path import expanduser, realpath
from pathlib import Path
from typing import Any

import yaml
from transformers import TrainingArguments

from rlhf.errors import InputError
from rlhf.runs.artifacts import is_first_process, resolved_config, start_run
from rlhf.runs.checks import check_writable
from rlhf.runs.contract import Contract
from rlhf.runs.machines import require_shared
from rlhf.runs.resume import check_resume, complete_checkpoints, find_checkpoint
from rlhf.runs.settings import differing

logger = logging.getLogger(__name__)

# All that a stage writes. Files of the user, and the folders of other stages, stay. The configuration goes last: while
# the first process deletes, the others may still compare it.
FILES = (
    "result.json", "adapter_model.safetensors", "adapter_config.json", "model.safetensors", "calibration.json",
    "contract.json", "trained_on.safetensors", "environment.json", "metrics.jsonl", "samples.jsonl", "README.md",
    "report.html", "report.md", "reliability.svg", "training_args.bin", "config.yaml",
)  # fmt: skip
RUN = ("environment.json", "adapter_model.safetensors")  # every run of a stage leaves one of them
INPUT = re.compile(r".*(_paths?|name_or_path|dataset_name|_dataset)")  # options that name folders to read
SKIPPED = "skipped_rows.jsonl"
FOLDERS = ("checkpoint-*", "old-checkpoint-*", ".partial-checkpoint", "raw", "value", "tensorboard")


@dataclass
class RunFolderArguments:
    """The choice between keeping and deleting an earlier run in `output_dir`."""

    overwrite_output_dir: bool = field(
        default=False, metadata={"help": "Delete the files of an earlier run in output_dir, checkpoints too."}
    )


def find_start(args: TrainingArguments, *configs: Any, overwrite: bool) -> str | None:
    """Returns the checkpoint that a stage goes on from, or None; call it before the first file is written.

    Raises:
        InputError: there is no such checkpoint, another run is in the folder (`check_folder`), or machines of the
            launch have different folders of this name.
    """
    assert args.output_dir is not None, "TrainingArguments replaces None"
    require_shared(args.output_dir)
    checkpoint = find_checkpoint(args)
    check_folder(args.output_dir, *configs, resume=goes_on(checkpoint, args.output_dir), overwrite=overwrite)
    return checkpoint


def begin(output_dir: str | Path, *configs: Any, contract: Contract, checkpoint: str | None) -> None:
    """Begins the files of a stage's run, when its data and options have been checked.

    Raises:
        InputError: the checkpoint is one of another run. Nothing has been deleted then.
    """
    check_resume(checkpoint, contract)
    clear_folder(output_dir, resume=goes_on(checkpoint, output_dir))
    start_run(output_dir, *configs, stage=contract.stage)


def goes_on(checkpoint: str | Path | None, output_dir: str | Path) -> bool:
    """True if a run resumes in the folder of its checkpoint. In another folder it is a new run, with a known start."""
    return checkpoint is not None and Path(checkpoint).resolve().parent == Path(output_dir).resolve()


def check_folder(output_dir: str | Path, *configs: Any, resume: bool, overwrite: bool = False) -> None:
    """Refuses to start a run in the folder of another one; call it before the first file is written.

    A finished run of the same options is done again, which is said. Nothing of it is deleted before `clear_folder`.

    Args:
        configs: the dataclass instances of the recipe.
        resume: the run goes on from a checkpoint in this folder (`goes_on`).
        overwrite: accept an earlier run, whatever its options.

    Raises:
        InputError: the folder is one that the run reads; an earlier run has checkpoints to go on from, or other
            options.
    """
    folder = Path(output_dir)
    check_inputs(folder, configs)
    if resume:
        return
    finished, checkpoints = (folder / "result.json").exists(), complete_checkpoints(folder)
    adapter = (folder / "adapter_model.safetensors").exists()
    if not overwrite and (finished or checkpoints or adapter):
        kind = "a finished run" if finished else "a run that was stopped" if checkpoints else "an adapter"
        remedy = "Set another output_dir, or pass --overwrite_output_dir true to delete it"
        if not finished and checkpoints:
            raise InputError(
                f"{folder} holds {kind} after {checkpoints[-1].name}. Pass --resume_from_checkpoint true to go on "
                f"with it. {remedy}."
            )
        different = _different_options(folder, configs)
        if different is not None:
            raise InputError(f"{folder} holds {kind} {different}. {remedy}.")
        logger.warning("%s holds %s of the same options; it is done again", folder, kind)
    if is_first_process():
        (folder / SKIPPED).unlink(missing_ok=True)  # the rows that are skipped are listed while they are loaded


def clear_folder(output_dir: str | Path, resume: bool) -> None:
    """Deletes the files of an earlier run, unless it is resumed; call it when data and options have been checked."""
    folder = Path(output_dir)
    if resume or not is_first_process() or not _has_run(folder):
        return  # README.md or raw/ are the user's
    for pattern in FOLDERS:
        for path in folder.glob(pattern):
            shutil.rmtree(path)
    for name in FILES:
        (folder / name).unlink(missing_ok=True)


def _has_run(folder: Path) -> bool:
    return any((folder / name).exists() for name in RUN) or bool(complete_checkpoints(folder))


def check_output(folder: str | Path, *configs: Any) -> None:
    """Checks the output folder of a command without checkpoints, before it is created.

    Raises:
        InputError: it cannot be written, or is one that the command reads.
    """
    check_writable(folder)
    check_inputs(Path(folder), configs)


def check_inputs(folder: Path, configs: tuple) -> None:
    """Refuses an output folder that an option names as base, adapter or data: a run would delete its own input."""
    for config in configs:
        for name, value in resolved_config(config).items():
            paths = value if isinstance(value, list) else [value]
            read = [path for path in paths if path and path != "sandbox"] if INPUT.fullmatch(name) else []
            # os.path raises neither for a user without a home nor for symbolic links in a circle; Path does.
            if any(realpath(expanduser(path)) == realpath(folder) for path in read):
                raise InputError(f"output_dir is {folder}, which {name} names, too. Set another output_dir.")


def _different_options(folder: Path, configs: tuple) -> str | None:
    """Returns how the run in `folder` differs from one of `configs`, None if it does not."""
    try:
        theirs = yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError):
        theirs = None
    if not isinstance(theirs, dict):
        return "without a config.yaml"
    ours = {name: value for config in configs for name, value in resolved_config(config).items()}
    found = next(iter(differing(theirs, ours)), None)
    return f"with {found} {theirs.get(found)}, and this one has {ours.get(found)}" if found else None
