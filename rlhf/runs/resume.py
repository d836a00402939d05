"""Resuming: the checkpoint to go on from, and the check that it is one of this run."""

import json
import logging
import re
from pathlib import Path

from transformers import TrainingArguments
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from rlhf.errors import InputError
from rlhf.runs.artifacts import say_once
from rlhf.runs.contract import FILE_NAME, Contract, differences, read_contract
from rlhf.runs.settings import LENGTH

# Of the base, its name may differ: a folder may have moved.
COMPARED = ("stage", "seed", "options", "tokenizer", "prompt_style", "template_date", "stop_tokens", "parents", "rows")

# Files or folders with the optimizer's state: of one process or DDP, FSDP, sharded FSDP, DeepSpeed.
OPTIMIZERS = ("optimizer.pt", "optimizer.bin", "optimizer_*", "global_step*")


def find_checkpoint(args: TrainingArguments) -> str | None:
    """Returns the checkpoint for `trainer.train`; None to train from the beginning.

    Args:
        args: `resume_from_checkpoint` is a checkpoint's folder, or `true` for the last complete one in `output_dir`.

    Raises:
        InputError: that checkpoint does not exist or is not complete.
    """
    option = args.resume_from_checkpoint
    if option is None or str(option).lower() == "false":
        return None
    if str(option).lower() == "true":
        assert args.output_dir is not None, "TrainingArguments replaces None"
        checkpoints = complete_checkpoints(args.output_dir)
        if not checkpoints:
            raise InputError(f"{args.output_dir} holds no checkpoint to resume from. Leave resume_from_checkpoint out.")
        return str(checkpoints[-1])
    if not is_complete(Path(option)):
        raise InputError(
            f"resume_from_checkpoint {option} is not the folder of a checkpoint (its trainer_state.json is missing "
            "or damaged). Pass a checkpoint-<step> folder, or true for the last one in output_dir."
        )
    return str(option)


def complete_checkpoints(output_dir: str | Path) -> list[Path]:
    """Returns the complete checkpoints in a run's folder, the oldest first."""
    named = {path: re.fullmatch(rf"{PREFIX_CHECKPOINT_DIR}-(\d+)", path.name) for path in Path(output_dir).glob("*")}
    steps = {path: int(match[1]) for path, match in named.items() if match and is_complete(path)}
    return sorted(steps, key=steps.__getitem__)


def is_complete(checkpoint: Path) -> bool:
    """True if the file that every Trainer writes last exists and is valid JSON."""
    try:
        json.loads((checkpoint / TRAINER_STATE_NAME).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return True


def has_optimizer(checkpoint: Path) -> bool:
    """True if a checkpoint holds the optimizer's state, in any of the forms that transformers' Trainer writes."""
    return any(any(checkpoint.glob(name)) for name in OPTIMIZERS)


def rows_of_checkpoint(checkpoint: str | Path | None, share: int) -> int | None:
    """Returns the rows of a pass of a checkpoint's run; None without one, or if they do not divide `share`.

    Args:
        share: rows of an optimizer step on each device; of the checkpoint's run too, if it had as many processes.
    """
    if checkpoint is None:
        return None
    rows = json.loads((Path(checkpoint) / TRAINER_STATE_NAME).read_text(encoding="utf-8")).get("train_batch_size")
    return rows if rows and share % rows == 0 else None


def check_resume(checkpoint: str | Path | None, ours: Contract) -> None:
    """Checks that a checkpoint is one of this run: the same stage, base, rows, adapters and decisive options.

    The length of the run may differ, with a warning. None, or a checkpoint without a contract, is not checked; the
    latter is said. A recipe checks before a model is loaded, and its trainer again; each warning comes once.

    Raises:
        InputError: a difference, with its name and both values; or the optimizer's state is missing.
    """
    if checkpoint is None:
        return
    if not has_optimizer(Path(checkpoint)):
        raise InputError(
            f"{checkpoint} has no optimizer.pt, without which the training would go on with other steps. Resume from "
            "another checkpoint of its folder, or start again with --overwrite_output_dir true."
        )
    theirs = read_contract(checkpoint)
    if theirs is None:
        say_once(
            f"{checkpoint} has no {FILE_NAME}, so nobody can tell if it was trained with the same rows and options",
            logging.WARNING,
        )
        return
    found = differences(theirs, ours, COMPARED) + [
        (name, a, b) for name, a, b in differences(theirs, ours, ["base"]) if name in ("base.digest", "base.weights")
    ]
    for name, a, b in found:
        if name not in LENGTH:
            raise InputError(
                f"{checkpoint} was trained with {name} {a}, and this run has {b} ({Path(checkpoint) / FILE_NAME}). "
                f"Resume with the same {name}, or start another run: leave resume_from_checkpoint out and set another "
                "output_dir."
            )
    for name, a, b in found:
        say_once(
            f"{checkpoint} was trained with {name} {a}, and this run has {b}: the learning rate follows the new length "
            "from here on",
            logging.WARNING,
        )
