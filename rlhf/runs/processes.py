"""Rows divided among the processes of a launch, so that evaluation uses all devices."""

import itertools
import logging
from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar

from accelerate import PartialState
from accelerate.utils import gather_object, parse_flag_from_env

if TYPE_CHECKING:
    from transformers import TrainingArguments

T = TypeVar("T")
logger = logging.getLogger(__name__)


def process_state() -> PartialState:
    """Returns this process's number, its device, and the number of processes.

    The device is the CPU if the launch asked for it (`use_cpu` in its configuration), even on a machine with a GPU.
    Accelerate's `Accelerator` reads that setting; its `PartialState` must be told.
    """
    return PartialState(cpu=parse_flag_from_env("ACCELERATE_USE_CPU"))


def use_one_device(args: "TrainingArguments") -> None:
    """Makes one process train on one GPU, also where it sees several.

    The Trainer would wrap the model of a single process in nn.DataParallel, with a batch per GPU.
    """
    if args.n_gpu > 1:
        logger.warning(
            "one process uses one of the %d GPUs that it sees; --accelerate multi_gpu starts a process for each",
            args.n_gpu,
        )
        args._n_gpu = 1


def map_across_processes(n: int, work: Callable[[list[int]], list[T]]) -> list[T]:
    """Returns the results of `work` for rows 0 to n - 1, in order. Each process works on its own rows and returns all.

    Every process must call this with the same `n`.

    Args:
        work: takes numbers of rows and returns a result for each; results are pickled between processes.
    """
    state = process_state()
    # Each process takes every W-th row, so that all take about as long, whatever the rows are sorted by.
    rows = [list(range(first, n, state.num_processes)) for first in range(state.num_processes)]
    results = gather_object(work(rows[state.process_index]))  # in the order of the processes
    by_row = dict(zip(itertools.chain(*rows), results, strict=True))
    return [by_row[i] for i in range(n)]
