"""Where a training goes on after an interruption."""

from pathlib import Path

from transformers import TrainingArguments
from transformers.trainer_utils import get_last_checkpoint

from rlhf.errors import InputError


def find_checkpoint(args: TrainingArguments) -> str | None:
    """The checkpoint that `resume_from_checkpoint` means, for `trainer.train`; None to start anew.

    Args:
        args: `resume_from_checkpoint` is a checkpoint's folder, or `true` for the last one in `output_dir`.

    Raises:
        InputError: there is no such checkpoint.
    """
    wanted = args.resume_from_checkpoint
    if wanted is None or str(wanted).lower() == "false":
        return None
    if str(wanted).lower() == "true":
        last = get_last_checkpoint(args.output_dir) if Path(args.output_dir).is_dir() else None
        if last is None:
            raise InputError(f"{args.output_dir} holds no checkpoint to resume from; leave resume_from_checkpoint out.")
        return last
    if not (Path(wanted) / "trainer_state.json").is_file():
        raise InputError(f"resume_from_checkpoint {wanted} is not the folder of a checkpoint (no trainer_state.json).")
    return str(wanted)
