"""Paired win rates of runs that were evaluated on the same prompts.

The answers of two runs to one prompt are a pair, and the intervals count prompts as `rlhf.evaluation.preferences` does.
Scores of two evaluations are comparable if they are of one judge. It is one if both describe it alike (a reward model
has its folder in that), and it has given the same score wherever both hold the same answer to the same prompt.
"""

import logging
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from itertools import combinations
from pathlib import Path
from typing import Any

from rlhf.errors import InputError
from rlhf.evaluation.preferences import AnswerRow, compare, score_of
from rlhf.evaluation.report import read_answers
from rlhf.evaluation.report_parts import WIN_RATE, Column, Part, Points, Table
from rlhf.evaluation.report_tables import file_name
from rlhf.runs.listing import Run
from rlhf.runs.results import headline_system, judges_of
from rlhf.runs.system_names import label

logger = logging.getLogger(__name__)

ALIKE = 1e-3  # of two scores of one answer: batches of other shapes round differently


def win_parts(runs: Sequence[Run]) -> list[Part]:
    """Returns a table of win rates for each judge, and what could not be compared, in sentences."""
    answers = {run.name: rows for run in runs if (rows := _answers(run))}
    systems = {run.name: headline_system(run.summary or {}) for run in runs if run.name in answers}
    rows = {name: answers_as(name, answers[name], system) for name, system in systems.items() if system}
    missing = [run.name for run in runs if not rows.get(run.name)]
    remedy = f"Run rlhf evaluate with the output_dir {runs[0].folder}/evaluate and the like, and with the same prompts."
    remarks = [f"Not evaluated, so not compared here: {', '.join(missing)}. {remedy}"] if missing and rows else []
    remarks += [f"None of these runs was evaluated. {remedy}"] if not rows else []
    by_name = {run.name: run for run in runs}
    wins: dict[str, dict[tuple[str, str], Any]] = defaultdict(dict)
    for a, b in combinations(rows, 2):
        judges, reasons = common_judges(by_name[a], by_name[b], answers[a], answers[b])
        remarks += [f"{a} and {b}: {reason}." for reason in reasons]
        pair = [*rows[a], *rows[b]]
        estimates = {judge: compare(pair, a, b, score_of(judge)) for judge in judges}
        if judges and not any(estimates.values()):
            remarks.append(f"{a} and {b} have no prompt in common.")
        for judge, estimate in estimates.items():
            if estimate:
                one = asdict(estimate)
                wins[judge][a, b] = one
                wins[judge][b, a] = {"mean": 1 - one["mean"], "low": 1 - one["high"], "high": 1 - one["low"]}
    tables = [_table(judge, pairs, rows, systems) for judge, pairs in wins.items()]
    return [*tables, *([Points(remarks)] if remarks else [])]


def _table(judge: str, pairs: Mapping[tuple[str, str], Any], rows: Mapping[str, Any], systems: Mapping) -> Table:
    names = [name for name in rows if any(name in pair for pair in pairs)]
    cells = [[name, *(pairs.get((name, other), "") for other in names)] for name in names]
    columns = (Column("wins of"), *(Column(f"over {name}, %", WIN_RATE) for name in names))
    answered = " and ".join(sorted({label(str(systems[name])) for name in names}))
    note = (
        f"Answers of {answered} to the same prompts. A tie is half a win. 95 % intervals over prompts, bold where they "
        "exclude 50 %; with many pairs of runs some do so by chance. They hold the trained models fixed: another seed "
        "may lie outside."
    )
    return Table(f"wins_{file_name(judge)}", f"Win rates, judge: {judge}", columns, cells, note)


def _answers(run: Run) -> list[AnswerRow]:
    """Returns the judged answers of a run's evaluation; [] without any, or if they are damaged, which is said."""
    try:
        rows = read_answers(Path(run.folder))
    except (OSError, InputError) as error:
        logger.warning("%s is not compared: %s", run.name, error)
        return []
    return rows if all({"key", "system", "response", "scores"} <= row.keys() for row in rows) else []


def answers_as(name: str, rows: Sequence[AnswerRow], system: str) -> list[AnswerRow]:
    """Returns the answers of one system as those of `name`, with `prompt_id`s that hold in other evaluations, too."""
    seen: dict[str, int] = defaultdict(int)
    found = []
    for row in rows:
        if row["system"] == system:
            found.append({**row, "system": name, "prompt_id": f"{seen[row['key']]} {row['key']}"})
            seen[row["key"]] += 1
    return found


def common_judges(a: Run, b: Run, rows_a: Sequence[AnswerRow], rows_b: Sequence[AnswerRow]) -> tuple[list, list]:
    """Returns the judges that have scored the answers of both runs, and why others of one name are not comparable."""
    ours, theirs = judges_of(a.summary or {}), judges_of(b.summary or {})
    judges, reasons = [], []
    for name, judge in ours.items():
        if name not in theirs or {judge.get("kind"), theirs[name].get("kind")} != {"scores"}:
            continue
        alike = agree(name, rows_a, rows_b)
        if alike is False or (alike is None and judge.get("about") != theirs[name].get("about")):
            reasons.append(f"“{name}” is another judge in each of the two evaluations")
        else:
            judges.append(name)
    return judges, reasons


def agree(judge: str, rows_a: Sequence[AnswerRow], rows_b: Sequence[AnswerRow]) -> bool | None:
    """Returns True if a judge scored alike each answer that both evaluations hold; None if they hold none."""
    known = {(row["key"], row["response"], row["ended"]): row["scores"].get(judge) for row in rows_a}
    pairs = [
        (score, other)
        for row in rows_b
        if (score := known.get((row["key"], row["response"], row["ended"]))) is not None
        and (other := row["scores"].get(judge)) is not None
    ]
    return all(abs(x - y) <= ALIKE for x, y in pairs) if pairs else None
