"""Report of a reward model's folder: report.md with the tables, reliability.svg with the calibration plot."""

from pathlib import Path
from typing import Any

from rlhf import plots
from rlhf.runs.markdown import markdown_table


def write_report(folder: str | Path, report: dict[str, Any]) -> None:
    """Writes report.md and reliability.svg.

    Args:
        report: of `rlhf.reward.accuracy.accuracy_report`, without `loss`.
    """
    folder = Path(folder)
    (folder / "reliability.svg").write_text(plots.reliability(report["reliability"]), encoding="utf-8")
    (folder / "report.md").write_text(report_text(report), encoding="utf-8")


def report_text(report: dict[str, Any]) -> str:
    """Returns the report as Markdown."""
    accuracies = {"all": report}
    accuracies |= {f"labelers: {name}": accuracy for name, accuracy in report["accuracy_by_group"].items()}
    accuracies |= {f"K = {k}": accuracy for k, accuracy in report["accuracy_by_k"].items()}
    by_margin = [
        [f"{row['margin_from']:.2f} to {row['margin_to']:.2f}", *accuracy_cells(row)]
        for row in report["accuracy_by_margin"]
    ]
    reliability = [
        [f"{row['predicted']:.3f}", f"{row['observed']:.3f}", row["n_pairs"]] for row in report["reliability"]
    ]
    length = report["length"]
    gap = report["labeler_gap"]
    sections = [
        "# Reward model on held-out comparisons",
        "Accuracy is the share of the labelers' pairs, ties left out, that the model orders as they did, with its "
        "95 % interval over prompts, for this model: another training run may lie outside.",
        markdown_table(["pairs", "accuracy", "95 % interval", "pairs", "prompts"], [
            [name, *accuracy_cells(accuracy)] for name, accuracy in accuracies.items()
        ]),
        f"Labelers trained on are ahead of the others by {difference_cell(gap)}." if gap else "",
        "## By margin",
        "The fifth of the pairs that the model finds closest comes first.",
        markdown_table(["difference of the scores", "accuracy", "95 % interval", "pairs", "prompts"], by_margin),
        "## Calibration",
        f"Expected calibration error {three_decimals(report['calibration_error'])}: the mean distance between the "
        "probability sigmoid(difference of the scores) and the share of pairs on which the labelers chose so.",
        "![reliability](reliability.svg)",
        markdown_table(["predicted", "observed", "pairs"], reliability),
        "## Length",
        markdown_table(["", ""], [
            ["correlation of score and length", three_decimals(length["correlation"])],
            ["the same within prompts", three_decimals(length["correlation_within_prompts"])],
            ["labelers choose the longer of two", three_decimals(length["labelers_choose_longer"])],
            ["the model chooses the longer of two", three_decimals(length["model_chooses_longer"])],
        ]),
    ]  # fmt: skip
    return "\n\n".join(section for section in sections if section) + "\n"


def accuracy_text(report: dict[str, Any]) -> str:
    """Returns the accuracy with its interval in words, for the console."""
    if report["accuracy"] is None:
        return "no held-out pair that the labelers did not tie, so the accuracy is unknown"
    accuracy, low, high = (f"{100 * report[name]:.1f}" for name in ("accuracy", "low", "high"))
    return f"accuracy {accuracy} % (95 % interval {low} to {high}) on {report['n_pairs']:,} held-out pairs"


def accuracy_cells(accuracy: dict[str, Any]) -> list[str]:
    """Cells of a `clustered_accuracy`: accuracy, interval, pairs and prompts."""
    if accuracy["accuracy"] is None:
        return ["-", "-", "0", "0"]
    interval = f"{accuracy['low']:.3f} to {accuracy['high']:.3f}"
    return [f"{accuracy['accuracy']:.3f}", interval, str(accuracy["n_pairs"]), str(accuracy["n_prompts"])]


def difference_cell(difference: dict[str, float] | None) -> str:
    """Cell of a `clustered_difference`: difference and interval, with signs."""
    if difference is None:
        return "-"
    return f"{difference['difference']:+.3f} ({difference['low']:+.3f} to {difference['high']:+.3f})"


def three_decimals(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"
