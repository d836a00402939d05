"""Loads one split of a source as a `datasets.Dataset`: all rows checked, on disk, mapped into memory.

`split` is "train", "validation" or "test" in `rlhf.data.splits`: a function of the conversation. Rows that the source
itself holds out, in files or splits named validation or test, are never trained on.
"""

import itertools
import logging
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from functools import partial
from itertools import islice
from typing import Any

import datasets

from rlhf.data import schemas
from rlhf.data.arguments import DataArguments
from rlhf.data.assembly import RowAssembler
from rlhf.data.bad_rows import BadRows
from rlhf.data.cells import read_cells
from rlhf.data.columns import Renaming, log_unread, refuse_unread
from rlhf.data.files import SourceRow
from rlhf.data.formats import FORMATS, detect
from rlhf.data.formats.base import Format
from rlhf.data.label_stores import find_label_splits, is_label_store
from rlhf.data.schemas import OPTIONAL_COLUMNS, Row, RowError
from rlhf.data.scratch import once_per_machine, write_rows
from rlhf.data.selection import Selection, may_serve, own_splits
from rlhf.data.sources import Splits, find_splits, has_config, rows_of_dataset
from rlhf.data.split_columns import HEAD, by_role, find_split_columns
from rlhf.data.splits import SPLITS, Split, conversation_id, first_turn, split_of_id
from rlhf.errors import InputError
from rlhf.runs.artifacts import say_once

CHECKS = {
    "demonstrations": schemas.demonstration,
    "comparisons": schemas.comparison,
    "prompts": schemas.prompt,
    "pretraining": schemas.pretraining,
    "votes": schemas.comparison,
}

TEXT = datasets.Value("string")
MESSAGES = datasets.List({"role": TEXT, "content": TEXT})
COMPARISON_FEATURES = {
    "completions": datasets.List(TEXT),
    "ranks": datasets.List(datasets.Value("int64")),
    "ratings": datasets.List(datasets.Value("float64")),
}


def load_demonstrations(args: DataArguments, split: Split, output_dir: str | None = None) -> datasets.Dataset:
    """Returns columns `prompt`, `completion`: both text, or both messages.

    Args:
        args: source and number of rows.
        split: see the top of this module.
        output_dir: the run's folder, in which skipped rows are listed (`skipped_rows.jsonl`).

    Raises:
        InputError: no such source, no row in the split, or a bad row while `on_bad_rows` is "error".
    """
    return once_per_machine(lambda: _load("demonstrations", args, split, output_dir))


def load_comparisons(args: DataArguments, split: Split, output_dir: str | None = None) -> datasets.Dataset:
    """Returns columns `prompt`, `completions` (K texts), `ranks` (K integers, 0 = best); see `load_demonstrations`."""
    return once_per_machine(lambda: _load("comparisons", args, split, output_dir))


def load_prompts(
    args: DataArguments, split: Split, output_dir: str | None = None, named: str | None = None
) -> datasets.Dataset:
    """Returns column `prompt`; see `load_demonstrations`.

    Args:
        named: a split that the source itself holds out. With `split` "test", all of its rows are used, and no others.
    """
    return once_per_machine(lambda: _load("prompts", args, split, output_dir, named=named))


def load_pretraining(
    args: DataArguments, split: Split, output_dir: str | None = None, hold_out: bool = True
) -> datasets.Dataset:
    """Returns column `text`; see `load_demonstrations`.

    Args:
        hold_out: False holds out transcripts of conversations alone, and leaves all other documents in train.
    """
    return once_per_machine(lambda: _load("pretraining", args, split, output_dir, hold_out=hold_out))


def _load(
    kind: str,
    args: DataArguments,
    split: Split,
    output_dir: str | None,
    *,
    named: str | None = None,
    hold_out: bool = True,
) -> datasets.Dataset:
    if split not in SPLITS:
        raise ValueError(f"split is {split!r}; it must be one of {', '.join(SPLITS)}")
    size = args.dataset_size if split == "train" else args.dataset_eval_size
    if args.dataset_name == "sandbox":
        if named not in (None, "test"):
            raise InputError(f"The sandbox's test rows are its split test, not {named}. Leave dataset_test_split out.")
        return _sandbox(kind, split, size, args.dataset_seed)
    bad_rows = BadRows(args.on_bad_rows, output_dir)
    selection = Selection(args.dataset_name, split, size)
    dataset = _write(kind, selection.rows(rows_by_split(kind, args, bad_rows, (split,), named, hold_out)))
    bad_rows.report()
    if dataset is None:
        raise InputError(selection.reason_for_nothing(kind, args, bad_rows))
    if split == "validation" and kind != "pretraining":
        selection.warn_of_few()
    return dataset if size is None else dataset.select(range(min(size, len(dataset))))


