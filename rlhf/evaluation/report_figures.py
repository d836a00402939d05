"""Figures of the comparison."""

from typing import Any

from rlhf import plots
from rlhf.evaluation.report_parts import SCORE, WIN_RATE, Column, Figure, Table, Unit, number
from rlhf.evaluation.report_tables import Summary, judges_of, rival
from rlhf.runs.system_names import GREEDY, label

MORE_COLORS = ("#8a63a8", "#2f8f8b", "#b3587a", "#8c7a2f", "#5a7fd0", "#a5523a")


def color(system: str, systems: list[str]) -> str:
    """Returns the color of a system; two decodings of a model share one."""
    stems = list(dict.fromkeys(name.removesuffix(GREEDY) for name in systems))
    stem = system.removesuffix(GREEDY)
    others = [name for name in stems if name not in plots.COLORS]
    return plots.COLORS.get(stem) or MORE_COLORS[others.index(stem) % len(MORE_COLORS)]


def wins(summary: Summary) -> Figure:
    """Draws the win rate of each system against its rival, judge by judge."""
    systems = list(summary["systems"])
    rows = [
        (f"{label(system)} over {label(rival(summary, system))} ({name})", color(system, systems), estimate)
        for name, judge in judges_of(summary).items()
        for system, estimate in (judge.get("win_rate") or {}).items()
    ]
    column = Column("win rate, %", WIN_RATE)
    return intervals("figure_wins", "Win rates", rows, column, reference=WIN_RATE.null, limits=(-2, 110))


def scores(summary: Summary, judge: str) -> Figure:
    """Draws the mean score of each system by one judge."""
    systems, means = list(summary["systems"]), summary["judges"][judge].get("mean") or {}
    rows = [(label(system), color(system, systems), estimate) for system, estimate in means.items()]
    return intervals("figure_scores", f"Mean scores, judge: {judge}", rows, Column("mean score", SCORE))


def intervals(
    name: str,
    title: str,
    rows: list[tuple[str, str, dict[str, Any]]],
    column: Column,
    reference: float | None = None,
    limits: tuple[float, float] | None = None,
) -> Figure:
    """Draws 95 % intervals, a row for each (label, color, estimate), in the unit of the column.

    Args:
        reference: value of a vertical line, in the unit of the estimates.
        limits: ends of the axis, in the unit of the column.
    """
    unit = column.unit
    drawn = [
        (text, tint, {end: scaled(estimate[end], unit) for end in ("mean", "low", "high")})
        for text, tint, estimate in rows
    ]
    svg = None
    if rows:
        written = Unit(1, unit.digits)  # what is drawn is scaled already
        svg = plots.intervals(drawn, column.title, scaled(reference, unit), limits, lambda x: number(x, written))
    data = Table(name, title, (Column("row"), column), [[text, estimate] for text, _, estimate in rows])
    return Figure(title, svg, data)


def scaled(value: float | None, unit: Unit) -> float | None:
    return None if value is None else value * unit.scale
