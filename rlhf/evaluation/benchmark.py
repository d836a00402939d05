"""Benchmarks of several adapters on one base: scores of each item, their means, and differences paired by item.

A task is prepared first, which reads its data and raises what the user can correct, and run after the base is loaded:

    prepare(args: TaskArguments) -> Task
    Task.run(shared, tokenizer, systems) -> {metric: {system: ItemScores}}

Scores of a task are written as soon as a system has finished it, so a killed run goes on after the last finished one.
Estimates are made here and nowhere else.
"""

import json
import logging
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerBase

from rlhf.errors import InputError
from rlhf.models.shared_base import SharedBase
from rlhf.runs.artifacts import is_first_process
from rlhf.runs.digests import json_digest
from rlhf.runs.markdown import markdown_table
from rlhf.statistics import Estimate, cluster_difference, cluster_mean, cluster_share, share_difference

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class TaskArguments:
    """Options that a task may read.

    Attributes:
        name: of the task, as the user gave it.
        data: file or folder in the benchmark's published format; None reads the Hub.
        limit: items, at most; None takes all.
        batch_size: sequences in a forward pass.
        seed: of few-shot examples and of sampling.
        num_fewshot: examples in a prompt; None keeps the number of the task's definition.
        options: task -> option -> value, for options of a single task.
    """

    name: str
    data: Path | None = None
    limit: int | None = None
    batch_size: int = 16
    seed: int = 0
    num_fewshot: int | None = None
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class ItemScores:
    """Scores of one system on the items of a task, in an order that all systems share.

    Attributes:
        values: [N] numbers; None for an item without a verdict.
        clusters: [N] keys, equal for items that are alike, such as questions about one passage.
        share: True if the values lie in [0, 1], so that intervals must, too.
    """

    values: Sequence[float | None]
    clusters: Sequence[str | int]
    share: bool = True


Systems = Mapping[str, str | None]  # name -> adapter of the shared base; None is the base
Scores = dict[str, dict[str, ItemScores]]  # metric -> system -> scores


@dataclass(frozen=True)
class Task:
    """A benchmark whose data is at hand.

    Attributes:
        name: key in benchmark.json.
        note: scorer, version and hash; few-shot format; number of items.
        settings: JSON values that decide on the scores: digests of the data, versions, options.
        run: (shared base, tokenizer, systems) -> scores.
    """

    name: str
    note: str
    settings: dict[str, Any]
    run: Callable[[SharedBase, PreTrainedTokenizerBase, Systems], Scores]


def run_tasks(
    tasks: Sequence[Task],
    shared: SharedBase,
    tokenizer: PreTrainedTokenizerBase,
    systems: Systems,
    identities: Mapping[str, str],
    folder: Path,
) -> dict[str, Any]:
    """Runs each task for each system whose scores are not in `folder` yet; returns the contents of benchmark.json.

    Numbers of other tasks that benchmark.json has of the same systems stay in it.

    Args:
        systems: the first one is the baseline of the differences, see `compared`.
        identities: system -> digest of its weights and tokenizer. Scores of another digest are computed again.
        folder: gets items/<task>/<system>.json and benchmark.json, after each task.
    """
    scores: dict[str, Scores] = {}
    earlier = _earlier_tasks(folder / "benchmark.json", systems, identities, {task.name for task in tasks})
    for task in tasks:
        scores[task.name] = {}
        for name, adapter in systems.items():
            path = folder / "items" / _file_name(task.name) / f"{_file_name(name)}.json"
            digest = json_digest([task.settings, identities[name]])
            kept = _read_scores(path, digest)
            if kept is None:
                logger.info("%s: %s", task.name, name)
                results = task.run(shared, tokenizer, {name: adapter})
                kept = {metric: by_system[name] for metric, by_system in results.items()}
                _write_scores(path, digest, kept)
            for metric, values in kept.items():
                scores[task.name].setdefault(metric, {})[name] = values
        benchmark = summarize(list(systems), scores, {task.name: task.note for task in tasks if task.name in scores})
        for part, by_task in earlier.items():
            benchmark[part] = by_task | benchmark[part]
        benchmark["identities"] = {name: identities[name] for name in systems}
        write_json(folder / "benchmark.json", benchmark)
    return benchmark


def _earlier_tasks(
    path: Path, systems: Iterable[str], identities: Mapping[str, str], again: Iterable[str]
) -> dict[str, dict[str, Any]]:
    """Returns part of benchmark.json -> task -> its numbers, for tasks that are not run again.

    Those of other systems or weights cannot stand in one table with the new ones; leaving them out is logged.
    """
    try:
        before = json.loads(path.read_text(encoding="utf-8"))
        parts = {
            part: {task: value for task, value in before[part].items() if task not in set(again)}
            for part in ("tasks", "differences", "notes")
        }
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}
    same = [*before["systems"]] == [*systems] and before.get("identities") == {
        name: identities[name] for name in systems
    }
    if same or not parts["tasks"]:
        return parts if same else {}
    logger.warning(
        "%s leaves out %s, which other systems or weights were measured on; run these tasks again, too",
        *(path.name, ", ".join(parts["tasks"])),
    )
    return {}


