"""Runs that lie in a folder: their stages, how far each came, its settings and its result.

A stage's folder holds environment.json and config.yaml, which it writes first, and result.json, which it writes last. A
run is the folder of several stages that are named after themselves (runs/mine/sft, runs/mine/ppo), or else a stage's
own folder. Damaged and foreign folders are described in a word. No library is loaded.
"""

import os
import re
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rlhf.errors import InputError
from rlhf.runs.installation import recipe_names
from rlhf.runs.objects import read_object
from rlhf.runs.results import Result, result_of

STAGES = ("data", "pretrain", "sft", "reward", "ppo", "evaluate", "benchmark")
OUTDATED = "is of adapters that have changed since"
WEIGHTS = "adapter_model.safetensors"
EVALUATED = "adapters"  # in the result of an evaluation: {stage: digest of its adapter}
NOT_SEARCHED = re.compile(
    r"(old-)?checkpoint-\d+|\..*|raw|value|tensorboard|answers|verdicts|report|truthfulqa|wandb|__pycache__"
)


@dataclass(frozen=True)
class Stage:
    """A stage's folder.

    Attributes:
        name: "sft", "reward", "ppo", ...
        state: "finished", or what is wrong with it.
        started: seconds since 1970 at which it began, or was resumed.
        timed: False if it does not say when, as in older versions; `started` is then the date of a file.
        settings: config.yaml; {} if it is missing or damaged.
        result: result.json; {} if the stage has not finished.
        recipe: that it was started with; None if it is not known.
    """

    name: str
    folder: Path
    state: str
    started: float
    timed: bool
    settings: dict[str, Any]
    result: dict[str, Any]
    recipe: str | None

    @property
    def finished(self) -> bool:
        return self.state == "finished"


@dataclass(frozen=True)
class Run:
    """A run: stages by name, in the order of the recipe. Without stages, `state` says what the folder is instead."""

    name: str
    folder: Path
    stages: dict[str, Stage]
    summary: dict[str, Any] | None = None
    state: str = ""

    @property
    def recipe(self) -> str | None:
        named = next((stage.recipe for stage in self.stages.values() if stage.recipe), None)
        return named or (self.folder.name if self.folder.name in recipe_names() else None)

    @property
    def started(self) -> float:
        return max((stage.started for stage in self.stages.values()), default=0.0)

    def results(self) -> dict[str, Result]:
        """Returns the numbers of the finished stages, by stage."""
        found = {
            name: result_of(name, stage.result, self.summary) for name, stage in self.stages.items() if stage.finished
        }
        return {name: result for name, result in found.items() if result is not None}

    def last_result(self) -> Result | None:
        """Returns the number of the last stage that has one: the evaluation's, or else PPO's, ..."""
        return next(reversed(self.results().values()), None)


def find_runs(root: str | Path) -> list[Run]:
    """Returns the runs in a folder, or in the folder of one run, by name; of other folders, those directly in it.

    Raises:
        InputError: there is no such folder.
    """
    root = Path(root)
    if not root.is_dir():
        kind = "is a file" if root.exists() else "does not exist"
        raise InputError(f"{root} {kind}. Pass a folder that holds runs, such as runs.")
    stages: dict[Path, dict[str, Stage]] = {}
    seen, unreadable = set(), []
    if not os.access(root, os.R_OK | os.X_OK):
        raise InputError(f"{root} cannot be read. Check its permissions, or pass another folder.")
    for path, folders, files in os.walk(root, onerror=unreadable.append):
        folders[:] = sorted(name for name in folders if not NOT_SEARCHED.fullmatch(name))
        folder = Path(path)
        if not is_stage(folder, files):
            continue
        stage = read_stage(folder)
        run = folder.parent if folder.name == stage.name else folder
        stages.setdefault(run, {})[stage.name] = stage
        seen |= {folder, *folder.parents}
    runs = []
    for run, found in stages.items():
        evaluation = found.get("evaluate") or _beside(run, "evaluate")
        outdated = evaluation is not None and is_outdated(evaluation, run)
        if outdated and "evaluate" in found:
            found["evaluate"] = replace(found["evaluate"], state=OUTDATED)
        found = dict(sorted(found.items(), key=_order))
        runs.append(Run(_name(run, root), run, found, None if outdated else _summary(run)))
    denied = {Path(error.filename) for error in unreadable}
    for folder in sorted(root.iterdir()):
        if folder.is_dir() and folder not in seen and not NOT_SEARCHED.fullmatch(folder.name):
            runs.append(Run(_name(folder, root), folder, {}, state=_word(folder, denied)))
    return sorted(runs, key=lambda run: _parts(run.name))


