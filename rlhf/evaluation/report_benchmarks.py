"""Tables of the report from benchmark.json, and the benchmarks of the paper that it lacks."""

import re
from typing import Any

from rlhf.evaluation.benchmark import compared
from rlhf.evaluation.report_parts import METRIC, METRIC_GAIN, Column, Table, Unit, without_paths
from rlhf.runs.system_names import label

# Benchmarks of the paper's sections 4.2 and 4.3 and appendices D and E: what the name of a task begins with, and the
# name for readers.
PAPER_TASKS = {
    "truthfulqa": "TruthfulQA",
    "toxicity|realtoxicity|rtp": "RealToxicityPrompts",
    "winogender": "Winogender",
    "crows": "CrowS-Pairs",
    "drop": "DROP",
    "quac": "QuAC",
    "squad": "SQuADv2",
    "hellaswag": "HellaSwag",
    "rte": "RTE",
    "sst": "SST-2",
    "wsc": "WSC",
    "wmt15|wmt-15": "WMT15 fr-en",
    "cnn": "CNN/DM",
    "tldr|tl_dr": "TL;DR",
}


def benchmarks(benchmark: dict[str, Any] | None) -> Table:
    systems = (benchmark or {}).get("systems", [])
    return _metrics(benchmark, "tasks", "benchmarks", "Benchmarks", METRIC, "", {name: label(name) for name in systems})


def benchmark_differences(benchmark: dict[str, Any] | None) -> Table:
    pairs = compared((benchmark or {}).get("systems", []))
    labels = {f"{after} - {before}": f"{label(after)} - {label(before)}" for after, before in pairs}
    note = "Paired by item. Bold where the 95 % interval excludes 0."
    return _metrics(
        benchmark, "differences", "benchmark_differences", "Benchmarks, differences", METRIC_GAIN, note, labels
    )


def _metrics(
    benchmark: dict[str, Any] | None, key: str, name: str, title: str, unit: Unit, note: str, labels: dict[str, str]
) -> Table:
    """Returns a row for each metric, and a column for each of `labels` (key in the JSON -> title) that has numbers."""
    tasks = (benchmark or {}).get(key) or {}
    values = [numbers for metrics in tasks.values() for numbers in metrics.values()]
    present = [key for key in labels if any(key in numbers for numbers in values)]
    rows = [
        [task, metric, *(numbers.get(key) for key in present)]
        for task, metrics in tasks.items()
        for metric, numbers in metrics.items()
    ]
    columns = (Column("task"), Column("metric"), *(Column(labels[key], unit) for key in present))
    return Table(name, title, columns, rows, note)


def benchmark_notes(benchmark: dict[str, Any] | None) -> Table:
    rows = [[task, without_paths(str(note))] for task, note in ((benchmark or {}).get("notes") or {}).items()]
    return Table("benchmark_notes", "How the benchmarks were scored", (Column("task"), Column("note")), rows)


def missing_benchmarks(benchmark: dict[str, Any] | None) -> list[str]:
    """Returns a sentence with the benchmarks of the paper that were not run; [] if all were."""
    done = [task.lower() for task in (benchmark or {}).get("tasks") or {}]
    missing = [
        name for pattern, name in PAPER_TASKS.items() if not any(re.match(rf"(?:{pattern})", task) for task in done)
    ]
    return [f"Benchmarks of the paper that were not run: {', '.join(missing)}."] if missing else []
