"""Writes rows to Arrow files, mapped into memory and deleted at the end of the process."""

import itertools
import tempfile
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Any

import datasets
from datasets.arrow_writer import ArrowWriter


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


_numbers = itertools.count()


@cache
def _folder() -> tempfile.TemporaryDirectory:
    """Returns a folder, which is removed with this object at the end of the process."""
    return tempfile.TemporaryDirectory(prefix="rlhf-data-")
