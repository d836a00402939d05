"""Accuracy, its intervals, calibration and length bias against hand-worked numbers and scipy."""

import logging

import numpy as np
import pytest
import torch
from scipy import stats
from transformers import TrainerState

from rlhf.reward.accuracy import (
    PADDING,
    LabelerGapWarning,
    Predictions,
    accuracy_by_margin,
    accuracy_report,
    calibration_error,
    flat_metrics,
    reliability_curve,
)
from rlhf.reward.calibration import calibration
from rlhf.reward.length import fit_length_model, length_bias
from rlhf.reward.report import report_text, write_report


def predictions(scores, ranks, lengths=None, prompts=None, labeler_groups=None):
    rows = len(ranks)
    return Predictions(
        np.asarray(scores, dtype=np.float32),
        np.asarray(ranks),
        np.where(np.asarray(ranks) == PADDING, PADDING, 1) if lengths is None else np.asarray(lengths),
        np.arange(rows) if prompts is None else np.asarray(prompts),
        np.full(rows, -1) if labeler_groups is None else np.asarray(labeler_groups),
    )


def test_hand_worked_report():
    scores = [[2.0, 1.0, 1.0], [0.0, 1.0, PADDING], [1.0, 3.0, 2.0]]
    ranks = [[0, 1, 2], [0, 1, PADDING], [1, 0, 1]]
    # Row 0: right, right, equal scores (half). Row 1: wrong. Row 2: two pairs of three, one of them a tie: both right.
    scored = predictions(scores, ranks, labeler_groups=[0, 1, -1])
    report = accuracy_report(scored, ["training", "heldout"], frozenset({"training"}))
    assert (report["accuracy"], report["n_pairs"], report["n_prompts"]) == (4.5 / 6, 6, 3)
    assert {k: row["accuracy"] for k, row in report["accuracy_by_k"].items()} == {"2": 0.0, "3": 4.5 / 5}
    by_group = {name: (row["accuracy"], row["n_pairs"]) for name, row in report["accuracy_by_group"].items()}
    assert by_group == {"training": (2.5 / 3, 3), "heldout": (0.0, 1)}
    assert report["labeler_gap"]["difference"] == pytest.approx(2.5 / 3)
    flat = flat_metrics(report)
    assert flat["labeler_gap"] == pytest.approx(2.5 / 3)
    assert "length_correlation" not in flat  # all completions are of one length


def test_only_ties_give_no_accuracy_and_no_error(tmp_path):
    report = accuracy_report(predictions(np.zeros((1, 2)), np.zeros((1, 2), int)), [])
    assert report["accuracy"] is None
    assert report["n_pairs"] == 0
    assert report["reliability"] == report["accuracy_by_margin"] == []
    assert report["calibration_error"] is None
    write_report(tmp_path, report)


def test_reliability_of_a_calibrated_model():
    rng = np.random.default_rng(0)
    true_margins = rng.normal(size=200_000) * 2
    labeler_agrees = rng.random(200_000) < 1 / (1 + np.exp(-true_margins))
    margins = np.where(labeler_agrees, true_margins, -true_margins)  # of the labeler's choice over the other
    curve = reliability_curve(margins)
    assert sum(row["n_pairs"] for row in curve) == 200_000
    assert all(row["observed"] == pytest.approx(row["predicted"], abs=0.02) for row in curve)
    overconfident = reliability_curve(margins * 3)
    assert overconfident[-1]["observed"] < overconfident[-1]["predicted"] - 0.05


def test_calibration_error_by_hand():
    # sigmoid(log 3) = 3/4: four pairs, three as predicted; sigmoid(log 9) = 9/10: two pairs, one wrong.
    margins = np.log([3.0, 3.0, 3.0, 1 / 3, 9.0, 1 / 9])
    assert calibration_error(reliability_curve(margins)) == pytest.approx((4 * 0.0 + 2 * 0.4) / 6)


def test_accuracy_by_margin_by_hand():
    # |margin| from 1 to 10, wrong where it is 1, 2 or 3
    margins = np.array([10.0, -1.0, 4.0, 5.0, -2.0, 6.0, 7.0, -3.0, 8.0, 9.0])
    pairs = predictions([[m, 0.0] for m in margins], [[0, 1]] * 10).pairs()
    bins = accuracy_by_margin(pairs)
    assert [(b["margin_from"], b["margin_to"], b["accuracy"]) for b in bins] == [
        (1, 2, 0.0),
        (3, 4, 0.5),
        (5, 6, 1.0),
        (7, 8, 1.0),
        (9, 10, 1.0),
    ]