def summarize(systems: Sequence[str], scores: Mapping[str, Scores], notes: Mapping[str, str]) -> dict[str, Any]:
    """Returns the contents of benchmark.json: estimates of each metric, and the differences of `compared`."""
    return {
        "systems": list(systems),
        "tasks": {
            task: {
                metric: {system: _plain(estimate(by_system[system])) for system in systems if system in by_system}
                for metric, by_system in metrics.items()
            }
            for task, metrics in scores.items()
        },
        "differences": {
            task: {
                metric: {
                    f"{after} - {before}": _plain(difference(by_system[after], by_system[before]))
                    for after, before in compared(systems)
                    if after in by_system and before in by_system
                }
                for metric, by_system in metrics.items()
            }
            for task, metrics in scores.items()
        },
        "notes": dict(notes),
    }


def compared(systems: Sequence[str]) -> list[tuple[str, str]]:
    """Returns (after, before): each system with the first one, and what PPO changed in the SFT model."""
    pairs = [(system, systems[0]) for system in systems[1:]]
    if {"ppo", "sft"} <= set(systems) and ("ppo", "sft") not in pairs:
        pairs.append(("ppo", "sft"))
    return pairs


def estimate(scores: ItemScores) -> Estimate | None:
    """Returns the mean over the items that have a score; None if none has."""
    pairs = [(value, key) for value, key in zip(scores.values, scores.clusters, strict=True) if value is not None]
    if not pairs:
        return None
    values, keys = zip(*pairs, strict=True)
    return (cluster_share if scores.share else cluster_mean)(values, keys)


def difference(a: ItemScores, b: ItemScores) -> Estimate | None:
    """Returns the mean of `a` minus that of `b` over the items that have both scores; None if there are none."""
    if list(a.clusters) != list(b.clusters):
        raise ValueError("The two systems were scored on different items. Run the task again for both.")
    triples = [
        (x, y, key) for x, y, key in zip(a.values, b.values, a.clusters, strict=True) if x is not None and y is not None
    ]
    if not triples:
        return None
    xs, ys, keys = zip(*triples, strict=True)
    if a.share and b.share:
        return share_difference(xs, ys, keys, keys)
    return cluster_difference(xs, ys, keys)


def table(benchmark: Mapping[str, Any]) -> str:
    """Returns the numbers as a Markdown table: a row for each metric, a column for each system and each difference."""
    systems = benchmark["systems"]
    pairs = [f"{after} - {before}" for after, before in compared(systems)]
    header = ["task", "metric", *systems, *pairs, "items"]
    rows = []
    for task, metrics in benchmark["tasks"].items():
        for metric, estimates in metrics.items():
            differences = benchmark["differences"][task][metric]
            cells = [estimates.get(system) for system in systems]
            changes = [differences.get(pair) for pair in pairs]
            items = max((cell["n"] for cell in cells if cell), default=0)
            rows.append([task, metric, *map(_interval, cells), *(_interval(change, "+") for change in changes), items])
    return markdown_table(header, rows)


def unknown_task(name: str, known: Iterable[str]) -> InputError:
    """Returns the error for a task that does not exist."""
    return InputError(
        f"Task {name} does not exist. Pass one of {', '.join(known)}, a task of lm-eval (`lm-eval ls tasks` lists "
        "them), or the path of a task file in lm-eval's YAML."
    )


def write_json(path: Path, value: Any) -> None:
    """Writes a JSON file in one step, in the first process only: a killed run leaves the old file or the new one."""
    if not is_first_process():
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_suffix(".tmp")
    draft.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
    os.replace(draft, path)


def _read_scores(path: Path, digest: str) -> dict[str, ItemScores] | None:
    """Returns metric -> scores of a finished task and system; None if it is not finished or had other settings."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if content["digest"] != digest:
            return None
        return {metric: ItemScores(**scores) for metric, scores in content["metrics"].items()}
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _write_scores(path: Path, digest: str, scores: Mapping[str, ItemScores]) -> None:
    metrics = {
        metric: {"values": _numbers(s.values), "clusters": list(s.clusters), "share": s.share}
        for metric, s in scores.items()
    }
    write_json(path, {"digest": digest, "metrics": metrics})


def _numbers(values: Iterable[float | None]) -> list[float | None]:
    """Returns plain floats; what is not finite is None, since JSON has no NaN."""
    return [None if value is None or not np.isfinite(value) else float(value) for value in values]


def _file_name(name: str) -> str:
    return "".join(letter if letter.isalnum() or letter in "-_." else "_" for letter in name)


def _plain(value: Estimate | None) -> dict[str, Any] | None:
    return asdict(value) if value else None


def _interval(cell: Mapping[str, Any] | None, sign: str = "") -> str:
    if cell is None:
        return ""
    if cell["low"] is None:
        return f"{cell['mean']:{sign}.3f}"
    return f"{cell['mean']:{sign}.3f} [{cell['low']:{sign}.3f}, {cell['high']:{sign}.3f}]"