def is_outdated(evaluation: Stage, run: Path) -> bool:
    """True if an adapter in a run's folder is another one than the finished evaluation had: its numbers say nothing.

    Of an adapter that was written since, as by another training or by `rlhf choose`, the digest decides. An older one
    is either the same, or was not what the evaluation read. Evaluations of earlier versions name no digests: there, the
    stages' dates decide.
    """
    if not evaluation.finished or not evaluation.timed:
        return False
    digests = evaluation.result.get(EVALUATED)
    if isinstance(digests, dict):
        return any(_differs(run / name / WEIGHTS, digest, evaluation.started) for name, digest in digests.items())
    trained = (_beside(run, name) for name in ("sft", "reward", "ppo"))
    return any(stage is not None and stage.timed and stage.started > evaluation.started for stage in trained)


def _differs(weights: Path, digest: str, since: float) -> bool:
    """True if a file was written since a time and has another digest."""
    from rlhf.runs.digests import file_digest  # loads torch, which most listings need not

    try:
        return weights.stat().st_mtime > since and file_digest(weights) != digest
    except OSError:
        return False


def _beside(run: Path, name: str) -> Stage | None:
    """Returns a stage of a run by its name; None if it is not there."""
    folder = run / name
    return read_stage(folder) if (folder / "environment.json").is_file() else None


def is_stage(folder: Path, files: list[str]) -> bool:
    """True for the folder of a stage, finished or not."""
    return "environment.json" in files or {"config.yaml", "metrics.jsonl"} <= set(files)


def read_stage(folder: Path) -> Stage:
    """Reads a stage's folder, whatever is missing or damaged in it."""
    environment, bad_environment = described_object(folder / "environment.json")
    settings, bad_settings = described_object(folder / "config.yaml")
    result, bad_result = described_object(folder / "result.json")
    if bad := [name for name in (bad_environment, bad_settings, bad_result) if name]:
        state = ", ".join(bad)
    elif result is None:
        state = _progress(folder)
    else:
        state = "finished"
    environment = environment or {}
    name = environment.get("stage") if isinstance(environment.get("stage"), str) else None
    started, recipe = environment.get("started"), environment.get("recipe")
    timed = isinstance(started, int | float)
    if not timed:
        known = [folder / name for name in ("environment.json", "config.yaml") if (folder / name).exists()]
        started = known[0].stat().st_mtime
    recipe = recipe if isinstance(recipe, str) else None
    return Stage(name or folder.name, folder, state, started, timed, settings or {}, result or {}, recipe)


def described_object(path: Path) -> tuple[dict[str, Any] | None, str]:
    """Returns what `read_object` does, and "" or what is wrong with the file, in some words."""
    try:
        return read_object(path), ""
    except OSError as error:
        return None, f"{path.name} cannot be read: {error.strerror}"
    except InputError:
        return None, f"{path.name} is damaged"


def _progress(folder: Path) -> str:
    """Returns how far a stage came that has no result."""
    checkpoints = [int(path.name.rpartition("-")[2]) for path in folder.glob("checkpoint-*") if path.name[-1].isdigit()]
    if checkpoints:
        return f"not finished, has checkpoint-{max(checkpoints)}"
    step = None
    if (folder / "metrics.jsonl").exists():
        with open(folder / "metrics.jsonl", encoding="utf-8", errors="replace") as file:
            steps = re.findall(r'^\{"step": (\d+)', file.read(), flags=re.MULTILINE)
        step = steps[-1] if steps else None
    return f"not finished, at step {step}" if step else "not finished"


def _summary(run: Path) -> dict[str, Any] | None:
    summary, _ = described_object(run / "summary.json")
    judges = (summary or {}).get("judges")
    return summary if isinstance(judges, dict) and all(isinstance(judge, dict) for judge in judges.values()) else None


def _word(folder: Path, denied: set[Path]) -> str:
    """Returns what a folder without stages is."""
    if folder in denied:
        return "cannot be read"
    if any(folder.glob("**/adapter_config.json")):
        return "an adapter of another library, or of an old version"
    return "empty" if not any(folder.iterdir()) else "no run"


def _name(run: Path, root: Path) -> str:
    return run.relative_to(root).as_posix() if root in run.parents else run.resolve().name


def _order(item: tuple[str, Stage]) -> tuple[int, str]:
    return STAGES.index(item[0]) if item[0] in STAGES else len(STAGES), item[0]


def _parts(name: str) -> list[Any]:
    """Returns a name in turn as text and as numbers, so that seed-10 comes after seed-9, and 0.002 after 0.0005."""
    return [float(part) if i % 2 else part for i, part in enumerate(re.split(r"(\d+(?:\.\d+)?(?:e[+-]?\d+)?)", name))]


def date(seconds: float) -> str:
    """Returns date and time, on this machine's clock."""
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(seconds)) if seconds else ""
