"""Intervals that count clusters, against hand-worked numbers, scipy, the jackknife itself and simulated coverage."""

import math

import numpy as np
import pytest
from scipy import stats

from rlhf.statistics import (
    cluster_difference,
    cluster_mean,
    cluster_share,
    clustered_accuracy,
    clustered_difference,
    share_difference,
    win_rate,
)

# -- means ------------------------------------------------------------------------------------------------------------


def test_mean_of_unequal_clusters_is_the_mean_of_all_values():
    estimate = cluster_mean([1.0, 0.0, 0.0, 1.0, 1.0], ["a", "a", "a", "b", "c"])
    assert estimate.mean == pytest.approx(0.6)
    assert estimate.n == 5
    assert estimate.low < 0.6 < estimate.high


def test_interval_of_unequal_clusters_by_hand():
    # Without a the mean is 2/2, without b or c 2/4:  se^2 = 2/3 * (0.4^2 + 0.1^2 + 0.1^2) = 0.12
    # G* = 5^2 / (3^2 + 1 + 1) = 25/11
    estimate = cluster_mean([1.0, 0.0, 0.0, 1.0, 1.0], ["a", "a", "a", "b", "c"])
    half_width = stats.t.ppf(0.975, 25 / 11 - 1) * math.sqrt(0.12)
    assert (estimate.low, estimate.high) == pytest.approx((0.6 - half_width, 0.6 + half_width))


def test_interval_of_independent_values_is_the_normal_one():
    values = np.random.default_rng(0).normal(size=900)
    estimate = cluster_mean(values, range(900))
    half_width = 1.96 * values.std(ddof=1) / 30
    assert estimate.low == pytest.approx(values.mean() - half_width, abs=0.08 * half_width)
    assert estimate.high == pytest.approx(values.mean() + half_width, abs=0.08 * half_width)


@pytest.mark.parametrize("n", [2, 5, 60])
def test_interval_of_independent_values_is_scipys_t_interval(n):
    values = np.random.default_rng(1).exponential(size=n)
    estimate = cluster_mean(values, range(n))
    scipy = stats.ttest_1samp(values, 0.0).confidence_interval(0.95)
    assert (estimate.low, estimate.high) == pytest.approx((scipy.low, scipy.high))


def test_standard_error_is_the_jackknife_that_leaves_out_one_cluster():
    rng = np.random.default_rng(2)
    clusters = rng.integers(7, size=40)
    values = rng.normal(size=40) + clusters
    left_out = np.array([values[clusters != g].mean() for g in range(7)])
    standard_error = math.sqrt(6 / 7 * np.square(left_out - values.mean()).sum())
    effective = 40**2 / np.square(np.bincount(clusters)).sum()
    estimate = cluster_mean(values, clusters)
    half_width = stats.t.ppf(0.975, effective - 1) * standard_error
    assert (estimate.low, estimate.high) == pytest.approx((values.mean() - half_width, values.mean() + half_width))


def test_answers_repeated_within_prompts_add_no_certainty():
    values = np.random.default_rng(2).normal(size=50)
    once = cluster_mean(values, range(50))
    ten_times = cluster_mean(np.repeat(values, 10), np.repeat(np.arange(50), 10))
    assert (once.low, once.high) == pytest.approx((ten_times.low, ten_times.high))
    as_if_independent = cluster_mean(np.repeat(values, 10), range(500))
    assert as_if_independent.high - as_if_independent.low < 0.5 * (once.high - once.low)


def test_difference_is_paired():
    base = np.random.default_rng(4).normal(scale=100, size=40)
    estimate = cluster_difference(base + 1, base, range(40))
    assert (estimate.mean, estimate.low, estimate.high) == pytest.approx((1, 1, 1))


def test_order_of_the_values_does_not_matter():
    rng = np.random.default_rng(5)
    values, clusters, order = rng.normal(size=30), rng.integers(9, size=30), rng.permutation(30)
    one, other = cluster_mean(values, clusters), cluster_mean(values[order], clusters[order])
    assert (one.low, one.high) == pytest.approx((other.low, other.high))


def test_one_prompt_has_a_mean_and_no_interval():
    estimate = cluster_mean([0.0, 1.0], ["a", "a"])
    assert (estimate.mean, estimate.low, estimate.high) == (0.5, None, None)


def test_one_cluster_that_holds_almost_everything_gives_a_finite_interval():
    estimate = cluster_mean([1.0] * 1000 + [0.0], [0] * 1000 + [1])
    assert math.isfinite(estimate.low) and estimate.low < 0 < 1 < estimate.high


