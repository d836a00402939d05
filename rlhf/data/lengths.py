"""Rows that are too long for the model are bad rows like any other."""

from collections.abc import Sequence

import datasets

from rlhf.data.arguments import DataArguments
from rlhf.data.bad_rows import BadRows
from rlhf.data.files import Row
from rlhf.errors import InputError


def drop_long_rows(
    dataset: datasets.Dataset,
    lengths: Sequence[int],
    max_length: int | None,
    args: DataArguments,
    split: str,
    output_dir: str | None = None,
    option: str = "max_length",
) -> datasets.Dataset:
    """The rows of at most `max_length` tokens; what becomes of the others is for `on_bad_rows` to say.

    Args:
        dataset: rows of one split, tokenised; lengths: [len(dataset)] their lengths in tokens.
        split: for the message; rows are counted as they were loaded, from 1.
        output_dir: the run's folder, in which skipped rows are listed.
        option: what sets `max_length`, for the message.

    Raises:
        InputError: a row is too long while `on_bad_rows` is "error", or all are.
    """
    if max_length is None:
        return dataset
    bad_rows = BadRows(args.on_bad_rows, output_dir)
    kept = []
    for i, length in enumerate(lengths):
        row = Row(f"{args.dataset_name} ({split} split as loaded)", f"row {i + 1}", None)
        bad_rows.read(row)
        if length <= max_length:
            kept.append(i)
        else:
            limit = f"{option} {max_length}, which is at most what the model's context takes"
            bad_rows.add(row, f"{length} tokens, more than {limit}; shorten it")
    bad_rows.report()
    if not kept:
        raise InputError(
            f"all rows of {args.dataset_name} ({split}) are longer than {option} {max_length}, which "
            "is at most what the model's context takes; shorten them, or raise it."
        )
    return dataset.select(kept)


def shorter(max_length: int | None, context: int | None) -> int | None:
    """The smaller of two limits on a row's tokens; None is no limit."""
    return min((limit for limit in (max_length, context) if limit is not None), default=None)
