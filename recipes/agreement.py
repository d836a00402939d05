"""Prints as JSON how much the labelers of a data set agree with each other.

    rlhf agreement --dataset_name path/to/comparisons.jsonl

Reads every split of the source: comparisons with a `labeler_id`, or votes. `pairwise_agreement` is the share of pairs
of labelers with the same verdict on the same two completions, with its 95 % interval clustered by prompt.
"""

import json

from rlhf.cli import parse, run
from rlhf.data import DataArguments
from rlhf.data.bad_rows import BadRows
from rlhf.data.loading import checked_rows, find_rows
from rlhf.errors import InputError
from rlhf.evaluation.agreement import agreement_report


def main() -> None:
    (args,) = parse(DataArguments)
    bad_rows = BadRows(args.on_bad_rows, output_dir=None)
    splits = find_rows("votes", args)
    comparisons = (row for rows in splits.values() for row in checked_rows("votes", rows(), args, bad_rows))
    report = agreement_report(comparisons)
    bad_rows.report()
    if not report["labelers"]:
        raise InputError(f"No row of {args.dataset_name} names a labeler. Add a column labeler_id to the comparisons.")
    print(json.dumps(report, indent=2))


if __name__ == "__main__":
    run(main)
