"""Batch sizes over all processes, so that a YAML means the same run on 1 and on 8 GPUs.

`per_device_train_batch_size: auto` leaves the rows of a pass to the trainer (`rlhf.models.micro_batches`). A number of
rows must say how long an optimizer step is then: `batch_size` in SFT and reward model, by default the paper's; in PPO
`mini_batch_size`, or `batch_size` and `num_mini_batches`. `gradient_accumulation_steps` alone cannot.
"""

from typing import Any, Protocol

from rlhf.errors import InputError, require_at_least


class BatchArguments(Protocol):
    """The fields that `resolve_batch` reads and sets in a stage's config."""

    batch_size: int | None
    per_device_train_batch_size: int
    gradient_accumulation_steps: int | None
    auto_find_batch_size: bool
    computed: frozenset[str]

    @property
    def world_size(self) -> int: ...


ROWS = "per_device_train_batch_size"
AUTO = "auto"


def rows_left_open(args: Any) -> frozenset[str]:
    """Returns {ROWS} if the option is `auto`, for a config's `computed`.

    Until a trainer decides, one row passes at a time. A config calls it first in its `__post_init__`: transformers
    computes with the number.

    Raises:
        InputError: another word.
    """
    rows = args.per_device_train_batch_size
    if isinstance(rows, int):
        return frozenset()
    if rows != AUTO:
        raise InputError(f"{ROWS} is {rows}; it must be a whole number of rows, or {AUTO}.")
    args.per_device_train_batch_size = 1
    return frozenset({ROWS})


def check_open_rows(args: Any, remedy: str | None) -> None:
    """Raises InputError if the rows of a pass are left open where they cannot be.

    Args:
        remedy: None, or what to change, since the options say too much or too little of the rows of an optimizer step.
    """
    if ROWS not in args.computed:
        return
    if getattr(args, "deepspeed_plugin", None) is not None:
        raise InputError(f"{ROWS} is {AUTO}, and DeepSpeed must know it before a model is loaded. Set a number.")
    if remedy is not None:
        raise InputError(f"{ROWS} is {AUTO}, which divides the rows of an optimizer step. {remedy}")


def divide_batch(batch_size: int, processes: int, largest: int, option: str = "batch_size") -> tuple[int, int]:
    """Divides an optimizer step's rows among processes and micro-batches.

    Args:
        batch_size: rows per optimizer step over all processes.
        largest: rows per process and micro-batch, at most.
        option: the option's name, for the error.

    Returns:
        rows per micro-batch (the largest divisor that fits), micro-batches per step:
        batch_size = rows x micro-batches x processes.

    Raises:
        InputError: batch_size is not a multiple of the number of processes.
    """
    share, rest = divmod(batch_size, processes)
    if rest:
        raise InputError(
            f"{option} {batch_size} is not a multiple of the {processes} processes. Set {option} to "
            f"{batch_size - rest + processes}, or launch a number of processes that divides {batch_size}."
        )
    rows = next(rows for rows in range(min(largest, share), 0, -1) if share % rows == 0)
    return rows, share // rows


def refuse_found_batch(auto_find_batch_size: bool) -> None:
    """Raises InputError for the Trainer's `auto_find_batch_size`, which halves the rows of an optimizer step, too."""
    if auto_find_batch_size:
        raise InputError(
            "auto_find_batch_size changes the batch of an optimizer step once the memory is used up. Lower "
            f"{ROWS} instead, or set it to {AUTO}: that changes only memory and speed."
        )


def resolve_batch(args: BatchArguments, paper: int) -> None:
    """Computes the one of `batch_size` and `gradient_accumulation_steps` that is not set.

    `batch_size` is rows per optimizer step over all processes. `per_device_train_batch_size` becomes smaller where the
    batch size asks for it. A computed accumulation is named in `args.computed`, so that a run's config.yaml leaves it
    out and holds on another number of processes.

    Args:
        paper: the batch size if neither is set.

    Raises:
        InputError: values below 1, that do not fit together, or that change while the stage runs.
    """
    refuse_found_batch(args.auto_find_batch_size)
    set_too = args.gradient_accumulation_steps is not None
    check_open_rows(args, "Leave gradient_accumulation_steps out, and set batch_size." if set_too else None)
    require_at_least(args, 1, "batch_size", "per_device_train_batch_size", "gradient_accumulation_steps")
    rows, steps, processes = args.per_device_train_batch_size, args.gradient_accumulation_steps, args.world_size
    if steps is None:
        rows, steps = divide_batch(args.batch_size or paper, processes, rows)
        args.computed |= {"gradient_accumulation_steps"}
    elif args.batch_size not in (None, rows * steps * processes):
        raise InputError(
            f"batch_size {args.batch_size} is not per_device_train_batch_size {rows} x gradient_accumulation_steps "
            f"{steps} x {processes} processes = {rows * steps * processes}. Leave gradient_accumulation_steps out."
        )
    args.per_device_train_batch_size, args.gradient_accumulation_steps = rows, steps
    args.batch_size = rows * steps * processes
