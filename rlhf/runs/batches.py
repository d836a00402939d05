"""Batch sizes over all processes, so that a YAML means the same run on 1 and on 8 GPUs."""

from typing import Protocol

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
            "per_device_train_batch_size instead, which changes only memory and speed."
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
