"""One split of a source as a `datasets.Dataset`, every row of it checked.

`split` is "train" or "validation", which stand for the splits that `dataset_train_split` and `dataset_test_split` name,
or any split that the source has. A source that has nothing but train rows gets a validation and a test split held out
of them; a source that has others, but not the one to evaluate on, gets that one.
"""

from collections.abc import Iterable, Iterator
from typing import Any

import datasets

from rlhf.data import oasst, schemas
from rlhf.data.arguments import DataArguments
from rlhf.data.bad_rows import BadRows
from rlhf.data.files import Row
from rlhf.data.schemas import RowError
from rlhf.data.sources import Splits, find_splits
from rlhf.data.splits import HELD_OUT, select_split
from rlhf.errors import InputError

CHECKS = {
    "demonstrations": schemas.demonstration,
    "comparisons": schemas.comparison,
    "prompts": schemas.prompt,
    "pretraining": schemas.pretraining,
}
OASST = {"demonstrations": oasst.demonstrations, "comparisons": oasst.comparisons, "prompts": oasst.prompts}

TEXT = datasets.Value("string")
MESSAGES = datasets.List({"role": TEXT, "content": TEXT})
LISTS = {
    "completions": datasets.List(TEXT),
    "ranks": datasets.List(datasets.Value("int64")),
    "ratings": datasets.List(datasets.Value("float64")),
}


def load_demonstrations(args: DataArguments, split: str, output_dir: str | None = None) -> datasets.Dataset:
    """Columns `prompt`, `completion`: both text, or both messages.

    Args:
        args: the source and how much of it.
        split: see the module.
        output_dir: the run's folder, in which skipped rows are listed (`skipped_rows.jsonl`).

    Raises:
        InputError: no such source or split, or a bad row while `on_bad_rows` is "error".
    """
    return _load("demonstrations", args, split, output_dir)


def load_comparisons(args: DataArguments, split: str, output_dir: str | None = None) -> datasets.Dataset:
    """Columns `prompt`, `completions` (K texts), `ranks` (K integers, 0 = best); arguments as for demonstrations."""
    return _load("comparisons", args, split, output_dir)


def load_prompts(args: DataArguments, split: str, output_dir: str | None = None) -> datasets.Dataset:
    """Column `prompt`; arguments as for demonstrations."""
    return _load("prompts", args, split, output_dir)


def load_pretraining(args: DataArguments, split: str, output_dir: str | None = None) -> datasets.Dataset:
    """Column `text`; arguments as for demonstrations."""
    return _load("pretraining", args, split, output_dir)


def _load(kind: str, args: DataArguments, split: str, output_dir: str | None) -> datasets.Dataset:
    split = {"train": args.dataset_train_split, "validation": args.dataset_test_split}.get(split, split)
    size = args.dataset_size if split == args.dataset_train_split else args.dataset_eval_size
    if args.dataset_name == "sandbox":
        from rlhf.sandbox import datasets as sandbox  # here, so that real data does not load the world

        return getattr(sandbox, kind)(split, size=size, seed=args.dataset_seed)

    # For OpenAssistant trees, dataset_config is the language, and the Hub gives the file by its name.
    source = find_splits(args.dataset_name, None if args.dataset_format == "oasst" else args.dataset_config)
    held_out = _held_out(source, args)
    origin = args.dataset_train_split if split in held_out else split
    if origin not in source:
        raise InputError(
            f"{args.dataset_name} has no split {split}, only {', '.join(source)}; "
            "name one of these with --dataset_train_split or --dataset_test_split."
        )
    bad_rows = BadRows(args.on_bad_rows, output_dir)
    rows = list(_checked(kind, source[origin](), args, bad_rows))
    bad_rows.report()
    if not rows:
        raise InputError(
            f"{args.dataset_name} has no {kind} in its {origin} split ({len(bad_rows)} rows were skipped)."
        )
    if origin == args.dataset_train_split and held_out:
        rows = select_split(rows, split, held_out)
    return _as_dataset(rows[:size])


def _held_out(source: Splits, args: DataArguments) -> set[str]:
    """Splits that have to be taken out of the train rows."""
    if args.dataset_train_split not in source:
        return set()
    missing = set(HELD_OUT) - source.keys()
    return missing if len(source) == 1 else missing & {args.dataset_test_split}


def _checked(kind: str, rows: Iterable[Row], args: DataArguments, bad_rows: BadRows) -> Iterator[dict[str, Any]]:
    """Rows of the schema; one row of a published format may hold several, or none."""
    form = None
    for row in rows:
        bad_rows.read(row)
        try:
            if row.fault:
                raise RowError(row.fault)
            checked = [CHECKS[kind](content) for content in _converted(kind, row, args)]
            forms = {type(content.get("prompt")) for content in checked} | ({form} if form else set())
            if len(forms) > 1:
                raise RowError(
                    "column prompt is text in some rows and messages in others; one of them is needed in all"
                )
        except RowError as error:
            bad_rows.add(row, str(error))
            continue
        form = next(iter(forms), None)
        yield from checked


def _converted(kind: str, row: Row, args: DataArguments) -> Iterable[dict[str, Any]]:
    """The row itself, or what it holds in a published format."""
    if args.dataset_format == "oasst" or oasst.is_tree(row.content):
        if kind not in OASST:
            raise InputError(f"{row.file} holds OpenAssistant trees, which have no {kind}; give another dataset_name.")
        return OASST[kind](row.content, args.dataset_config)
    if oasst.is_flat_message(row.content):
        raise InputError(
            f"{row.file} is OpenAssistant's table of messages; give a file of its trees instead, "
            "e.g. dataset_name: OpenAssistant/oasst1/2023-04-12_oasst_ready.trees.jsonl.gz."
        )
    return [row.content]


def _as_dataset(rows: list[dict[str, Any]]) -> datasets.Dataset:
    """All rows in memory; the place to write Arrow files instead when data outgrows it."""
    names = dict.fromkeys(name for row in rows for name in row)
    columns = {name: [row.get(name) for row in rows] for name in names}
    features = {name: LISTS.get(name) or (MESSAGES if isinstance(rows[0].get(name), list) else TEXT) for name in names}
    return datasets.Dataset.from_dict(columns, features=datasets.Features(features))