def rows_by_split(
    kind: str,
    args: DataArguments,
    bad_rows: BadRows,
    splits: tuple[Split, ...] = SPLITS,
    named: str | None = None,
    hold_out: bool = True,
    limit: int | None = None,
) -> Iterator[tuple[str, Split | None, Row]]:
    """Yields (the source's own split, split, row) of all rows that could be in `splits`; split None is set aside.

    At the end of each of the source's own splits, the numbers of rows are logged, once per process.

    Args:
        named, hold_out: see `load_prompts` and `load_pretraining`.
        limit: rows to read of each of the source's own splits, at most.

    Raises:
        InputError: no such source, or no own split with rows that could be in `splits`.
    """
    source = find_rows(kind, args)
    for own, role in own_splits(source, args, splits, named).items():
        counts: Counter[Split | None] = Counter()
        for part, row in _rows_by_role(kind, source[own], role, args, bad_rows, splits, named, limit):
            split = split_of_id(conversation_id(row))
            if args.dataset_name == "sandbox":  # its generator splits by the task, in any words
                split = split if split == part else None
            elif named is not None:
                split = None if split == part == "validation" else "test"
            elif kind == "pretraining" and not hold_out and first_turn(row["text"]) is None:
                split = "train"
            elif not may_serve(part, split):
                split = None
            counts[split] += 1
            yield own, split, row
        where = ", ".join(f"{counts[split]:,} {split}" for split in SPLITS)
        name = args.dataset_name if len(source) == 1 else f"{args.dataset_name} ({own} split)"
        hint = ""
        if counts[None] and role == "test":
            hint = f"; recipes/evaluate.py asks all of them with --dataset_test_split {own}"
        say_once(f"{name}: {counts.total():,} rows: {where}, {counts[None]:,} set aside{hint}", logging.INFO)


def _rows_by_role(
    kind: str,
    rows: Callable[[], Iterator[SourceRow]],
    role: Split,
    args: DataArguments,
    bad_rows: BadRows,
    splits: tuple[Split, ...],
    named: str | None,
    limit: int | None,
) -> Iterator[tuple[Split, Row]]:
    """Yields (role, row): that of the source's own split, or a later one that a column names for the row."""
    all_rows = rows()
    head = list(islice(all_rows, HEAD)) if named is None and args.dataset_name != "sandbox" else []
    columns = find_split_columns(head, args.columns)
    if not columns:
        all_rows = islice(itertools.chain(head, all_rows), limit)
        yield from ((role, row) for row in checked_rows(kind, all_rows, args, bad_rows))  # pyright: ignore[reportReturnType]
        return
    for part in reversed(SPLITS[SPLITS.index(role) :]):
        if not any(may_serve(part, split) for split in splits):
            continue
        num_rows = 0
        parts = islice(by_role(rows, columns, role, part), limit)
        for row in checked_rows(kind, parts, args, bad_rows):
            num_rows += 1
            yield part, row
        if part == "train" and not num_rows:
            names = ", ".join(".".join(path) for path in columns)
            raise InputError(
                f"column {names} of {args.dataset_name} names no row to train on. If it says something else, leave it "
                f"out with --columns ignore={columns[0][0]}."
            )


def find_rows(kind: str, args: DataArguments) -> Splits:
    """Returns the source's own splits; call one for its rows as read.

    Raises:
        InputError: no such source.
    """
    if args.dataset_name == "sandbox":
        return {split: partial(_sandbox_rows, kind, split, args) for split in SPLITS}
    if is_label_store(args.dataset_name):
        return find_label_splits(args.dataset_name, kind)
    # For OpenAssistant, dataset_config is the language and no configuration on the Hub.
    chooses_language = args.dataset_format is not None and FORMATS[args.dataset_format].language is not None
    return find_splits(args.dataset_name, None if chooses_language else args.dataset_config)


def _sandbox(kind: str, split: str, size: int | None, seed: int) -> datasets.Dataset:
    from rlhf.sandbox import datasets as sandbox  # not at the top: real data needs no sandbox

    return getattr(sandbox, {"votes": "comparisons"}.get(kind, kind))(split, size=size, seed=seed)


def _sandbox_rows(kind: str, split: str, args: DataArguments) -> Iterator[SourceRow]:
    return rows_of_dataset(f"sandbox ({split})", _sandbox(kind, split, args.dataset_size, args.dataset_seed))


