"""Figures of reports as SVG text, drawn by matplotlib: the same text in every run on the same data."""

import io
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib

matplotlib.use("agg")
import matplotlib.pyplot as plt
import numpy as np

COLORS = {"base": "#8b95a3", "sft": "#3b73b0", "sft_best": "#6f9f6b", "ppo": "#d0702b"}
MANY = ("#3b73b0", "#d0702b", "#6f9f6b", "#8a63a8", "#b3587a", "#2f8f8b", "#8c7a2f", "#5a7fd0", "#a5523a", "#8b95a3")
INK = "#3c4650"

STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",  # text stays text, in the reader's own font
    "svg.hashsalt": "rlhf",
    "text.parse_math": False,  # names may hold dollars
    "font.family": "sans-serif",
    "font.sans-serif": ["Segoe UI", "Helvetica Neue", "Arial", "DejaVu Sans"],
    "font.size": 9.5,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": "#aeb7c1",
    "axes.titlesize": 10.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.titlepad": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#eceff3",
    "xtick.color": INK,
    "ytick.color": INK,
    "xtick.major.size": 3,
    "ytick.major.size": 0,
    "legend.frameon": False,
    "lines.linewidth": 1.7,
    "figure.constrained_layout.use": True,
}

Interval = dict[str, Any]  # mean, low, high
Curve = tuple[Sequence[float], ...]  # x, y and, for a band, its half width