@pytest.mark.parametrize(("values", "clusters"), [([], []), ([1.0, 2.0], ["a"])])
@pytest.mark.parametrize("statistic", [cluster_mean, cluster_share])
def test_nothing_to_estimate_is_refused(statistic, values, clusters):
    with pytest.raises(ValueError, match="values"):
        statistic(values, clusters)


# -- shares -----------------------------------------------------------------------------------------------------------


def test_win_rate_counts_ties_half():
    assert win_rate([1.0, 0.2, 0.5, 0.9], [0.0, 0.8, 0.5, 0.1], "abcd").mean == pytest.approx(0.625)


def test_rounding_error_is_a_tie():
    assert win_rate([0.1 + 0.2], [0.3], ["a"]).mean == 0.5


def test_win_rate_interval_is_the_binomial_one():
    a = np.array([1.0] * 600 + [0.0] * 400)
    estimate = win_rate(a, 1 - a, range(1000))
    assert estimate.mean == pytest.approx(0.6)
    assert (estimate.low, estimate.high) == pytest.approx((0.5696, 0.6304), abs=0.003)


def test_share_interval_by_hand():
    # Clusters (1, 1), (1, 0), (0): p = 3/5, u = sqrt(2/3) * (0.8/3, -0.2/3, -0.6/4), so se^2 = 2/3 * 0.098056,
    # n* = 0.24 / se^2 = 3.6714; G* = 25/9, so t has 16/9 degrees of freedom.
    # Wilson's ends x solve |p - x| = t sqrt(x (1 - x) / n*).
    estimate = cluster_share([1, 1, 1, 0, 0], "aabbc")
    n, t = 3.6714, stats.t.ppf(0.975, 16 / 9)
    for end in (estimate.low, estimate.high):
        assert abs(0.6 - end) == pytest.approx(t * math.sqrt(end * (1 - end) / n), rel=1e-4)


def test_wins_everywhere_leave_room_for_defeats():
    """Wilson's interval of n successes in n trials begins at n / (n + t^2)."""
    for n in (2, 5, 50):
        estimate = win_rate([1.0] * n, [0.0] * n, range(n))
        assert (estimate.low, estimate.high) == pytest.approx((n / (n + stats.t.ppf(0.975, n - 1) ** 2), 1.0))
    repeated = win_rate([1.0] * 50, [0.0] * 50, np.repeat(range(5), 10))
    assert repeated.low == pytest.approx(win_rate([1.0] * 5, [0.0] * 5, range(5)).low)
    ties = win_rate([1.0] * 5, [1.0] * 5, range(5))
    assert 0 < ties.low < 0.4 < 0.6 < ties.high < 1


def test_share_of_one_cluster_is_unknown():
    estimate = cluster_share([0.0, 1.0], ["a", "a"])
    assert (estimate.mean, estimate.low, estimate.high) == (0.5, 0.0, 1.0)


def test_an_interval_contains_its_own_share():
    for n in range(2, 200):  # by rounding, some intervals of 1 would end at 0.9999999999999999
        low, high = (clustered_accuracy(np.full(n, value), np.arange(n)) for value in (0.0, 1.0))
        assert (low["low"], high["high"]) == (0.0, 1.0)


def test_accuracy_interval_is_the_bootstrap_over_prompts():
    rng = np.random.default_rng(0)
    sizes = rng.integers(1, 30, size=300)
    skill = rng.beta(4, 2, size=300)  # pairs of one prompt are easy or hard together
    right = rng.binomial(sizes, skill)
    correct = np.concatenate([[1.0] * r + [0.0] * (n - r) for r, n in zip(right, sizes, strict=True)])
    ours = clustered_accuracy(correct, np.repeat(np.arange(300), sizes))
    bootstrap = stats.bootstrap(
        (right, sizes), lambda r, n, axis: r.sum(axis) / n.sum(axis), paired=True, method="percentile", rng=1
    ).confidence_interval
    assert ours["accuracy"] == pytest.approx(correct.mean())
    assert ours["low"] == pytest.approx(bootstrap.low, abs=0.005)
    assert ours["high"] == pytest.approx(bootstrap.high, abs=0.005)
    by_pair = clustered_accuracy(correct, np.arange(len(correct)))
    assert ours["high"] - ours["low"] > 1.5 * (by_pair["high"] - by_pair["low"])
    assert (ours["n_pairs"], ours["n_prompts"]) == (sizes.sum(), 300)


# -- differences of shares --------------------------------------------------------------------------------------------


