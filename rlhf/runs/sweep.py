"""A grid of runs of one stage, one after the other: `rlhf ppo mine --sweep kl_coef=0.02,0.05 seed=0,1,2`.

A point of the grid is a run with a folder of its own, named by its settings: runs/mine/ppo-sweep/kl_coef-0.02_seed-0,
with the stage in ppo/ and what was asked for in point.json. The same command goes on where it was stopped: finished
points are skipped, and one that was stopped resumes from its last checkpoint.
"""

import itertools
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import psutil

from rlhf.errors import InputError
from rlhf.runs.differences import runs_table
from rlhf.runs.launch import names_several_machines
from rlhf.runs.listing import described_object, find_runs, read_stage
from rlhf.runs.settings import SAME_RUN, differing

STAGES = ("pretrain", "sft", "reward", "ppo")
OPTION = "--sweep"
FILE = "point.json"
INTERRUPTED = 130  # exit code of a stage after Ctrl-C
NOT_SWEPT = {
    "resume_from_checkpoint": "finished points are skipped, and others resume by themselves",
    "overwrite_output_dir": "finished points are skipped. Delete a point's folder to run it again",
    "push_to_hub": "each point would replace the one before. Push one later, with rlhf push",
}

Grid = dict[str, list[str]]


@dataclass(frozen=True)
class Point:
    """One run of a grid.

    Attributes:
        name: of its folder, such as kl_coef-0.02_seed-0.
        folder: of the stage, output_dir.
        arguments: options that are added to the command.
        options: resolved options of the stage, to recognize it by.
        checkpoint: True if there is a checkpoint to go on from.
    """

    name: str
    folder: Path
    arguments: list[str]
    options: dict[str, Any]
    checkpoint: bool

    @property
    def finished(self) -> bool:
        return (self.folder / "result.json").exists() and read_stage(self.folder).finished


def run_sweep(stage: str, script: Path, options: Sequence[str], words: Sequence[str], command: Sequence[str]) -> None:
    """Runs the points of a grid, prints their table, and exits with code 1 if a point has failed.

    Args:
        stage: such as ppo.
        script: of the stage.
        options: of the stage, without the sweep.
        words: of the sweep: `kl_coef=0.02,0.05`, `seed=0,1,2`.
        command: `rlhf ppo mine ...` without the sweep, as a list of arguments for Python.

    Raises:
        InputError: an option or a value is wrong, or a point's folder holds another run. Nothing has been started then.
    """
    if stage not in STAGES:
        raise InputError(f"{OPTION} is for stages that train: {', '.join(STAGES)}. Run {stage} once for each value.")
    if names_several_machines():
        raise InputError(f"{OPTION} runs on one machine, and NNODES is {os.environ['NNODES']}. Unset NNODES.")
    if "--smoke" in options:
        raise InputError(f"--smoke tries one run, and {OPTION} runs many. Leave one of the two out.")
    grid = read_grid(words)
    with ProcessPoolExecutor(1, get_context("spawn"), _ignore_interrupts) as pool:  # the libraries stay out of this one
        points = pool.submit(find_points, stage, str(script), list(options), grid).result()
    for point in points:
        check_point(point)
    failed = {}
    for number, point in enumerate(points, 1):
        title = f"point {number} of {len(points)}: {point.name}"
        if point.finished:
            print(f"\n{title} is finished already", flush=True)
            continue
        print(f"\n{title}", flush=True)
        code = run_point(point, command)
        if code == INTERRUPTED:
            print("\nThe sweep was stopped. The same command goes on with it.", file=sys.stderr)
            sys.exit(INTERRUPTED)
        if code:
            failed[point.name] = code
    folder = points[0].folder.parent.parent
    print(f"\n{table(points)}\n\nnext      rlhf report {folder}", flush=True)
    if failed:
        named = ", ".join(f"{name} (exit code {code})" for name, code in failed.items())
        print(f"error: {len(failed)} of {len(points)} points failed: {named}. The same command runs them again.",
              file=sys.stderr)  # fmt: skip
        sys.exit(1)


# ---- The grid


def take_sweep(args: Sequence[str]) -> tuple[list[str], list[str]]:
    """Returns the words after `--sweep`, up to the next option, and the other arguments."""
    at = next(i for i, arg in enumerate(args) if arg.partition("=")[0] == OPTION)
    first = [args[at].partition("=")[2]] if "=" in args[at] else []
    words = list(itertools.takewhile(lambda arg: not arg.startswith("--"), args[at + 1 :]))
    return first + words, [*args[:at], *args[at + 1 + len(words) :]]


def read_grid(words: Sequence[str]) -> Grid:
    """Returns option -> values of words such as `kl_coef=0.02,0.05`.

    Raises:
        InputError: a word has another form, an option comes twice, or is one that tells no runs apart.
    """
    grid: Grid = {}
    for word in words:
        name, equals, text = word.partition("=")
        name, values = name.replace("-", "_"), text.split(",")
        if not equals or not re.fullmatch(r"\w+", name) or "" in values:
            raise InputError(f"{OPTION} {word}: write an option and its values as kl_coef=0.02,0.05,0.1.")
        if re.search(r"[\[\]{}]", text):
            raise InputError(
                f"{OPTION} {word}: a value is one word. Put lists and mappings into YAMLs, and run each of them."
            )
        if name in (*SAME_RUN, "config", "accelerate", "push_to_hub"):
            raise InputError(f"{OPTION} {word}: {name} cannot differ among points. Leave it out of the sweep.")
        if name in grid:
            raise InputError(f"{OPTION} has {name} twice. Write its values once: {name}=A,B.")
        grid[name] = values
    if not grid:
        raise InputError(f"{OPTION} needs options with values, such as kl_coef=0.02,0.05,0.1 seed=0,1,2.")
    return grid


