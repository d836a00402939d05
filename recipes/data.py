"""Prepares a data set of prompts, with a card, from raw prompts (arXiv 2203.02155, section 3.2, appendix A.2).

    rlhf data sandbox
    rlhf data --dataset_name path/to/prompts --model_name_or_path me/model --output_dir runs/mine/data

Reads any source that stages read, and splits its conversations as they do. Writes to output_dir: prompts/ with train,
validation and test as Parquet files (a dataset_name for PPO), card.md, result.json with the card's numbers, and
skipped_rows.jsonl. Of each split of the source, the first dataset_size rows are read.
"""

import shutil
import time
from pathlib import Path

from rlhf.cli import parse, run
from rlhf.data import DataArguments
from rlhf.data.bad_rows import BadRows
from rlhf.data.card import DataCard
from rlhf.data.encode import encode_prompt
from rlhf.data.loading import rows_by_split
from rlhf.data.personal import PersonalData
from rlhf.data.prepare import PrepareArguments, decide
from rlhf.data.shards import ShardWriter
from rlhf.data.splits import SPLITS
from rlhf.errors import InputError
from rlhf.models.loading import load_tokenizer
from rlhf.runs.artifacts import start_run, write_result
from rlhf.runs.folders import check_output


def main() -> None:
    started = time.monotonic()
    args, data_args = parse(PrepareArguments, DataArguments)
    personal = PersonalData(args.phone_region) if args.personal_data == "drop" else None
    tokenizer = load_tokenizer(args.model_name_or_path)
    check_output(args.output_dir, args, data_args)
    start_run(args.output_dir, args, data_args, stage="data")

    # Decide row by row
    folder = Path(args.output_dir)
    unfinished = folder / "prompts.unfinished"
    shutil.rmtree(unfinished, ignore_errors=True)
    bad_rows, card = BadRows(data_args.on_bad_rows, args.output_dir), DataCard()
    writers = {name: ShardWriter(unfinished / name) for name in SPLITS}
    found = rows_by_split("prompts", data_args, bad_rows, limit=data_args.dataset_size)
    rows = (row for _, split, row in found if split is not None)
    for decision in decide(rows, args, lambda prompt: len(encode_prompt(tokenizer, prompt)), personal):
        card.add(decision)
        if decision.reason is None:
            writers[decision.split].write(decision.row)
    for writer in writers.values():
        writer.close()
    bad_rows.report()

    # Publish and report
    empty = [name for name in SPLITS if not card.kept[name]]
    if empty:
        raise InputError(
            f"No prompts are left for {' and '.join(empty)}: {card.kept.total()} of {bad_rows.rows_read} rows were "
            "kept. Give more conversations, at least 50; those with the same first message are one."
        )
    shutil.rmtree(folder / "prompts", ignore_errors=True)
    unfinished.rename(folder / "prompts")
    page = card.render(data_args.dataset_name, args, bad_rows.rows_read, len(bad_rows))
    (folder / "card.md").write_text(page, encoding="utf-8")
    seconds = round(time.monotonic() - started, 1)
    write_result(
        folder, {"rows_read": bad_rows.rows_read, "bad_rows": len(bad_rows), **card.counts(), "seconds": seconds}
    )
    print(
        f"{folder / 'prompts'}: {', '.join(f'{card.kept[name]:,} {name}' for name in SPLITS)}; see {folder / 'card.md'}"
    )


if __name__ == "__main__":
    run(main)
