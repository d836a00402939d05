"""The report of a recipe: report.html, the same as report.md, and each table and figure as CSV in report/.

It is made from what lies in the recipe's folder: summary.json, benchmark.json, evaluate/completions.jsonl and the
folders of the stages. Each may be missing.
"""

import json
import re
from pathlib import Path
from typing import Any

from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from rlhf import plots
from rlhf.errors import InputError
from rlhf.evaluation import report_tables as tables
from rlhf.evaluation.preferences import AnswerRow
from rlhf.evaluation.report_parts import (
    Card,
    Figure,
    Section,
    Table,
    csv_text,
    decided,
    estimate_texts,
    markdown,
    text_of,
)
from rlhf.evaluation.report_sections import answers_table, lead, sections
from rlhf.evaluation.report_stages import read_stages
from rlhf.runs.objects import read_object

FOLDER = "report"
CONTROL = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]")
NOTHING: dict[str, Any] = {"systems": {}, "judges": {}}  # the summary of a recipe that was not evaluated


def write_report(recipe_dir: str | Path, rows: list[AnswerRow] | None = None) -> Path:
    """Writes report.html, report.md and the folder report/ of a recipe; returns the path of the page.

    Args:
        recipe_dir: folder with summary.json or benchmark.json, or both.
        rows: judged answers; None reads evaluate/completions.jsonl, if it is there.

    Raises:
        InputError: the folder holds neither, or one is damaged.
    """
    folder = Path(recipe_dir)
    summary, benchmark = read_numbers(folder)
    if summary is None and benchmark is None:
        raise InputError(f"{folder} holds no summary.json and no benchmark.json. Run `rlhf evaluate` first.")
    rows = read_answers(folder) if rows is None else rows
    summary = summary or NOTHING
    report = sections(summary, benchmark, rows, read_stages(folder))
    title = f"InstructGPT’s recipe: {folder.resolve().name}"
    _write(folder / "report.html", html(title, summary, benchmark, report))
    _write(folder / "report.md", markdown_page(title, summary, benchmark, report))
    _write_files(folder / FOLDER, summary, report)
    return folder / "report.html"


def read_numbers(recipe_dir: Path) -> tuple[dict[str, Any] | None, dict[str, Any] | None]:
    """Returns summary.json and benchmark.json, each None if it is missing."""
    summary, benchmark = read_object(recipe_dir / "summary.json"), read_object(recipe_dir / "benchmark.json")
    benchmark = (
        benchmark or read_object(recipe_dir / "benchmark" / "benchmark.json") or (summary or {}).get("benchmarks")
    )
    if summary is not None and "judges" not in summary:
        raise InputError(f"{recipe_dir / 'summary.json'} is of an older version. Run `rlhf evaluate` again.")
    return summary, benchmark


def read_answers(recipe_dir: Path) -> list[AnswerRow]:
    """Returns the judged answers of the evaluation; [] without any.

    Raises:
        InputError: the file is damaged.
    """
    path = recipe_dir / "evaluate" / "completions.jsonl"
    if not path.exists():
        return []
    try:
        rows = [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line.strip()]
    except ValueError as error:
        raise InputError(f"{path} is damaged ({error}). Run `rlhf evaluate` again.") from error
    if not all(isinstance(row, dict) for row in rows):
        raise InputError(f"{path} is damaged: each line must hold an object. Run `rlhf evaluate` again.")
    return rows


def html(title: str, summary: dict[str, Any], benchmark: dict[str, Any] | None, report: list[Section]) -> str:
    """Returns the page of a recipe as HTML. It needs no other file."""
    return page(title, lead(summary, benchmark), report, tables.headline(summary))


def page(title: str, first_words: str, report: list[Section], headline: Table | None = None, files: bool = True) -> str:
    """Returns sections as an HTML page that needs no other file.

    Args:
        headline: measure, value and meaning, for the tiles at the top.
        files: tables and figures are also files in report/, and the page names them.
    """
    environment = Environment(
        loader=ChoiceLoader([PackageLoader("rlhf.evaluation", "."), PackageLoader("rlhf.runs", ".")]),  # report.css
        autoescape=True,  # answers may contain markup
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {"text_of": text_of, "estimate_texts": estimate_texts}
    environment.tests["decided"] = decided
    return environment.get_template("report.html.j2").render(
        title=title,
        lead=first_words,
        headline=headline.rows if headline else [],
        files=files,
        sections=report,
        colors=plots.COLORS,
        inline_svg=lambda figure: Markup(plots.inline_svg(figure.svg, figure.data.name)),
    )


def markdown_page(title: str, summary: dict[str, Any], benchmark: dict[str, Any] | None, report: list[Section]) -> str:
    """Returns the report as Markdown; its figures are files of the folder report/."""
    headline = Section("In short", [lead(summary, benchmark), tables.headline(summary)])
    return f"# {title}\n\n{markdown([headline, *report])}"


def _write_files(folder: Path, summary: dict[str, Any], report: list[Section]) -> None:
    """Writes a CSV file for each table and figure, and the SVG of each figure; removes those of an earlier report."""
    folder.mkdir(exist_ok=True)
    for old in (*folder.glob("*.csv"), *folder.glob("*.svg")):
        old.unlink()
    parts = [part for section in report for part in section.parts]
    figures = [part for part in parts if isinstance(part, Figure)]
    shown = [part for part in parts if isinstance(part, Card)]
    found = [tables.headline(summary), *(part for part in parts if isinstance(part, Table))]
    written: dict[str, int] = {}
    for table in [*found, *(figure.data for figure in figures), answers_table(shown)]:
        if table.rows:
            written[table.name] = written.get(table.name, 0) + 1  # two judges' names may become one file name
            number = f"_{written[table.name]}" if written[table.name] > 1 else ""
            _write(folder / f"{table.name}{number}.csv", csv_text(table))
    for figure in figures:
        if figure.svg:
            _write(folder / f"{figure.data.name}.svg", plots.standalone_svg(figure.svg))


def _write(path: Path, text: str) -> None:
    shown = CONTROL.sub("\ufffd", text)  # an answer may hold bytes that make a text file a binary one
    path.write_text(shown, encoding="utf-8", errors="replace", newline="\n")  # JSON may hold half a surrogate pair