def curves(panels: Sequence[tuple[str, dict[str, Curve]]], xlabel: str, columns: int, mark: float | None = None) -> str:
    """A grid of line charts.

    Args:
        panels: (title, {label of the line: curve}) each; a legend is drawn where there are two lines or more.
        mark: x of a vertical line, e.g. the chosen epoch.
    """
    rows = -(-len(panels) // columns)
    with plt.rc_context(STYLE):
        figure, grid = plt.subplots(rows, columns, figsize=(9.6, 2.5 * rows), squeeze=False)
        for axes, (title, lines) in zip(grid.flat, panels, strict=False):
            for color, (label, (x, y, *band)) in zip((COLORS["sft"], COLORS["ppo"]), lines.items(), strict=False):
                axes.plot(x, y, color=color, label=label, marker="o" if len(x) < 25 else None, markersize=3)
                for half in band:
                    axes.fill_between(x, np.subtract(y, half), np.add(y, half), color=color, alpha=0.15, linewidth=0)
            if mark is not None:
                axes.axvline(mark, color=INK, linewidth=1, linestyle=(0, (2, 2)))
            if len(lines) > 1:
                axes.legend(fontsize=8.5)
            axes.set_title(title)
            axes.set_xlabel(xlabel)
        for axes in grid.flat[len(panels) :]:
            axes.remove()
        return _svg(figure)


@dataclass(frozen=True)
class Line:
    """One run's curve in a panel; lines of one label share a color."""

    label: str
    x: Sequence[float]
    y: Sequence[float]
    dashed: bool = False


def overlaid(panels: Sequence[tuple[str, Sequence[Line]]], xlabel: str, columns: int) -> str:
    """A grid of line charts with the curves of several runs, and one legend for all of them.

    Args:
        panels: (title, lines) each. A label has the color of its place among all labels; after ten they repeat.
    """
    labels = list(dict.fromkeys(line.label for _, lines in panels for line in lines))
    colors = {label: MANY[i % len(MANY)] for i, label in enumerate(labels)}
    rows, above = -(-len(panels) // columns), 0.3 * -(-len(labels) // 3)
    with plt.rc_context(STYLE):
        figure, grid = plt.subplots(rows, columns, figsize=(9.6, 2.5 * rows + above), squeeze=False)
        for axes, (title, lines) in zip(grid.flat, panels, strict=False):
            for line in lines:
                style = (0, (3, 2)) if line.dashed else "-"
                marker = "o" if len(line.x) < 25 else None
                axes.plot(line.x, line.y, color=colors[line.label], linestyle=style, linewidth=1.2, marker=marker,
                          markersize=2)  # fmt: skip
            axes.set_title(title)
            axes.set_xlabel(xlabel)
        for axes in grid.flat[len(panels) :]:
            axes.remove()
        handles = [plt.Line2D([], [], color=color, label=label) for label, color in colors.items()]
        figure.legend(handles=handles, loc="outside upper left", ncols=3, fontsize=9)
        return _svg(figure)


def intervals(
    rows: Sequence[tuple[str, str, Interval]],
    xlabel: str,
    reference: float | None = None,
    limits: tuple | None = None,
    text: Callable[[float], str] = "{:.2f}".format,
) -> str:
    """A row for each 95 % interval, top to bottom: a dot at the mean and a bar from low to high.

    Args:
        rows: (label, color, interval) each.
        reference: x of a vertical line, e.g. 0.5 where neither wins.
        text: writes the means beside the bars.
    """
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(figsize=(7.2, 0.75 + 0.31 * len(rows)))
        if reference is not None:
            axes.axvline(reference, color="#8b95a3", linewidth=1, linestyle=(0, (3, 3)))
        for y, (_, color, interval) in enumerate(rows):
            if interval["low"] is not None:
                axes.plot([interval["low"], interval["high"]], [y, y], color=color, linewidth=2.4, alpha=0.45)
            axes.plot(interval["mean"], y, "o", color=color, markersize=6)
            end = interval["mean"] if interval["high"] is None else interval["high"]
            axes.annotate(text(interval["mean"]), (end, y), xytext=(7, 0), textcoords="offset points", va="center")
        axes.set_yticks(range(len(rows)), [label for label, _, _ in rows])
        axes.set_ylim(len(rows) - 0.4, -0.6)
        axes.grid(axis="y", visible=False)
        axes.spines["left"].set_visible(False)
        axes.set_xlabel(xlabel)
        if limits:
            axes.set_xlim(*limits)
        else:
            axes.margins(x=0.12)
        return _svg(figure)


def reliability(bins: Sequence[dict[str, float]]) -> str:
    """Share of pairs on which labeler and model agree, against the predicted probability; dot area = pairs."""
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(figsize=(3.9, 3.5))
        axes.plot([0.5, 1], [0.5, 1], color="#8b95a3", linewidth=1, linestyle=(0, (3, 3)))
        predicted, observed = [b["predicted"] for b in bins], [b["observed"] for b in bins]
        axes.plot(predicted, observed, color=COLORS["sft"])
        largest = max((b["n_pairs"] for b in bins), default=1)
        axes.scatter(predicted, observed, s=[12 + 90 * b["n_pairs"] / largest for b in bins], color=COLORS["sft"])
        axes.set_xlabel("predicted by the reward model")
        axes.set_ylabel("agrees with the labeler")
        axes.set_xlim(0.48, 1.02)
        return _svg(figure)


def inline_svg(svg: str, name: str) -> str:
    """Returns an SVG for the inside of a page: without its XML header, with ids of its own and the page's ink.

    The figures of a page must not share ids, and a page has no need of the names of XML's namespaces.
    """
    body = svg[svg.index("<svg") :]
    body = re.sub(r"<metadata>.*?</metadata>", "", body, count=1, flags=re.DOTALL)
    body = re.sub(r'\sxmlns(:\w+)?="[^"]*"', "", body, count=2)
    body = body.replace("xlink:href=", "href=")
    body = re.sub(r'(\bid="|href="#|url\(#)', lambda match: f"{match.group()}{name}-", body)
    for ink, variable in ((INK, "--ink"), ("#eceff3", "--faint"), ("#aeb7c1", "--line")):
        body = body.replace(ink, f"var({variable}, {ink})")
    width = re.search(r'\bwidth="([\d.]+)pt"', body)
    narrow = f' style="min-width: min(480px, {width[1]}pt)"' if width else ""  # a phone scrolls, and can read it
    return re.sub(r"^<svg\b", f'<svg aria-hidden="true" focusable="false"{narrow}', body)


def standalone_svg(svg: str) -> str:
    """Returns an SVG for a file: on white, since its ink is dark."""
    return svg.replace("<defs>", '<rect width="100%" height="100%" fill="#ffffff"/>\n <defs>', 1)


def _svg(figure) -> str:
    text = io.StringIO()
    figure.savefig(text, format="svg", metadata={"Date": None}, transparent=True)
    plt.close(figure)
    return text.getvalue()
