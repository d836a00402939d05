"""What a reward model's folder shows a reader: report.md with the tables, reliability.svg with the calibration plot."""

from pathlib import Path
from typing import Any

from rlhf import plots

Table = list[list[str]]


def write_report(folder: str | Path, report: dict[str, Any]) -> None:
    """Writes both files.

    Args:
        report: of `rlhf.reward.accuracy.accuracy_report`, without `loss`.
    """
    folder = Path(folder)
    (folder / "reliability.svg").write_text(plots.reliability(report["reliability"]), encoding="utf-8")
    (folder / "report.md").write_text(report_text(report), encoding="utf-8")


def report_text(report: dict[str, Any]) -> str:
    """The report as Markdown."""
    accuracies = {"all": report}
    accuracies |= {f"labelers: {name}": part for name, part in report["accuracy_by_group"].items()}
    accuracies |= {f"K = {k}": part for k, part in report["accuracy_by_k"].items()}
    by_margin = [
        [f"{part['margin_from']:.2f} to {part['margin_to']:.2f}", *accuracy_cells(part)]
        for part in report["accuracy_by_margin"]
    ]
    reliability = [
        [f"{row['predicted']:.3f}", f"{row['observed']:.3f}", str(row["n_pairs"])] for row in report["reliability"]
    ]
    length = report["length"]
    gap = report["labeler_gap"]
    sections = [
        "# Reward model on held-out comparisons",
        "Accuracy is the share of the labelers' pairs, ties left out, that the model orders as they did, with its "
        "95 % interval clustered by prompt.",
        table(["pairs", "accuracy", "95 % interval", "pairs", "prompts"], [
            [name, *accuracy_cells(part)] for name, part in accuracies.items()
        ]),
        f"Labelers trained on are ahead of the others by {signed(gap)}." if gap else "",
        "## By margin",
        "The fifth of the pairs that the model finds closest comes first.",
        table(["difference of the scores", "accuracy", "95 % interval", "pairs", "prompts"], by_margin),
        "## Calibration",
        f"Expected calibration error {number(report['calibration_error'])}: the mean distance between the probability "
        "sigmoid(difference of the scores) and the share of pairs on which the labelers chose so.",
        "![reliability](reliability.svg)",
        table(["predicted", "observed", "pairs"], reliability),
        "## Length",
        table(["", ""], [
            ["correlation of score and length", number(length["correlation"])],
            ["the same within prompts", number(length["correlation_within_prompts"])],
            ["labelers choose the longer of two", number(length["labelers_choose_longer"])],
            ["the model chooses the longer of two", number(length["model_chooses_longer"])],
        ]),
    ]  # fmt: skip
    return "\n\n".join(section for section in sections if section) + "\n"


def table(head: list[str], rows: Table) -> str:
    """A Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def accuracy_cells(part: dict[str, Any]) -> list[str]:
    """Accuracy, interval, pairs and prompts of a `clustered_accuracy`."""
    if part["accuracy"] is None:
        return ["-", "-", "0", "0"]
    interval = f"{part['low']:.3f} to {part['high']:.3f}"
    return [f"{part['accuracy']:.3f}", interval, str(part["n_pairs"]), str(part["n_prompts"])]


def signed(difference: dict[str, float] | None) -> str:
    """A `clustered_difference` with its interval."""
    if difference is None:
        return "-"
    return f"{difference['difference']:+.3f} ({difference['low']:+.3f} to {difference['high']:+.3f})"


def number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"
