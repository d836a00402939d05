"""Finds a data set by its name, on this machine or on the Hub: its splits, and the rows of each."""

import filecmp
import logging
import re
from collections.abc import Callable, Iterator
from functools import partial
from itertools import chain
from pathlib import Path

import datasets
import pyarrow
from datasets.exceptions import DatasetsError
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

from rlhf.data.files import SUFFIXES, SourceRow, is_readable, read_rows
from rlhf.data.splits import split_of_name
from rlhf.errors import InputError, first_line
from rlhf.runs.artifacts import say_once

Splits = dict[str, Callable[[], Iterator[SourceRow]]]
SHARD = re.compile(r"((?:train|validation|test)_\w+)-\d{5}-of-\d{5}")  # of a split of the Hub, as train_sft
NO_ROWS = frozenset(["readme.txt", "license.txt", "requirements.txt", "dataset_info.json", "dataset_infos.json"])
ABOUT_DATA = frozenset(["readme", "license", "changelog", "citation", "makefile"])  # names without ending
LOOKS_LOCAL = re.compile(r"^[./~]|\\")


def find_splits(name: str, config: str | None = None) -> Splits:
    """Returns the splits of a source; call a split for its rows.

    A single file is a train split, unless its name says validation or test. In a folder, files (or sub-folders) with
    train, validation or test in their names make up these splits. All other files are train, unless a file has train in
    its name.

    Args:
        name: local file or folder, otherwise `owner/name` on the Hub, or `owner/name/path/to/file` on the Hub.
        config: configuration of a Hub data set, or the sub-folder of a folder that is named like it.

    Raises:
        InputError: nothing readable has that name.
    """
    path = _local(name)
    if path.is_dir():
        return _folder(path / config if config is not None and (path / config).is_dir() else path)
    if path.exists():
        return _file(path)
    if LOOKS_LOCAL.search(name) or (name.count("/") < 2 and is_readable(path)):
        raise InputError(f"dataset_name {name} does not exist. Give a file or folder, or a name on the Hub.")
    if name.count("/") >= 2 and is_readable(path):
        return _file(_download(name))
    return _hub(name, config)


def _local(name: str) -> Path:
    """Returns `name` as a path, which may not exist.

    Raises:
        InputError: ~user does not exist, or the name is longer than a path may be.
    """
    try:
        path = Path(name).expanduser()
        path.exists()
    except (OSError, RuntimeError, ValueError) as error:
        raise InputError(
            f"dataset_name {name[:100]} is neither a path nor a name on the Hub ({first_line(error)})."
        ) from error
    return path


def _file(path: Path) -> Splits:
    if not is_readable(path):
        raise InputError(f"{path} is of an unknown type. Data files must end in {', '.join(SUFFIXES)}.")
    return {split_of_name(path.name) or "train": partial(read_rows, path)}


def _folder(folder: Path) -> Splits:
    if (folder / "state.json").exists() or (folder / "dataset_dict.json").exists():
        return _saved(folder)
    files: dict[str | None, list[Path]] = {}
    own = None if folder.name.lower() == "dev" else split_of_name(folder.name, whole=True)
    own = None if own == "train" else own
    paths = [path for path in sorted(folder.rglob("*")) if path.is_file() and _may_be_data(path.relative_to(folder))]
    for path in filter(is_readable, paths):
        files.setdefault(_split_of_path(path.relative_to(folder)), []).append(path)
    unread = [str(path.relative_to(folder)) for path in paths if not is_readable(path)]
    some = ", ".join(unread[:10]) + (f" and {len(unread) - 10} more" if len(unread) > 10 else "")
    if not files:
        there = f" (there is {some})" if unread else ""
        raise InputError(f"folder {folder} holds no data{there}. Give files that end in {', '.join(SUFFIXES)}.")
    if unread:
        say_once(f"files of {folder} that are not read: {some}; data ends in {', '.join(SUFFIXES)}", logging.WARNING)
    _warn_of_copies([path for part in files.values() for path in part])
    if None in files and "train" in files:
        raise InputError(
            f"folder {folder} has files named after a split ({files['train'][0]}) and a file that names none "
            f"({files[None][0]}). Move it out of the folder, or give it alone."
        )
    return {split or own or "train": partial(_rows_of_files, paths) for split, paths in files.items()}