def checked_rows(kind: str, rows: Iterable[SourceRow], args: DataArguments, bad_rows: BadRows) -> Iterator[Row]:
    """Yields rows of the schema; a row of a published format may hold several, or none.

    Args:
        kind: key of `CHECKS`.
        rows: rows as read.
        bad_rows: gets every row that is read, and the rows that cannot be used.
    """
    prompt_type, num_like_first, num_others = None, 0, 0
    for row, form, content in _conversion_inputs(kind, rows, args, bad_rows):
        try:
            checked = [CHECKS[kind](converted) for converted in _converted(kind, row, form, content, args)]
            types = {type(row.get("prompt")) for row in checked} | ({prompt_type} if prompt_type else set())
            if len(types) > 1:
                num_others += 1
                raise RowError("column prompt is text in some rows and messages in others; write all in one way")
        except RowError as error:
            bad_rows.add(row, _reason(error, row, args))
            continue
        prompt_type = next(iter(types), None)
        num_like_first += len(checked)
        yield from checked
    if num_others > num_like_first:  # the first row decides for all, and was the exception
        raise InputError(
            f"column prompt of {args.dataset_name} is text in some rows and messages in others: {num_like_first} rows "
            f"are like the first one, {num_others} are not. Write all in one way."
        )


def _conversion_inputs(
    kind: str, rows: Iterable[SourceRow], args: DataArguments, bad_rows: BadRows
) -> Iterator[tuple[SourceRow, Format | None, Row | list[Row]]]:
    """Yields (row, format, content) of single rows, then (first row, format, contents) of assembled rows."""
    assembler, renaming, unread = RowAssembler(), Renaming(args.columns, args.dataset_name), set()
    config_is_unused = args.dataset_config is not None and not has_config(args.dataset_name, args.dataset_config)
    for row in rows:
        bad_rows.read(row)
        if row.fault:
            bad_rows.add(row, row.fault)
            continue
        try:
            row = replace(row, content=read_cells(renaming(row.content)))
            name = args.dataset_format or detect(row.content)
            form = FORMATS[name] if name else None
            if config_is_unused and (form is None or form.language is None):
                raise InputError(
                    f"dataset_config is {args.dataset_config}, but {args.dataset_name} has no folder of that name. "
                    "Leave dataset_config out."
                )
            known = schemas.KNOWN if form is None else form.columns
            unread |= row.content.keys() - known
            if form is not None:
                refuse_unread(row.content, known, kind)
            if name and form is not None and form.assemble_by is not None:
                assembler.add(name, form.assemble_by(row.content), row)
                continue
        except RowError as error:
            bad_rows.add(row, _reason(error, row, args))
            continue
        yield row, form, row.content
    renaming.check_that_all_were_found()
    log_unread(args.dataset_name, unread)
    for form, first, contents in assembler:
        yield first, form, contents


def _converted(kind: str, row: SourceRow, form: Format | None, content: Any, args: DataArguments) -> Iterable[Row]:
    """Returns the rows that the conversion makes of `content`; without a format, `content` itself."""
    if form is None:
        return [content]
    convert = form.kinds.get(kind) or (form.kinds.get("comparisons") if kind == "votes" else None)
    if convert is None:
        raise InputError(f"{row.file} holds {form.title}, which have no {kind}; give another dataset_name.")
    if form.language is not None and args.dataset_config not in (None, form.language(content)):
        return []
    return convert(content)


def _reason(error: RowError, row: SourceRow, args: DataArguments) -> str:
    """Returns the error, with a hint if the row looks like another format than `dataset_format`."""
    other = detect(row.content) if args.dataset_format is not None else None
    if other in (None, args.dataset_format):
        return str(error)
    return f"{error}; its columns are those of {other}, but dataset_format is {args.dataset_format}"


def _write(kind: str, rows: Iterator[Row]) -> datasets.Dataset | None:
    """Writes rows to disk, without the columns that no row has; returns None if there are no rows."""
    first = next(rows, None)
    if first is None:
        return None
    features, seen = row_features(kind, first), set()

    def complete() -> Iterator[Row]:
        for row in itertools.chain([first], rows):
            seen.update(row)
            yield {name: row.get(name) for name in features}

    dataset = write_rows(kind, complete(), features)
    return dataset.select_columns([name for name in features if name in seen])


def row_features(kind: str, row: Row) -> datasets.Features:
    """Returns all columns that a kind may have: the columns of later rows are not known yet."""
    if kind == "pretraining":
        return datasets.Features({"text": TEXT})
    prompt = MESSAGES if isinstance(row["prompt"], list) else TEXT
    answer = {"demonstrations": {"completion": prompt}, "comparisons": COMPARISON_FEATURES}.get(kind, {})
    return datasets.Features({"prompt": prompt, **answer, **dict.fromkeys(OPTIONAL_COLUMNS, TEXT)})
