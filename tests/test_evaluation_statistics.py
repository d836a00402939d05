"""Cluster bootstrap against hand-worked numbers, closed forms, scipy and a simulation of its coverage."""

import numpy as np
import pytest
from scipy import stats

from rlhf.evaluation.statistics import cluster_difference, cluster_mean, win_rate


def test_mean_of_unequal_clusters_is_the_mean_of_all_values():
    estimate = cluster_mean([1.0, 0.0, 0.0, 1.0, 1.0], ["a", "a", "a", "b", "c"])
    assert estimate.mean == pytest.approx(0.6)
    assert estimate.n == 5
    assert estimate.low < 0.6 < estimate.high


def test_interval_of_independent_values_is_the_normal_one():
    values = np.random.default_rng(0).normal(size=900)
    estimate = cluster_mean(values, range(900))
    half_width = 1.96 * values.std(ddof=1) / 30
    assert estimate.low == pytest.approx(values.mean() - half_width, abs=0.08 * half_width)
    assert estimate.high == pytest.approx(values.mean() + half_width, abs=0.08 * half_width)


def test_interval_of_a_skewed_mean_agrees_with_scipy():
    values = np.random.default_rng(1).exponential(size=60)
    estimate = cluster_mean(values, range(60))
    scipy = stats.bootstrap((values,), np.mean, n_resamples=20_000, method="percentile", rng=1).confidence_interval
    assert estimate.low == pytest.approx(scipy.low, abs=0.02)
    assert estimate.high == pytest.approx(scipy.high, abs=0.02)


def test_answers_repeated_within_prompts_add_no_certainty():
    values = np.random.default_rng(2).normal(size=50)
    once = cluster_mean(values, range(50))
    ten_times = cluster_mean(np.repeat(values, 10), np.repeat(np.arange(50), 10))
    assert (once.low, once.high) == pytest.approx((ten_times.low, ten_times.high))
    as_if_independent = cluster_mean(np.repeat(values, 10), range(500))
    assert as_if_independent.high - as_if_independent.low < 0.5 * (once.high - once.low)


def test_intervals_cover_the_truth_in_95_of_100_samples():
    rng = np.random.default_rng(3)
    clusters = np.repeat(np.arange(60), 4)
    covered = naive = 0
    for _ in range(300):
        values = rng.normal(size=60)[clusters] + 0.5 * rng.normal(size=240)  # the true mean is 0
        estimate = cluster_mean(values, clusters)
        covered += estimate.low <= 0 <= estimate.high
        estimate = cluster_mean(values, range(240))
        naive += estimate.low <= 0 <= estimate.high
    assert 0.91 <= covered / 300 <= 0.98  # two standard errors around .945, what percentiles of 60 clusters reach
    assert naive / 300 < 0.8


def test_win_rate_counts_ties_half():
    assert win_rate([1.0, 0.2, 0.5, 0.9], [0.0, 0.8, 0.5, 0.1], "abcd").mean == pytest.approx(0.625)


def test_rounding_error_is_a_tie():
    assert win_rate([0.1 + 0.2], [0.3], ["a"]).mean == 0.5


def test_win_rate_interval_is_the_binomial_one():
    a = np.array([1.0] * 600 + [0.0] * 400)
    estimate = win_rate(a, 1 - a, range(1000))
    assert estimate.mean == pytest.approx(0.6)
    assert (estimate.low, estimate.high) == pytest.approx((0.5696, 0.6304), abs=0.003)


def test_difference_is_paired():
    base = np.random.default_rng(4).normal(scale=100, size=40)
    estimate = cluster_difference(base + 1, base, range(40))
    assert (estimate.mean, estimate.low, estimate.high) == pytest.approx((1, 1, 1))


def test_same_seed_same_interval_and_another_seed_another():
    values = np.random.default_rng(5).normal(size=30)
    assert cluster_mean(values, range(30), seed=1) == cluster_mean(values, range(30), seed=1)
    assert cluster_mean(values, range(30), seed=1) != cluster_mean(values, range(30), seed=2)


def test_one_prompt_has_a_mean_and_no_interval():
    estimate = cluster_mean([0.0, 1.0], ["a", "a"])
    assert (estimate.mean, estimate.low, estimate.high) == (0.5, None, None)


@pytest.mark.parametrize(("values", "clusters"), [([], []), ([1.0, 2.0], ["a"])])
def test_nothing_to_estimate_is_refused(values, clusters):
    with pytest.raises(ValueError, match="values"):
        cluster_mean(values, clusters)
