"""Evaluation in numbers: agreement with lm-eval, time, coverage of the intervals, and AUC of the toxicity scorers.

    python benchmarks/evaluation.py
    python benchmarks/evaluation.py --parts coverage --samples 1000

Each part is one function that returns its keys of the JSON on the last line; a part that cannot run here, for lack of a
model or data, leaves its keys out:

    mc1_difference, mc2_difference   TruthfulQA: our number minus that of lm-eval's own task on the same rows
    crows_difference                 CrowS-Pairs: likewise
    seconds_three_systems            three systems on 500 sandbox prompts with two judges
    coverage                         statistic -> number of prompts -> share of 95 % intervals that hold the true value
    toxicity_auc                     scorer -> area under the ROC curve on labeled rows
"""

import argparse
import json
import runpy
from collections.abc import Callable
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent


def coverage(args: argparse.Namespace) -> dict[str, Any]:
    """Returns the coverage of each statistic at each number of prompts, see interval_coverage.py."""
    tables = runpy.run_path(str(HERE / "interval_coverage.py"))["tables"]
    table = tables(args.samples, icc=0.3, seed=args.seed)
    return {
        "coverage": {
            name: {clusters: cell["coverage"] for clusters, cell in cells.items()} for name, cells in table.items()
        }
    }


PARTS: dict[str, Callable[[argparse.Namespace], dict[str, Any]]] = {"coverage": coverage}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS), help="Parts to run. Default: all.")
    parser.add_argument("--samples", type=int, default=2000, help="Simulated data sets for each cell of `coverage`.")
    parser.add_argument("--seed", type=int, default=0, help="Seed of the simulation.")
    args = parser.parse_args()
    results: dict[str, Any] = {}
    for part in args.parts:
        results |= PARTS[part](args)
    print(json.dumps(results))


if __name__ == "__main__":
    main()
