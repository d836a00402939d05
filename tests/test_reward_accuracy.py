"""Pairwise accuracy, its intervals and the reliability curve against hand-worked numbers and scipy."""

import numpy as np
import pytest
import torch
from scipy import stats

from rlhf.reward.accuracy import PADDING, accuracy_report, clustered_accuracy, reliability_curve
from rlhf.reward.calibration import calibration


def test_hand_worked_report():
    scores = np.array([[2.0, 1.0, 1.0], [0.0, 1.0, PADDING], [1.0, 3.0, 2.0]], dtype=np.float32)
    ranks = np.array([[0, 1, 2], [0, 1, PADDING], [1, 0, 1]])
    # Row 0: right, right, equal scores (half). Row 1: wrong. Row 2: two pairs of three, one of them a tie: both right.
    report = accuracy_report(scores, ranks, np.array([0, 1, 2]), np.array([0, 1, -1]), ["training", "heldout"])
    assert (report["accuracy"], report["n_pairs"], report["n_prompts"]) == (4.5 / 6, 6, 3)
    assert {k: part["accuracy"] for k, part in report["accuracy_by_k"].items()} == {"2": 0.0, "3": 4.5 / 5}
    by_group = {name: (part["accuracy"], part["n_pairs"]) for name, part in report["accuracy_by_group"].items()}
    assert by_group == {"training": (2.5 / 3, 3), "heldout": (0.0, 1)}


def test_only_ties_give_no_accuracy_and_no_error():
    report = accuracy_report(np.zeros((1, 2)), np.zeros((1, 2), int), np.array([0]), np.array([-1]), [])
    assert report["accuracy"] is None
    assert report["n_pairs"] == 0
    assert report["reliability"] == []


def test_interval_is_the_bootstrap_over_prompts():
    rng = np.random.default_rng(0)
    sizes = rng.integers(1, 30, size=300)
    skill = rng.beta(4, 2, size=300)  # pairs of one prompt are easy or hard together
    right = rng.binomial(sizes, skill)
    correct = np.concatenate([[1.0] * r + [0.0] * (n - r) for n, r in zip(sizes, right, strict=True)])
    ours = clustered_accuracy(correct, np.repeat(np.arange(300), sizes))
    bootstrap = stats.bootstrap(
        (right, sizes), lambda r, n, axis: r.sum(axis) / n.sum(axis), paired=True, method="percentile", rng=1
    ).confidence_interval
    assert ours["accuracy"] == pytest.approx(correct.mean())
    assert ours["low"] == pytest.approx(bootstrap.low, abs=0.005)
    assert ours["high"] == pytest.approx(bootstrap.high, abs=0.005)
    by_pair = clustered_accuracy(correct, np.arange(len(correct)))
    assert ours["high"] - ours["low"] > 1.5 * (by_pair["high"] - by_pair["low"])


def test_reliability_of_a_model_that_knows_its_own_error():
    rng = np.random.default_rng(0)
    true_margins = rng.normal(size=200_000) * 2
    labeler_agrees = rng.random(200_000) < 1 / (1 + np.exp(-true_margins))
    margins = np.where(labeler_agrees, true_margins, -true_margins)  # of the labeler's choice over the other
    curve = reliability_curve(margins)
    assert sum(row["n_pairs"] for row in curve) == 200_000
    assert all(row["observed"] == pytest.approx(row["predicted"], abs=0.02) for row in curve)
    overconfident = reliability_curve(margins * 3)
    assert overconfident[-1]["observed"] < overconfident[-1]["predicted"] - 0.05


def test_calibration_bias_centres_the_demonstrations():
    scores = torch.tensor([1.0, 2.0, 6.0])
    found = calibration(scores)
    assert (scores - found["bias"]).mean().item() == pytest.approx(0.0, abs=1e-6)
    assert found["n"] == 3
