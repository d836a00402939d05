"""Sizes of rollouts and minibatches, in episodes (see `PPOConfig`)."""

import math
from typing import TYPE_CHECKING

from rlhf.errors import InputError
from rlhf.runs.batches import check_open_rows, divide_batch, refuse_found_batch

if TYPE_CHECKING:
    from rlhf.ppo.config import PPOConfig

COMPUTED = ("num_total_batches", "micro_batch_size", "local_batch_size", "local_mini_batch_size")


def resolve_rollout(args: "PPOConfig") -> frozenset[str]:
    """Sets the sizes of rollout and minibatch that are not set, in TRL's terms; returns the names of those fields.

    Raises:
        InputError: sizes that do not divide each other, or that change while the stage runs.
    """
    refuse_found_batch(args.auto_find_batch_size)
    check_open_rows(args, "Set batch_size, the episodes of a rollout." if args.batch_size is None else None)
    processes = args.world_size
    sizes = ("batch_size", "mini_batch_size", *COMPUTED)
    computed = frozenset(name for name in sizes if name in COMPUTED or getattr(args, name) is None)
    if args.batch_size is None:
        args.batch_size = args.per_device_train_batch_size * args.gradient_accumulation_steps * processes
        given = f"per_device_train_batch_size x gradient_accumulation_steps x {processes} processes"
    else:
        given = "batch_size"
    if args.mini_batch_size is None:
        if args.batch_size % args.num_mini_batches:
            raise InputError(
                f"{given} is {args.batch_size}, not a multiple of num_mini_batches {args.num_mini_batches}."
            )
        args.mini_batch_size = args.batch_size // args.num_mini_batches
    else:
        if args.batch_size % args.mini_batch_size:
            raise InputError(f"{given} is {args.batch_size}, not a multiple of mini_batch_size {args.mini_batch_size}.")
        computed |= {"num_mini_batches"}
        args.per_device_train_batch_size, _ = divide_batch(
            args.mini_batch_size, processes, args.per_device_train_batch_size, "mini_batch_size"
        )
    minibatches = args.batch_size // args.mini_batch_size
    if args.num_mini_batches not in (1, minibatches):
        raise InputError(
            f"batch_size {args.batch_size} / mini_batch_size {args.mini_batch_size} is {minibatches} minibatches, "
            f"and num_mini_batches is {args.num_mini_batches}; leave one of the three out."
        )
    if args.mini_batch_size % processes:
        raise InputError(
            f"{given} / num_mini_batches is {args.mini_batch_size}, not a multiple of the {processes} processes."
        )
    args.num_mini_batches = minibatches
    args.local_batch_size = args.batch_size // processes
    args.local_mini_batch_size = args.mini_batch_size // processes
    args.micro_batch_size = args.per_device_train_batch_size * processes
    if args.total_episodes is not None:
        args.num_total_batches = math.ceil(args.total_episodes / args.batch_size)
    return computed
