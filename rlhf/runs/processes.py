"""Rows shared out among the processes that the launcher started: how evaluation uses all devices."""

from collections.abc import Callable
from typing import TypeVar

from accelerate import PartialState
from accelerate.utils import gather_object, parse_flag_from_env

T = TypeVar("T")


def process_state() -> PartialState:
    """This process's number, its device, and how many there are.

    On the CPU if the launch asked for that (`use_cpu` in its configuration), also where there is a GPU: Accelerate's
    `Accelerator` knows of it, and its `PartialState` has to be told.
    """
    return PartialState(cpu=parse_flag_from_env("ACCELERATE_USE_CPU"))


def map_across_processes(n: int, work: Callable[[list[int]], list[T]]) -> list[T]:
    """`work(range(n))` in parts: each process does its rows and gets the results of all, in order.

    Every process has to call this, with the same `n`.

    Args:
        work: from numbers of rows to one result for each; results of other processes come pickled.
    """
    state = process_state()
    # Every W-th row: whatever the rows are sorted by, the parts cost about the same.
    rows = [list(range(first, n, state.num_processes)) for first in range(state.num_processes)]
    results = gather_object(work(rows[state.process_index]))  # one process's after the other's
    in_order = dict(zip((i for part in rows for i in part), results, strict=True))
    return [in_order[i] for i in range(n)]