def test_length_bias_by_hand():
    scores = np.array([[1.0, 2.0, 3.0], [7.0, 5.0, PADDING]])
    lengths = np.array([[10, 20, 30], [1, 3, PADDING]])
    ranks = np.array([[0, 1, 1], [1, 0, PADDING]])
    pairs = predictions(scores, ranks, lengths).pairs()
    bias = length_bias(scores, lengths, ranks != PADDING, pairs.margins, pairs.length_differences)
    assert bias["correlation"] == pytest.approx(stats.pearsonr([1, 2, 3, 7, 5], [10, 20, 30, 1, 3])[0])
    expected = stats.pearsonr([-1, 0, 1, 1, -1], [-10, 0, 10, -1, 1])[0]
    assert bias["correlation_within_prompts"] == pytest.approx(expected)
    assert bias["labelers_choose_longer"] == pytest.approx(1 / 3)  # 10 over 20, 10 over 30, 3 over 1
    assert bias["model_chooses_longer"] == pytest.approx(2 / 3)  # 20 over 10, 30 over 10, 1 over 3


def test_the_length_model_is_the_maximum_of_the_likelihood():
    rng = np.random.default_rng(0)
    difference = rng.integers(-200, 200, size=5000)
    chosen = rng.random(5000) < 1 / (1 + np.exp(-0.01 * difference))
    difference = np.where(chosen, difference, -difference)
    w = fit_length_model(difference)
    assert w == pytest.approx(0.01, rel=0.1)
    nearby = w + np.array([-1e-4, 0, 1e-4])
    loss = np.logaddexp(0, -nearby[:, None] * difference).sum(1)
    assert loss.argmin() == 1
    assert fit_length_model(-difference) == pytest.approx(-w)
    assert fit_length_model(np.zeros(4, int)) == 0.0
    assert fit_length_model(np.array([3, 5, 9])) > 0  # the longer always wins: still finite


def test_report_files(tmp_path):
    rng = np.random.default_rng(0)
    ranks = np.argsort(rng.random((50, 4)), axis=1)
    scored = predictions(
        -ranks + rng.normal(size=(50, 4)), ranks, rng.integers(3, 30, (50, 4)), labeler_groups=np.arange(50) % 2
    )
    report = accuracy_report(scored, ["training", "heldout"], frozenset({"training"}))
    write_report(tmp_path, report)
    text = (tmp_path / "report.md").read_text()
    assert text == report_text(report)
    assert f"| all | {report['accuracy']:.3f} |" in text
    assert f"| labelers: heldout | {report['accuracy_by_group']['heldout']['accuracy']:.3f} |" in text
    assert f"{report['calibration_error']:.3f}" in text
    assert (tmp_path / "reliability.svg").read_text().lstrip().startswith("<?xml")


def test_a_growing_gap_between_labelers_is_a_warning(caplog):
    def warned(gaps):
        caplog.clear()
        state = TrainerState(global_step=5)
        with caplog.at_level(logging.WARNING):
            for gap, low in gaps:
                metrics = {"eval_labeler_gap": gap, "eval_labeler_gap_low": low}
                state.log_history += [{"loss": 0.6}, metrics]
                LabelerGapWarning().on_evaluate(None, state, None, metrics=metrics)  # as if resumed before each
        return len(caplog.records)

    assert warned([(0.04, 0.02)]) == 0  # the groups differ from the start
    assert warned([(0.04, 0.02), (0.05, 0.03)]) == 0  # within the interval
    assert warned([(0.02, 0.0), (0.06, 0.04), (0.08, 0.06)]) == 2
    assert warned([(-0.05, -0.07), (-0.01, -0.03)]) == 0  # held-out labelers are still ahead
    # Without two labeler groups there is no gap and no warning.
    LabelerGapWarning().on_evaluate(None, TrainerState(), None, metrics={"eval_loss": 1.0})


def test_calibration_bias_centers_the_demonstrations():
    scores = torch.tensor([1.0, 2.0, 6.0])
    result = calibration(scores)
    assert (scores - result["bias"]).mean().item() == pytest.approx(0.0, abs=1e-6)
    assert result["n"] == 3
