"""Reads corrupted files and rows with the real loaders; the last line is JSON.

    python benchmarks/corrupt_data.py --cases 10000

Every second case is a good file with one bad row: with `on_bad_rows: skip` the loader must leave out this row and no
other, and name its file, place and reason. The other cases are good files with some bytes overwritten, cut or doubled:
the loader must read them or refuse them in one sentence. Anything else is a failure; the first five are printed.
"""

import argparse
import csv
import gzip
import io
import json
import logging
import os
import random
import tempfile
import traceback
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"  # a damaged name must not be looked up on the Hub

import datasets

from rlhf.data import DataArguments, load_comparisons, load_demonstrations, load_pretraining, load_prompts
from rlhf.data.splits import SPLITS, Split
from rlhf.errors import InputError

Row = dict[str, Any]
LOADERS: dict[str, Callable] = {
    "demonstrations": load_demonstrations,
    "comparisons": load_comparisons,
    "prompts": load_prompts,
    "pretraining": load_pretraining,
}
GOOD: dict[str, Callable[[int], Row]] = {
    "demonstrations": lambda i: {"prompt": f"Question {i}?", "completion": f"Answer {i}."},
    "comparisons": lambda i: {"prompt": f"Question {i}?", "completions": ["a", "b", "c"], "ranks": [0, 2, 1]},
    "prompts": lambda i: {"prompt": [{"role": "user", "content": f"Question {i}?"}], "user_id": str(i)},
    "pretraining": lambda i: {"text": f"Document {i}."},
}
NOT_TEXT = [None, "", "  ", 3, True, {}, {"a": 1}, 1.5, "half a pair \ud83d"]
NOT_RANKS = [None, [0, 1], [0, 1, "2"], [-1, 0, 1], "012", [0, 1, 2.5], {"a": 0}, []]
BAD: dict[str, list[Row]] = {  # columns that make a good row bad
    "demonstrations": [{name: value} for name in ("prompt", "completion") for value in NOT_TEXT],
    "comparisons": [
        *({"prompt": value} for value in NOT_TEXT),
        *({"ranks": value} for value in NOT_RANKS),
        *({"completions": value} for value in (None, [], ["a"], ["a", "", "c"], "abc", ["a", None, "c"], [1, 2, 3])),
    ],
    "prompts": [
        *({"prompt": value} for value in (None, [], [{}], [{"role": "user"}], [{"role": "assistant", "content": "x"}])),
        *({"prompt": [{"role": "user", "content": value}]} for value in NOT_TEXT),
        {"user_id": [1]},
    ],
    "pretraining": [{"text": value} for value in NOT_TEXT],
}
BROKEN_LINES = [b'{"prompt": "a"', b"[1, 2]", b"nonsense", b'{"text": "caf\xe9"}', b"\xff\xfe\x00", b"[" * 3000, b"{}"]
SUFFIXES = ["jsonl", "jsonl.gz", "json", "csv", "parquet", "txt"]


class Failure(Exception):
    """The loader neither read its input nor explained the fault."""


def bad_row_case(rng: random.Random, folder: Path) -> str:
    """Requires that one bad row in a file of JSON lines is reported, and all others are read."""
    kind, count = rng.choice(sorted(LOADERS)), rng.randrange(3, 12)
    place = rng.randrange(1, count)  # not the first, which decides whether prompts are text or messages
    lines = [json.dumps(GOOD[kind](i)).encode() for i in range(count)]
    broken = rng.random() < 0.3
    lines[place] = (
        rng.choice(BROKEN_LINES) if broken else json.dumps(GOOD[kind](place) | rng.choice(BAD[kind])).encode()
    )
    data = b"\n".join(lines) + b"\n"
    zipped = rng.random() < 0.3
    path = folder / f"train.jsonl{'.gz' if zipped else ''}"
    path.write_bytes(gzip.compress(data) if zipped else data)
    args = DataArguments(dataset_name=str(path), on_bad_rows="skip")
    read = sum(rows_of_split(kind, args, split, folder) for split in SPLITS)
    records = [json.loads(line) for line in (folder / "skipped_rows.jsonl").read_text().splitlines()]
    if [(record["file"], record["row"]) for record in records] != [(str(path), f"line {place + 1}")]:
        raise Failure(f"{kind}: line {place + 1} is bad, but {records} were reported")
    if not records[0]["reason"].strip() or "Traceback" in records[0]["reason"]:
        raise Failure(f"{kind}: no reason in {records}")
    if read != count - 1:
        raise Failure(f"{kind}: {read} of {count - 1} good rows were read")
    try:
        LOADERS[kind](DataArguments(dataset_name=str(path)), "train")
    except InputError as error:
        if str(path) not in str(error) or f"line {place + 1}:" not in str(error):
            raise Failure(f"{kind}: the message does not name the place: {error}") from error
    else:
        raise Failure(f"{kind}: line {place + 1} is bad, but no error was raised")
    return "row"


