"""Lists the runs in a folder: recipe, date, finished stages, result with its interval, settings that differ.

    rlhf runs                      # those in ./runs
    rlhf runs runs/mine/ppo-sweep
    rlhf runs --json | jq '.[].results'

The result is the number of the last stage that has one, with its 95 % interval over prompts: win rate, reward, accuracy
on held-out pairs, or validation loss, which has none. Only settings that may change a result are shown, and of runs on
the same base model those that differ. A folder that holds no run, or a damaged one, is listed with a word. docs/runs.md
explains the table.
"""

import json
import sys

from rlhf.command import with_one_line_errors
from rlhf.errors import InputError, PlainParser
from rlhf.runs.differences import runs_json, runs_table
from rlhf.runs.listing import find_runs


def main() -> None:
    parser = PlainParser(__doc__)
    parser.add_argument("folder", nargs="?", default="runs", help="Folder that holds runs, or one run. Default: runs.")
    parser.add_argument(
        "--json",
        action="store_true",
        help="Print JSON with all settings and numbers of each stage. Default: the table.",
    )
    args = parser.parse_args()
    runs = find_runs(args.folder)
    if args.json:
        print(json.dumps(runs_json(runs), indent=2, default=str))
        return
    if not runs:
        raise InputError(f"{args.folder} holds no run. Start one: rlhf demo, or rlhf sft <recipe>.")
    encoding = sys.stdout.encoding or "utf-8"
    print(runs_table(runs).encode(encoding, "replace").decode(encoding))


if __name__ == "__main__":
    with_one_line_errors(main)
