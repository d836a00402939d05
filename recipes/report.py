"""Compares runs on one page: curves on top of each other, paired win rates, numbers over seeds. Or one run's reports.

    rlhf report runs/a runs/b               # writes runs/compare-a-b.html
    rlhf report runs/mine/ppo-sweep         # all runs in a folder: runs/mine/ppo-sweep/compare.html
    rlhf report runs/a                      # one run: makes its own reports again

The page needs no other file. Win rates need runs that `rlhf evaluate` has asked the same prompts; their intervals are
over prompts. Runs that differ only in seeds are grouped, and their means have intervals over seeds. A file that is not
such a page is never overwritten. Loads no model.
"""

from dataclasses import dataclass, field, replace
from pathlib import Path

from rlhf.cli import parse, run
from rlhf.errors import InputError
from rlhf.evaluation.report import write_report
from rlhf.evaluation.run_comparison import write_comparison
from rlhf.runs.listing import Run, find_runs
from rlhf.runs.stage_report import NAME, PANELS, write_stage_report


@dataclass
class ReportArguments:
    runs: list[str] = field(metadata={"help": "Folders of runs, of stages, or of several runs, separated by spaces."})
    output: str | None = field(
        default=None,
        metadata={
            "help": "The .html file of a comparison. None: compare.html in the one folder that was passed, or "
            "compare-<names>.html in the folder that holds the runs."
        },
    )


def main() -> None:
    (args,) = parse(ReportArguments, positional="runs")
    runs = merged([run for name in args.runs for run in runs_of(name)])
    if not runs:
        raise InputError("Only pages were passed. Pass folders of runs, such as runs/mine; rlhf runs lists them.")
    if len(runs) > 1:
        alone = len(args.runs) == 1
        print(write_comparison(named_apart(runs), args.output, Path(args.runs[0]) if alone else None))
    elif args.output is not None:
        raise InputError(f"output is for a comparison; {runs[0].folder} has its own report. Leave it out.")
    else:
        print("\n".join(map(str, reports_of(runs[0]))))


def runs_of(name: str) -> list[Run]:
    """Returns the run in a folder, or all runs below it; [] for a page, which a shell's * brings along.

    Raises:
        InputError: there is no such folder, or no run in it.
    """
    if name.endswith(".html") and Path(name).is_file():
        return []
    runs = [run for run in find_runs(name) if run.stages]
    own = [run for run in runs if run.folder in (Path(name), Path(name).parent)]
    if not runs:
        raise InputError(f"{name} holds no run. Pass folders such as runs/mine; rlhf runs lists them.")
    return own or runs


def merged(runs: list[Run]) -> list[Run]:
    """Returns each run once, with all stages of it that were passed: runs/a/sft runs/a/ppo is one run."""
    found: dict[Path, Run] = {}
    for one in runs:
        before = found.get(one.folder.resolve())
        found[one.folder.resolve()] = one if before is None else replace(one, stages=before.stages | one.stages)
    return list(found.values())


def named_apart(runs: list[Run]) -> list[Run]:
    """Returns runs with names that differ: those of their folders, with as many of the folders above as it takes."""
    parts = [run.folder.resolve().parts for run in runs]
    depth = next(n for n in range(1, max(map(len, parts)) + 1) if len({p[-n:] for p in parts}) == len(parts))
    return [Run("/".join(p[-depth:]), run.folder, run.stages, run.summary) for p, run in zip(parts, runs, strict=True)]


def reports_of(run: Run) -> list[Path]:
    """Makes the reports of one run again, of the stages and of their evaluation; returns the pages.

    Raises:
        InputError: there is nothing to report, or a file is damaged.
    """
    pages = []
    for name, stage in run.stages.items():
        if name in PANELS:
            write_stage_report(stage.folder, name)
            pages.append(stage.folder / NAME)
    if any((run.folder / name).exists() for name in ("summary.json", "benchmark.json")):
        pages.append(write_report(run.folder))
    if not pages:
        raise InputError(f"{run.folder} has nothing to report. Train a stage, or run rlhf evaluate.")
    return pages


if __name__ == "__main__":
    run(main)