def rows_of_split(kind: str, args: DataArguments, split: Split, folder: Path) -> int:
    """Returns the number of rows; few rows may leave a split empty, which is an error."""
    try:
        return len(LOADERS[kind](args, split, str(folder)))
    except InputError as error:
        if f"could be in the {split} split, and none of them is" in str(error):
            return 0
        raise


def damaged_file_case(rng: random.Random, folder: Path) -> str:
    """Requires that a file with damaged bytes is read, or refused in one sentence that names it."""
    kind, suffix = rng.choice(sorted(LOADERS)), rng.choice(SUFFIXES)
    path = folder / f"data.{suffix}"
    path.write_bytes(damage(rng, good_file(kind, suffix, folder)))
    args = DataArguments(dataset_name=str(path), on_bad_rows=rng.choice(["error", "skip"]))
    try:
        for row in LOADERS[kind](args, rng.choice(["train", "validation"]), str(folder)):
            json.dumps(row).encode()
    except InputError as error:
        if not str(error).strip().endswith(".") or str(path) not in str(error):
            raise Failure(f"{path.name}: not a sentence that names the file: {error}") from error
        return "file refused"
    return "file read"


def good_file(kind: str, suffix: str, folder: Path) -> bytes:
    rows = [GOOD[kind](i) for i in range(6)]
    if suffix == "parquet":
        datasets.Dataset.from_list(rows).to_parquet(folder / "good.parquet")
        return (folder / "good.parquet").read_bytes()
    if suffix == "csv":
        text = io.StringIO()
        writer = csv.writer(text)
        writer.writerow(rows[0])
        writer.writerows([v if isinstance(v, str) else json.dumps(v) for v in row.values()] for row in rows)
        return text.getvalue().encode()
    if suffix == "json":
        return json.dumps(rows, indent=1).encode()
    if suffix == "txt":
        return "\n".join(map(json.dumps, rows)).encode()
    data = "".join(json.dumps(row) + "\n" for row in rows).encode()
    return gzip.compress(data, mtime=0) if suffix == "jsonl.gz" else data


def damage(rng: random.Random, data: bytes) -> bytes:
    content = bytearray(data)
    for _ in range(rng.randrange(1, 6)):
        start = rng.randrange(len(content) + 1)
        end = min(len(content), start + rng.choice([0, 1, 1, 8, 200]))
        cut = content[start:end]
        content[start:end] = rng.choice([rng.randbytes(rng.randrange(9)), cut + cut, b"", cut[::-1]])
    return bytes(content)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cases", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    logging.disable(logging.WARNING)  # a warning for each case
    datasets.disable_progress_bars()
    outcomes: Counter[str] = Counter()
    for case in range(args.cases):
        rng = random.Random(f"{args.seed}-{case}")
        with tempfile.TemporaryDirectory() as folder:
            try:
                outcomes[(bad_row_case if case % 2 == 0 else damaged_file_case)(rng, Path(folder))] += 1
            except Exception:  # any exception but InputError is a failure
                outcomes["failure"] += 1
                if outcomes["failure"] <= 5:
                    print(f"case {case}:\n{traceback.format_exc()}")
    report = {
        "cases": args.cases,
        "bad_rows_reported": outcomes["row"],
        "damaged_files_read": outcomes["file read"],
        "damaged_files_refused": outcomes["file refused"],
        "failures": outcomes["failure"],
    }
    print(json.dumps(report))


if __name__ == "__main__":
    main()
