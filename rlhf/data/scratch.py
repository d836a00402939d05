"""Writes rows to Arrow files, mapped into memory and deleted at the end of the process; once on each machine."""

import itertools
import tempfile
from collections.abc import Callable, Iterable
from functools import cache
from pathlib import Path
from typing import Any

import datasets
from accelerate.utils import gather_object
from datasets.arrow_writer import ArrowWriter

from rlhf.errors import InputError
from rlhf.runs.processes import process_state


def write_rows(name: str, rows: Iterable[dict[str, Any]], features: datasets.Features) -> datasets.Dataset:
    """Returns the rows, at least one, as a data set on disk.

    Args:
        name: name of the file; a number is appended.
        rows: rows with all columns of `features`, read one by one.
    """
    path = str(Path(_folder().name) / f"{name}-{next(_numbers)}.arrow")
    with ArrowWriter(features=features, path=path) as writer:
        for row in rows:
            writer.write(row)
        writer.finalize()
    return datasets.Dataset.from_file(path)


def once_per_machine(make: Callable[[], datasets.Dataset]) -> datasets.Dataset:
    """Returns the data set of `make`, which only the first process of each machine calls; the others map its files.

    Every process must call this, in the same order.

    Raises:
        InputError: `make` failed; the same in all processes, so that none waits for another.
    """
    state = process_state()
    if state.num_processes == 1:
        return make()
    folder, failure = str(Path(_folder().name) / f"shared-{next(_numbers)}"), None
    if state.is_local_main_process:
        try:
            make().save_to_disk(folder)
        except Exception as error:  # of any kind: the other processes wait for the next line
            failure = error
    outcomes = gather_object([(folder, failure and (str(failure) or type(failure).__name__))])
    if failure is not None:
        raise failure
    for _, reason in outcomes:
        if reason is not None:
            raise InputError(reason)
    first_of_machine = state.process_index - state.local_process_index
    return datasets.Dataset.load_from_disk(outcomes[first_of_machine][0])  # pyright: ignore[reportReturnType]


_numbers = itertools.count()


@cache
def _folder() -> tempfile.TemporaryDirectory:
    """Returns a folder, which is removed with this object at the end of the process."""
    return tempfile.TemporaryDirectory(prefix="rlhf-data-")
