"""`per_device_train_batch_size: auto`: as many rows pass at a time as keep the device busy and fit its free memory.

The rows of an optimizer step are those of the configuration (`rlhf.runs.batches`). A trainer chooses their division
into micro-batches, together with the layers that `gradient_checkpointing: auto` computes again. It decides once, by the
lengths of its rows and the memory that is free. A resumed run keeps the division of its checkpoint, because another one
rounds in another way, and draws other masks of dropout.
"""

import logging
from collections.abc import Callable
from dataclasses import field, replace
from functools import cache
from typing import Any

from datasets import Dataset
from transformers import PreTrainedModel, Trainer

from rlhf.errors import InputError
from rlhf.models.fitting import EVERY, Divisions, choose_division, divisions, in_process, tokens_wanted
from rlhf.models.memory import Memory
from rlhf.models.model_sizes import Layout, Shape, shape_of
from rlhf.models.pass_limits import pass_limits
from rlhf.models.recomputation import (
    LOWER,
    OPTIONS,
    available_bytes,
    choice_text,
    given_recomputation,
    layout_of,
    set_recomputation,
    smallest,
)
from rlhf.runs.artifacts import is_first_process, record_option
from rlhf.runs.batches import AUTO, ROWS
from rlhf.runs.console import gigabytes
from rlhf.runs.resume import find_checkpoint, rows_of_checkpoint

logger = logging.getLogger(__name__)

SHORTEN = "take shorter rows, or load_in_4bit"  # if one row at a time does not fit
KEPT = "as in the checkpoint"


def rows_field(text: str) -> Any:
    """Returns the field `per_device_train_batch_size` of a config.

    Args:
        text: what its number counts.
    """
    help = f"{text} auto: as many as keep the device busy and fit its free memory; an optimizer step keeps its rows."
    return field(default=8, metadata={"help": help})


def fit_memory(
    trainer: Trainer,
    lm: PreTrainedModel,
    memory_of: Callable[[Shape, Layout, int], Memory],
    row_tokens: Callable[[Layout], float],
    padded: bool = False,
) -> None:
    """Sets the rows of a pass and the options of activation checkpointing, where they were left open; logs why.

    All processes decide alike: the smallest free memory of all counts. Where the memory of a step is not known, all
    layers are recomputed.

    Args:
        lm: the model with its adapters.
        memory_of: the stage's formula for the largest step, by the rows of a pass.
        row_tokens: tokens of a row in a pass, on average.
        padded: a micro-batch passes as it is, padded to its longest row.

    Raises:
        InputError: the rows are left open, and the memory of a step is not known.
    """
    args: Any = trainer.args
    computed = getattr(args, "computed", frozenset())
    rows_open, layers_open = ROWS in computed, computed >= OPTIONS
    if not rows_open and not layers_open:
        return
    every = EVERY if layers_open else (given_recomputation(args),)
    rows, share, kept, tokens = Divisions([args.per_device_train_batch_size], []), 0, None, 0.0
    if rows_open:
        share = args.per_device_train_batch_size * args.gradient_accumulation_steps
        kept = rows_of_checkpoint(find_checkpoint(args), share)
    try:
        if not isinstance(trainer.train_dataset, Dataset):
            raise InputError("The rows are not in memory, so the longest is not known.")
        shape, layout = shape_of(lm.config), layout_of(trainer, lm)

        @cache
        def memory(rows: int, every: int) -> Memory:
            return in_process(memory_of(shape, replace(layout, checkpointing=every), rows), args.device.type)

        free = available_bytes(trainer, lm)
        if rows_open:
            tokens, largest = row_tokens(layout), int(smallest(trainer, pass_limits(lm, args.device)[0]))
            wanted = tokens_wanted(largest, args.device.type, padded)
            rows = Divisions([kept], []) if kept else divisions(share, tokens, wanted)
        number, n = choose_division(memory, rows, free, every)
    except InputError as error:
        if rows_open:
            raise InputError(f"{ROWS} is {AUTO}, but {error} Set a number of rows.") from error
        log(logging.INFO, "gradient_checkpointing", f"all layers are computed again in backward. {error}")
        set_recomputation(args, lm, 1)
        return
    if rows_open:
        larger = min((other for other in rows.enough + rows.fewer if other > number), default=None)
        more = memory(larger, n) if larger else None
        text = KEPT if kept else memory_text(number * tokens, memory(number, n), free, more, number == share)
        each = " of each process" if args.world_size > 1 else ""
        log(logging.INFO, ROWS, f"{number} of the {share} rows{each} in a step pass at a time, {text}")
        set_rows(trainer, number)
    if layers_open:
        text = choice_text(n, memory(number, 0), memory(number, n), free, SHORTEN if rows_open else LOWER)
        log(logging.INFO if n else logging.DEBUG, "gradient_checkpointing", text)
        set_recomputation(args, lm, n)


def log(level: int, option: str, text: str) -> None:
    """Logs a choice, in the first process."""
    if is_first_process():
        logger.log(level, "%s: %s", option, text)


def set_rows(trainer: Trainer, rows: int) -> None:
    """Makes a trainer pass `rows` rows at a time, of the same rows per optimizer step; config.yaml gets the number."""
    args: Any = trainer.args
    share = args.per_device_train_batch_size * args.gradient_accumulation_steps
    args.per_device_train_batch_size, args.gradient_accumulation_steps = rows, share // rows
    if hasattr(args, "micro_batch_size"):  # TRL's, in PPO
        args.micro_batch_size = rows * args.world_size
    trainer._train_batch_size = args.train_batch_size
    record_option(args.output_dir, ROWS, rows)


def memory_text(tokens: float, chosen: Memory, free: float, more: Memory | None, all_rows: bool) -> str:
    """Returns how large a micro-batch is, and why it is not larger.

    Args:
        tokens: of its rows, on average.
        chosen: memory of a step.
        free: bytes.
        more: memory of a step with the next larger division; None if that has more tokens than save time.
        all_rows: the micro-batch is the whole step.
    """
    text = f"about {tokens:,.0f} tokens. By estimate a step takes {gigabytes(chosen.peak)} of {gigabytes(free)} GB"
    if more:
        return f"{text}, and with more rows {gigabytes(more.peak)}"
    return text if all_rows else f"{text}; a pass of more tokens saves no time"