def _may_be_data(path: Path) -> bool:
    """False for files that are about the data, hidden, or left by macOS in an archive."""
    is_hidden = any(part.startswith(".") or part == "__MACOSX" for part in path.parts)
    return not is_hidden and path.name.lower() not in NO_ROWS and path.stem.lower() not in ABOUT_DATA


def _warn_of_copies(paths: list[Path]) -> None:
    by_size: dict[tuple[str, int], list[Path]] = {}
    for path in paths:
        by_size.setdefault((path.suffix, path.stat().st_size), []).append(path)
    for first, *others in by_size.values():
        for other in others:
            if filecmp.cmp(first, other, shallow=False):
                say_once(f"{other} is a copy of {first}: its rows are read twice; move one away", logging.WARNING)


def _saved(folder: Path) -> Splits:
    """Returns the splits of a `DatasetDict` or the rows of a `Dataset` that was written by save_to_disk."""
    try:
        saved = datasets.load_from_disk(str(folder))
    except (OSError, ValueError, KeyError, TypeError, pyarrow.ArrowException) as error:
        raise InputError(
            f"{folder} was written by save_to_disk and cannot be read ({first_line(error)}). Write it again."
        ) from error
    if isinstance(saved, datasets.Dataset):
        saved = {split_of_name(folder.name) or "train": saved}
    return {str(split): partial(rows_of_dataset, f"{folder} ({split})", rows) for split, rows in saved.items()}


def _rows_of_files(paths: list[Path]) -> Iterator[SourceRow]:
    return chain.from_iterable(map(read_rows, paths))


def _split_of_path(path: Path) -> str | None:
    if shard := SHARD.match(path.name):
        return shard[1]
    parts = map(split_of_name, reversed(path.parts))  # the file's own name first, then the innermost folder's
    return next(filter(None, parts), None)


def _download(name: str) -> Path:
    owner, repository, filename = name.split("/", 2)
    try:
        return Path(hf_hub_download(f"{owner}/{repository}", filename, repo_type="dataset"))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        raise InputError(
            f"dataset_name {name} is neither a local file nor one on the Hub ({first_line(error)}). Correct the name."
        ) from error


def has_config(name: str, config: str) -> bool:
    """True if `find_splits` looks for the configuration, on the Hub or among the sub-folders of a folder."""
    return is_hub_dataset(name) or (_local(name) / config).is_dir()


def is_hub_dataset(name: str) -> bool:
    """True if `find_splits` looks for `name` on the Hub, as a data set and not as one of its files."""
    path = _local(name)
    return not (name == "sandbox" or path.exists() or LOOKS_LOCAL.search(name) or is_readable(path))


def stream_hub(name: str, config: str | None, split: str) -> datasets.IterableDataset:
    """Returns a split of a Hub data set, read while it is used.

    Raises:
        InputError: no data set with this name, configuration and split can be read.
    """
    return _load_from_hub(name, config, split=split, streaming=True)


def _hub(name: str, config: str | None) -> Splits:
    splits = _load_from_hub(name, config)
    return {split: partial(rows_of_dataset, f"{name} ({split})", rows) for split, rows in splits.items()}


def _load_from_hub(name: str, config: str | None, **options):
    try:
        return datasets.load_dataset(name, config, **options)
    except RuntimeError as error:  # a loading script, which `datasets` no longer runs
        raise InputError(
            f"dataset_name {name} cannot be read ({first_line(error)}). Download the Hub's Parquet conversion of it "
            "(its branch refs/convert/parquet) and give that folder."
        ) from error
    except (OSError, ValueError, HfHubHTTPError, HFValidationError, DatasetsError) as error:
        raise InputError(
            f"dataset_name {name} is neither a local file or folder nor readable from the Hub ({first_line(error)}). "
            "Correct the name, dataset_config or login."
        ) from error


def rows_of_dataset(name: str, rows: datasets.Dataset) -> Iterator[SourceRow]:
    """Yields the rows of a loaded data set, with the name that messages give it."""
    for number, content in enumerate(rows, 1):
        yield SourceRow(name, f"row {number}", content)  # pyright: ignore[reportArgumentType]