def test_difference_of_groups_is_the_bootstrap_over_prompts():
    """Both groups rank the same prompts. Some prompts are easy, so the errors of the groups are dependent."""
    rng = np.random.default_rng(0)
    easy = rng.beta(2, 1, size=400)
    a, b = rng.binomial(10, easy), rng.binomial(6, easy * 0.9)

    def values(right, n):
        return np.concatenate([[1.0] * r + [0.0] * (n - r) for r in right])

    ours = clustered_difference(
        values(a, 10), values(b, 6), np.repeat(np.arange(400), 10), np.repeat(np.arange(400), 6)
    )
    bootstrap = stats.bootstrap(
        (a, b), lambda x, y, axis: x.mean(axis) / 10 - y.mean(axis) / 6, paired=True, method="percentile", rng=1
    ).confidence_interval
    assert ours["difference"] == pytest.approx(a.mean() / 10 - b.mean() / 6)
    assert ours["low"] == pytest.approx(bootstrap.low, abs=0.004)
    assert ours["high"] == pytest.approx(bootstrap.high, abs=0.004)
    assert clustered_difference(values(a, 10), np.array([]), np.repeat(np.arange(400), 10), np.array([])) is None


def test_difference_of_independent_shares_is_newcombes():
    """R. G. Newcombe, Statistics in Medicine 17 (1998) 873-890, table II, method 10: 56/70 - 48/80, .0524 to .3339.

    The interval is a little wider than his, whose quantile is 1.96 and whose variance divides by n, not n - 1.
    """
    a, b = [1] * 56 + [0] * 14, [1] * 48 + [0] * 32
    estimate = share_difference(a, b, range(70), range(100, 180))
    assert estimate.mean == pytest.approx(0.2)
    assert (estimate.low, estimate.high) == pytest.approx((0.0524, 0.3339), abs=0.004)
    assert estimate.low < 0.0524 and estimate.high > 0.3339
    assert estimate.n == 70


def test_difference_of_shares_that_never_fail_is_not_certain():
    estimate = share_difference([1] * 5, [1] * 5, range(5), range(5))
    distance = 1 - 5 / (5 + stats.t.ppf(0.975, 4) ** 2)  # each share is in [1 - distance, 1]
    assert (estimate.low, estimate.mean, estimate.high) == pytest.approx((-distance, 0.0, distance))
    opposite = share_difference([1, 1], [0, 0], "ab", "ab")
    assert opposite.low < 0 and opposite.high == 1


def test_difference_from_a_single_cluster_is_unknown():
    alone = share_difference([1, 0], [0, 0], "aa", "aa")
    assert (alone.low, alone.mean, alone.high) == (-1.0, 0.5, 1.0)
    share = cluster_share([1, 1, 0, 1], "abcd")
    half_known = share_difference([1, 1, 0, 1], [1, 0], "abcd", "xx")  # the other share is anything from 0 to 1
    assert (half_known.low, half_known.high) == pytest.approx((share.low - 1, share.high))


# -- coverage ---------------------------------------------------------------------------------------------------------


def coverage(clusters, sample, samples=800):
    """Share of intervals that cover the truth, 0; `sample` takes the clusters of N values and a random generator."""
    rng = np.random.default_rng(3)
    covered = 0
    for _ in range(samples):
        sizes = np.maximum(1, np.round(np.exp(rng.normal(1.5, 0.8, size=clusters)))).astype(int)
        estimate = sample(np.repeat(np.arange(clusters), sizes), rng)
        covered += estimate.low <= 0 <= estimate.high
    return covered / samples


def continuous(index, rng):
    return 0.7 * rng.normal(size=1000)[index] + rng.normal(size=len(index))


def successes(index, rng):
    return rng.random(len(index)) < rng.beta(1.2, 1.2, size=1000)[index]


def moved(estimate, by):
    """An estimate of 0."""
    return type(estimate)(estimate.mean - by, estimate.low - by, estimate.high - by, estimate.n)


@pytest.mark.parametrize("clusters", [5, 10, 60])
@pytest.mark.parametrize(
    "sample",
    [
        lambda index, rng: cluster_mean(continuous(index, rng), index),
        lambda index, rng: cluster_difference(continuous(index, rng), continuous(index, rng), index),
        lambda index, rng: moved(cluster_share(successes(index, rng), index), 0.5),
        lambda index, rng: share_difference(successes(index, rng), successes(index, rng), index, index),
    ],
    ids=["mean", "difference", "share", "share difference"],
)
def test_intervals_cover_the_truth_in_95_of_100_samples(clusters, sample):
    """The percentile bootstrap and 1.96 linearized standard errors cover .80 to .90 with 5 and 10 clusters."""
    assert 0.93 <= coverage(clusters, sample) <= 0.985  # a standard error of 800 samples is .008


def test_intervals_of_single_values_do_not_cover_the_truth_of_clusters():
    assert coverage(60, lambda index, rng: cluster_mean(continuous(index, rng), range(len(index))), 300) < 0.85
