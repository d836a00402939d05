"""Lengths of rows: leaves out rows that are too long for the model, as bad rows like any other; largest batches.

A long prompt is dropped and not cut, as in the paper (appendix C): a cut prompt is not what the user asked.
"""

import random
from collections.abc import Iterable, Sequence
from typing import Literal

import datasets

from rlhf.data.bad_rows import BadRows
from rlhf.data.files import SourceRow
from rlhf.errors import InputError

BATCHES = 1000  # random micro-batches, of which the largest counts for memory


def drop_long_rows(
    dataset: datasets.Dataset,
    lengths: Sequence[int],
    max_length: int | None,
    name: str,
    on_bad_rows: Literal["error", "skip"],
    output_dir: str | None = None,
    option: str = "max_length",
) -> datasets.Dataset:
    """Returns the rows of at most `max_length` tokens.

    Args:
        lengths: [len(dataset)] tokens of each row.
        max_length: None is no limit.
        name: source and split, for messages, which count the rows of `dataset` from 1.
        on_bad_rows: "error" ends the run at the first long row, "skip" drops long rows and logs their number.
        output_dir: the run's folder, in which skipped rows are listed.
        option: name of the limit, for messages.

    Raises:
        InputError: a row is too long while `on_bad_rows` is "error", or all rows are.
    """
    if max_length is None:
        return dataset
    limit = f"{option} ({max_length} tokens, at most the model's context)"
    bad_rows, short = BadRows(on_bad_rows, output_dir), []
    for i, length in enumerate(lengths):
        row = SourceRow(f"{name} as loaded", f"row {i + 1}", {})
        bad_rows.read(row)
        if length <= max_length:
            short.append(i)
        else:
            bad_rows.add(row, f"{length} tokens, more than {limit}; shorten it")
    bad_rows.report()
    if not short:
        raise InputError(f"all rows of {name} are longer than {limit}. Shorten them, or raise the limit.")
    return dataset.select(short)


def short_rows(dataset: datasets.Dataset, lengths: Sequence[int], max_length: int | None) -> datasets.Dataset:
    """Returns the rows that `drop_long_rows` keeps, of the same rows in another form."""
    if max_length is None:
        return dataset
    return dataset.select([i for i, length in enumerate(lengths) if length <= max_length])


def shorter(max_length: int | None, context: int | None) -> int | None:
    """Returns the smaller of two limits on a row's tokens; None is no limit."""
    return min((limit for limit in (max_length, context) if limit is not None), default=None)


def comparison_sizes(prompts: Iterable[int], completions: Iterable[list[list[int]]]) -> list[tuple[int, int, int]]:
    """Returns (tokens of the prompt, K, tokens of all completions) of each comparison.

    Args:
        prompts: tokens of each prompt.
        completions: ids of each prompt and completion together, K of them.
    """
    pairs = zip(prompts, completions, strict=True)
    return [(prompt, len(ids), sum(map(len, ids)) - prompt * len(ids)) for prompt, ids in pairs]


def largest_batch(sizes: list[tuple[int, int, int]], rows: int) -> tuple[float, float, float]:
    """Returns the mean prompt, number K and length of completions in the largest of many random batches.

    Args:
        sizes: (tokens of the prompt, K, tokens of all completions) of each row.
    """
    rng = random.Random(0)
    draw = rng.sample if rows <= len(sizes) else rng.choices
    batches = [draw(sizes, k=rows) for _ in range(BATCHES)]
    batch = max(batches, key=lambda batch: sum(p + c for p, _, c in batch))
    prompts, k, completions = (sum(column) for column in zip(*batch, strict=True))
    return prompts / rows, k / rows, completions / k


def longest_rows(lengths: list[int], rows: int, packed: bool, by_length: bool) -> float:
    """Returns the tokens of a row of the largest micro-batch: of the longest, which padding makes them all.

    Packed, it is the mean of the largest of many random batches, unless neighbors `by_length` are together.
    """
    return largest_batch([(n, 1, 0) for n in lengths], rows)[0] if packed and not by_length else max(lengths)