def find_points(stage: str, script: str, options: list[str], grid: Grid) -> list[Point]:
    """Returns the points of a grid, after the stage's own checks of each. Loads the libraries of the stage.

    Raises:
        InputError: the stage refuses the options, or those of a point; or two points have the same values.
    """
    from rlhf.runs.artifacts import resolved_config
    from rlhf.runs.parsed_options import parsed_options, value_of
    from rlhf.runs.resume import complete_checkpoints

    own = _merged(map(resolved_config, parsed_options(script, options)))
    for name, reason in NOT_SWEPT.items():
        if str(own.get(name) or False).lower() != "false":
            raise InputError(f"{name} does not go with {OPTION}: {reason}. Leave it out.")
    points: dict[str, Point] = {}
    for values in itertools.product(*grid.values()):
        arguments = [f"--{name}={value}" for name, value in zip(grid, values, strict=True)]
        try:
            configs = parsed_options(script, [*options, *arguments])
        except InputError as error:
            raise InputError(f"{OPTION} {' '.join(arguments).replace('--', '')}: {error}") from error
        name = point_name({name: value_of(configs, name) for name in grid})
        if name in points:
            raise InputError(f"{OPTION} has the point {name} twice. Write each value once.")
        folder = Path(f"{own['output_dir']}-sweep") / name / stage
        resolved, checkpoint = _merged(map(resolved_config, configs)), bool(complete_checkpoints(folder))
        points[name] = Point(name, folder, [f"--output_dir={folder}", *arguments], resolved, checkpoint)
    return list(points.values())


def _merged(mappings: Iterable[dict[str, Any]]) -> dict[str, Any]:
    return {name: value for mapping in mappings for name, value in mapping.items()}


def point_name(settings: Mapping[str, Any]) -> str:
    """Returns the name of a point's folder: {"kl_coef": 0.02, "seed": 0} is kl_coef-0.02_seed-0.

    Raises:
        InputError: it is too long for a folder.
    """
    texts = {name: "+".join(map(str, v)) if isinstance(v, list) else str(v) for name, v in settings.items()}
    parts = [f"{name}-{re.sub(r'[^A-Za-z0-9.+-]+', '-', text).strip('-.')}" for name, text in texts.items()]
    if len("_".join(parts)) > 200:
        raise InputError(f"{OPTION} {'_'.join(parts)[:60]}… is too long for the name of a folder. Sweep fewer options.")
    return "_".join(parts)


def check_point(point: Point) -> None:
    """Refuses to take a folder for a point that holds another run.

    Raises:
        InputError: the options differ, or no sweep has written there.
    """
    if not point.folder.exists():
        return
    written, _ = described_object(point.folder.parent / FILE)
    theirs = (written or {}).get("options")
    remedy = "Pass another --output_dir, or delete that folder"
    if not isinstance(theirs, dict):
        raise InputError(f"{point.folder} exists, and no sweep has written it. {remedy}.")
    for name in differing(theirs, point.options):
        raise InputError(
            f"{point.folder} is of a sweep with {name} {theirs.get(name)}, and this one has {point.options.get(name)}. "
            f"{remedy}."
        )


# ---- Running


def run_point(point: Point, command: Sequence[str]) -> int:
    """Runs a point in a process of its own; returns its exit code, `INTERRUPTED` if this process was told to stop."""
    point.folder.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps({"name": point.name, "options": point.options}, indent=2, default=str)
    (point.folder.parent / FILE).write_text(text + "\n", encoding="utf-8")
    resume = ["--resume_from_checkpoint=true"] if point.checkpoint else []
    with subprocess.Popen([*command, *point.arguments, *resume]) as process, _passing_signals_to(process) as received:
        code = process.wait()
    return INTERRUPTED if received else code


@contextmanager
def _passing_signals_to(process: subprocess.Popen) -> Iterator[list[int]]:
    """Lets the stage end by itself after Ctrl-C, which it gets as well, and after SIGTERM, which is passed to it."""
    received: list[int] = []

    def note(number: int, frame: Any) -> None:
        received.append(number)
        with suppress(psutil.Error):  # it has just ended
            launcher = psutil.Process(process.pid)  # waits for the processes of the stage, and has no handler itself
            for member in launcher.children(recursive=True) or [launcher] if number == signal.SIGTERM else []:
                member.send_signal(number)

    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _ignore_interrupts() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def table(points: Sequence[Point]) -> str:
    """Returns the table of `rlhf runs` for the points of a grid."""
    names = [point.name for point in points]
    runs = {run.name: run for run in find_runs(points[0].folder.parent.parent)}
    return runs_table([runs[name] for name in names if name in runs])
