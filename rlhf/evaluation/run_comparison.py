"""The page that compares several runs: results, numbers over seeds, paired win rates, curves on top of each other."""

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rlhf import plots
from rlhf.errors import InputError
from rlhf.evaluation.report import CONTROL, page
from rlhf.evaluation.report_figures import intervals
from rlhf.evaluation.report_parts import PERCENT, Column, Figure, Part, Section, Table, Unit
from rlhf.evaluation.run_seeds import groups_of, over_seeds, seeds_table
from rlhf.evaluation.run_wins import win_parts
from rlhf.runs.artifacts import read_metrics
from rlhf.runs.differences import differing_settings, settings_text
from rlhf.runs.listing import Run, date, is_stage
from rlhf.runs.results import Result
from rlhf.runs.stage_report import PANELS, points, with_episodes

MARK = '<meta name="generator" content="rlhf report">'  # in each page of this module, and in no other
LONGEST = 80  # characters of a file's name that is made of the runs'


def write_comparison(runs: Sequence[Run], output: str | Path | None = None, folder: Path | None = None) -> Path:
    """Writes the page that compares runs; returns its path.

    Args:
        output: file; None: compare.html in `folder`, or a name made of the runs' in the folder that holds them all.
        folder: in which the runs were found, if all of its runs are compared.

    Raises:
        InputError: `output` is a folder, or a file that this function has not written.
    """
    if output is None:
        output = folder / "compare.html" if folder else default_path(runs)
    path = Path(output)
    check_output(path)
    title = f"{len(runs)} runs compared"
    text = page(title, lead(runs), sections(runs), files=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(CONTROL.sub("\ufffd", text), encoding="utf-8", errors="replace")
    return path


def default_path(runs: Sequence[Run]) -> Path:
    """Returns compare-<names>.html in the folder that holds all runs; many names become a number and a digest."""
    folders = [run.folder.absolute() for run in runs]
    home = Path(os.path.commonpath([folder.parent for folder in folders]))
    home = home.relative_to(Path.cwd()) if home.is_relative_to(Path.cwd()) else home
    names = "-".join(folder.name for folder in folders)
    if len(names) > LONGEST:
        digest = hashlib.blake2b("\n".join(sorted(map(str, folders))).encode(), digest_size=4).hexdigest()
        names = f"{len(runs)}-runs-{digest}"
    return home / f"compare-{names}.html"


def check_output(path: Path) -> None:
    """Refuses to overwrite anything but an earlier comparison.

    Raises:
        InputError: see `write_comparison`.
    """
    if path.suffix != ".html" or path.is_dir():
        raise InputError(f"output is {path}. Name an .html file.")
    inside = path.parent.is_dir() and is_stage(path.parent, os.listdir(path.parent))
    if path.name == "report.html" and (inside or (path.parent / "summary.json").exists()):
        raise InputError(f"output {path} is the report of one run. Name another file.")
    if path.exists() and MARK not in path.read_text(encoding="utf-8", errors="replace"):
        raise InputError(f"output {path} exists, and is no comparison of runs. Name another file.")


def lead(runs: Sequence[Run]) -> str:
    """Returns the first sentences: how many runs of which recipes and stages."""
    recipes = sorted({run.recipe for run in runs if run.recipe})
    stages = [stage for stage in PANELS if any(stage in run.stages for run in runs)]
    of = f" of {', '.join(recipes)}" if recipes else ""
    unfinished = [run.name for run in runs if not all(run.stages[s].finished for s in PANELS if s in run.stages)]
    words = f" Not finished: {', '.join(unfinished)}." if unfinished else ""
    what = f", with the stage{'s' if len(stages) > 1 else ''} {', '.join(stages)}" if stages else ""
    return f"{len(runs)} runs{of}{what}.{words}"


def sections(runs: Sequence[Run]) -> list[Section]:
    """Returns the sections of the page."""
    groups = groups_of(runs)
    over = seeds_table(groups)
    seeds: list[Part] = [over, *_group_figure(groups)] if over.rows else []
    curves = [figure for stage in PANELS if (figure := curves_of(stage, groups)).svg]
    words = "Runs that differ in their seed alone share a color. " if over.rows else ""
    return [
        Section("Results", [results_table(runs)]),
        *([Section("Over seeds", seeds)] if seeds else []),
        Section("Who answers better", win_parts(runs)),
        *([Section("Curves", [f"{words}Validation is dashed.", *curves])] if curves else []),
    ]


def results_table(runs: Sequence[Run]) -> Table:
    """Returns the table of runs: settings that differ, date, and the number of each finished stage."""
    found = [{(stage, r.name): r for stage, r in run.results().items()} for run in runs]
    keys = dict.fromkeys(key for results in found for key in results)
    units = {key: unit_of(result) for results in found for key, result in results.items()}
    columns = (
        Column("run"),
        Column("settings that differ"),
        Column("started"),
        *(Column(f"{stage}: {name.rstrip(':')}", units[stage, name]) for stage, name in keys),
    )
    rows = [
        [run.name, settings_text(differs), date(run.started), *(_cell(results.get(key)) for key in keys)]
        for run, differs, results in zip(runs, differing_settings(runs), found, strict=True)
    ]
    note = "95 % intervals over prompts, for the models of each run: with another seed a run may lie outside."
    note = note if any(result.low is not None for results in found for result in results.values()) else ""
    return Table("runs", "Runs", columns, rows, note)


def unit_of(result: Result) -> Unit:
    """Returns the form of a number in tables; shares are in percent."""
    return PERCENT if result.share else Unit(digits=result.digits)


def _cell(result: Result | None) -> dict[str, Any] | None:
    return {"mean": result.mean, "low": result.low, "high": result.high} if result else None


def _group_figure(groups: dict[str, list[Run]]) -> list[Figure]:
    """Returns the last number that all groups have, with its interval over seeds; [] without one."""
    results = {name: [run.results() for run in members] for name, members in groups.items()}
    everywhere = [
        (stage, result.name)
        for stage, result in next(iter(results.values()))[0].items()
        if all(r.get(stage) and r[stage].name == result.name for members in results.values() for r in members)
    ]
    if not everywhere or len(groups) < 2:
        return []
    stage, title = everywhere[-1]
    unit = unit_of(next(iter(results.values()))[0][stage])
    estimates = {name: over_seeds([own[stage].mean for own in members]) for name, members in results.items()}
    rows = [
        (f"{name} ({len(groups[name])})", plots.MANY[i % len(plots.MANY)], estimate)
        for i, (name, estimate) in enumerate(estimates.items())
        if estimate
    ]
    column = Column(f"{title.rstrip(':')}, mean and interval over seeds", unit)
    return [intervals("seeds", f"{stage}: {title.rstrip(':')}, over seeds", rows, column)]


def curves_of(stage: str, groups: dict[str, list[Run]]) -> Figure:
    """Draws the metrics of a stage, with the curves of all runs in one panel each; runs of a group share a color."""
    logs = {
        run.name: with_episodes(read_metrics(run.stages[stage].folder))
        for members in groups.values()
        for run in members
        if stage in run.stages
    }
    kinds = {kind for kind, rows in logs.values() if rows}
    x = kinds.pop() if len(kinds) == 1 else "step"
    panels = []
    for title, metrics in PANELS[stage].items():
        names = list(metrics.values())
        shown = [names[0], *(name for name in names[1:] if name.startswith("eval_"))]
        lines = [
            plots.Line(name if len(members) == 1 else f"{name} ({len(members)} runs)", *line, metric != names[0])
            for name, members in groups.items()
            for run in members
            for metric in shown
            if run.name in logs and (line := points(logs[run.name][1], x, metric))[0]
        ]
        panels += [(title, lines)] if lines else []
    svg = plots.overlaid(panels, f"{x}s", columns=2) if panels else None
    columns = (Column("panel"), Column("line"), Column(x), Column("value"))
    return Figure(stage, svg, Table(f"curves_{stage}", stage, columns, []))
