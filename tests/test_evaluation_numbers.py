"""Bradley-Terry strengths, length-controlled win rates, power and agreement of judges: closed forms and libraries."""

import numpy as np
import pytest
from scipy import stats
from scipy.special import expit

from rlhf.evaluation.bradley_terry import bradley_terry, win_chance
from rlhf.evaluation.judge_agreement import judge_agreement, judge_alpha
from rlhf.evaluation.length_control import length_controlled_win_rate
from rlhf.evaluation.logistic import clustered_logit, logit_coefficients
from rlhf.evaluation.power import (
    detectable_difference,
    measured_detectable_difference,
    prompts_needed,
    win_rate_deviation,
)
from rlhf.statistics import cluster_mean, cluster_share, scale_mean


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def ends(estimate):
    return estimate.mean, estimate.low, estimate.high


def preferences(rng, n):
    return rng.choice([0.0, 0.5, 1.0], size=n, p=[0.3, 0.2, 0.5])


# -- logistic regression ----------------------------------------------------------------------------------------------


def test_coefficients_are_those_of_statsmodels(rng):
    sm = pytest.importorskip("statsmodels.api")
    features, y = np.column_stack([np.ones(80), rng.normal(size=(80, 2))]), preferences(rng, 80)
    expected = sm.GLM(y, features, family=sm.families.Binomial()).fit(tol=1e-12).params
    assert logit_coefficients(y, features) == pytest.approx(expected, abs=1e-8)


def test_with_many_clusters_the_variance_is_the_cluster_robust_one_of_statsmodels(rng):
    sm = pytest.importorskip("statsmodels.api")
    index = np.repeat(np.arange(2000), 3)
    features = np.column_stack([np.ones(6000), rng.normal(size=2000)[index] + rng.normal(size=6000)])
    y = (rng.normal(size=2000)[index] + rng.normal(size=6000) + features[:, 1] > 0).astype(float)
    model = sm.GLM(y, features, family=sm.families.Binomial())
    expected = model.fit(cov_type="cluster", cov_kwds={"groups": index}).cov_params()
    covariance = clustered_logit(y, features, index, repeats=1.0, separated=False).covariance
    assert covariance == pytest.approx(np.asarray(expected), rel=0.01)


def test_variance_is_close_to_the_jackknife_with_refits(rng):
    index = np.repeat(np.arange(40), 4)
    features = np.column_stack([np.ones(160), rng.normal(size=160)])
    y = preferences(rng, 160)
    refits = np.array([logit_coefficients(y[index != g], features[index != g]) for g in range(40)])
    deviations = refits - logit_coefficients(y, features)
    covariance = clustered_logit(y, features, index, repeats=1.0, separated=False).covariance
    assert covariance == pytest.approx(39 / 40 * deviations.T @ deviations, rel=0.05, abs=5e-4)


def test_jeffreys_prior_adds_half_a_win_and_half_a_defeat():
    ones = np.ones((7, 1))
    assert expit(logit_coefficients(np.array([1.0] * 7), ones, repeats=1.0)) == pytest.approx(7.5 / 8)
    assert expit(logit_coefficients(np.array([1.0] * 7), ones, repeats=3.0)) == pytest.approx(8.5 / 10)


def test_separated_data_without_the_prior_is_an_error_and_no_number(rng):
    with pytest.raises((RuntimeError, np.linalg.LinAlgError)):
        logit_coefficients(np.ones(5), np.ones((5, 1)))


# -- Bradley-Terry ----------------------------------------------------------------------------------------------------


def test_strengths_of_three_systems_by_hand():
    # Choices by sigmoid(s_i - s_j) exactly: strengths 0, log 2, log 6 win 2/3, 6/7 and 3/4 of their comparisons.
    rows = [("b", "a", 2 / 3), ("c", "a", 6 / 7), ("c", "b", 3 / 4)] * 10
    one, other, y = zip(*rows, strict=True)
    strengths = bradley_terry(one, other, y, range(30), "a")
    assert strengths["b"].mean == pytest.approx(np.log(2))
    assert strengths["c"].mean == pytest.approx(np.log(6))
    against_c = bradley_terry(one, other, y, range(30), "c")
    assert against_c["a"].mean == pytest.approx(-np.log(6))
    assert list(strengths) == ["b", "c"] and strengths["b"].n == 20


def test_two_systems_have_the_win_rate_and_its_interval(rng):
    y, prompts = preferences(rng, 60), rng.integers(20, size=60)
    strength = bradley_terry(["x"] * 60, ["base"] * 60, y, prompts, "base")["x"]
    assert ends(win_chance(strength)) == pytest.approx(ends(cluster_share(y, prompts)))


def test_sides_and_order_do_not_matter(rng):
    names = np.array(["a", "b", "c"])
    i = rng.integers(3, size=90)
    j = (i + rng.integers(1, 3, size=90)) % 3
    y, prompts = preferences(rng, 90), rng.integers(30, size=90)
    swapped, order = rng.random(90) < 0.5, rng.permutation(90)
    one, other = np.where(swapped, names[j], names[i]), np.where(swapped, names[i], names[j])
    before = bradley_terry(names[i], names[j], y, prompts, "a")
    after = bradley_terry(one[order], other[order], np.where(swapped, 1 - y, y)[order], prompts[order], "a")
    for name in ("b", "c"):
        assert ends(before[name]) == pytest.approx(ends(after[name]))


def test_a_system_that_always_wins_has_a_finite_strength():
    for n in (2, 5, 50):
        strength = bradley_terry(["x"] * n, ["base"] * n, [1.0] * n, range(n), "base")["x"]
        assert strength.mean == pytest.approx(np.log(2 * n + 1))
        assert np.isfinite([strength.low, strength.high]).all() and strength.low < strength.mean < strength.high
    once = bradley_terry(["x"] * 5, ["base"] * 5, [1.0] * 5, range(5), "base")["x"]
    repeated = bradley_terry(["x"] * 50, ["base"] * 50, [1.0] * 50, np.repeat(range(5), 10), "base")["x"]
    assert ends(once) == pytest.approx(ends(repeated))  # ten equal verdicts on a prompt are one


def test_a_winner_among_three_leaves_the_others_finite(rng):
    rows = [("top", name, 1.0) for name in "ab" for _ in range(20)] + [("a", "b", y) for y in preferences(rng, 20)]
    one, other, y = zip(*rows, strict=True)
    strengths = bradley_terry(one, other, y, [*range(20)] * 3, "a")
    assert strengths["top"].low > 0
    assert all(np.isfinite(ends(strength)).all() for strength in strengths.values())
    never = bradley_terry(one, other, [1.0] * 60, [*range(20)] * 3, "top")  # a total order
    assert never["b"].mean < never["a"].mean < 0


def test_ties_alone_are_not_certain():
    strength = bradley_terry(["x"] * 5, ["base"] * 5, [0.5] * 5, range(5), "base")["x"]
    assert strength.mean == pytest.approx(0, abs=1e-12) and strength.low < -1 and strength.high > 1


def test_strengths_without_a_chain_to_the_baseline_are_left_out(rng):
    one, other = ["x", "y"] * 10, ["base", "z"] * 10
    assert list(bradley_terry(one, other, preferences(rng, 20), range(20), "base")) == ["x"]
    assert bradley_terry(one, other, preferences(rng, 20), range(20), "nobody") == {}


def test_a_strength_from_one_prompt_has_no_interval(rng):
    one, other = ["x"] * 20 + ["y"] * 2, ["base"] * 20 + ["x"] * 2
    strengths = bradley_terry(one, other, [*preferences(rng, 20), 1.0, 0.0], [*range(20), 7, 7], "base")
    assert (strengths["y"].low, strengths["y"].high) == (None, None)
    assert strengths["x"].low is not None
    assert (win_chance(strengths["y"]).low, win_chance(strengths["y"]).high) == (0.0, 1.0)


def test_few_comparisons_of_one_system_have_few_degrees_of_freedom(rng):
    """y is compared on 4 of 400 prompts: its interval is about that of 4 prompts."""
    y4 = [1.0, 0.0, 1.0, 0.5]
    one, other = ["x"] * 400 + ["y"] * 4, ["base"] * 404
    strengths = bradley_terry(one, other, [*preferences(rng, 400), *y4], [*range(400), *range(4)], "base")
    assert ends(win_chance(strengths["y"])) == pytest.approx(ends(cluster_share(y4, range(4))), abs=0.03)


def test_comparisons_that_are_none_are_refused():
    for one, other, y in [(["x"], ["x"], [1.0]), (["x"], ["b"], [2.0]), (["x"], ["b"], [np.nan]), (["x"], ["b"], [])]:
        with pytest.raises(ValueError):
            bradley_terry(one, other, y, [0], "b")


# -- length control ---------------------------------------------------------------------------------------------------


def test_win_rate_at_equal_length_is_statsmodels_intercept(rng):
    sm = pytest.importorskip("statsmodels.api")
    y, lengths, prompts = preferences(rng, 60), rng.integers(20, 200, size=(2, 60)), rng.integers(20, size=60)
    d = lengths[0] - lengths[1]
    features = sm.add_constant(np.tanh(d / d.std()))
    fit = sm.GLM(y, features, family=sm.families.Binomial()).fit(cov_type="cluster", cov_kwds={"groups": prompts})
    estimate = length_controlled_win_rate(y, lengths[0], lengths[1], prompts)
    assert estimate.mean == pytest.approx(expit(fit.params[0]), abs=1e-8)
    low, high = expit(fit.conf_int()[0])  # with 1.96 and CV1, so a little narrower
    assert 0.8 < (high - low) / (estimate.high - estimate.low) < 1
    assert (estimate.n, estimate.low < estimate.mean < estimate.high) == (60, True)


def test_length_explains_the_wins_of_longer_answers(rng):
    """The system is no better, only longer, and the judge prefers longer answers: 50 % at equal length."""
    pytest.importorskip("statsmodels")
    baseline = rng.integers(50, 150, size=4000)
    lengths = baseline + rng.normal(60, 60, size=4000).round()
    d = lengths - baseline
    y = (rng.random(4000) < expit(1.5 * np.tanh(d / d.std()))).astype(float)
    estimate = length_controlled_win_rate(y, lengths, baseline, range(4000))
    assert y.mean() > 0.65
    assert estimate.low < 0.5 < estimate.high and estimate.high - estimate.low < 0.12


def test_equal_lengths_leave_the_win_rate(rng):
    y, lengths, prompts = preferences(rng, 60), rng.integers(20, 200, size=60), rng.integers(20, size=60)
    assert ends(length_controlled_win_rate(y, lengths, lengths, prompts)) == ends(cluster_share(y, prompts))


def test_units_of_length_and_the_side_of_the_system_do_not_matter(rng):
    pytest.importorskip("statsmodels")
    y, (a, b), prompts = preferences(rng, 60), rng.integers(20, 200, size=(2, 60)), rng.integers(20, size=60)
    estimate = length_controlled_win_rate(y, a, b, prompts)
    assert ends(length_controlled_win_rate(y, 4 * a, 4 * b, prompts)) == pytest.approx(ends(estimate))
    mean, low, high = ends(length_controlled_win_rate(1 - y, b, a, prompts))
    assert (1 - mean, 1 - high, 1 - low) == pytest.approx(ends(estimate))


def test_a_constant_difference_of_lengths_cannot_be_told_from_quality(rng):
    y, lengths = preferences(rng, 60), rng.integers(20, 200, size=60)
    assert length_controlled_win_rate(y, lengths + 9, lengths, range(60)) is None
    assert length_controlled_win_rate(y, lengths + 9000 + lengths % 2, lengths, range(60)) is None


@pytest.mark.filterwarnings("error")
def test_separated_preferences_give_a_finite_interval(rng):
    pytest.importorskip("statsmodels")
    a, b = rng.integers(20, 200, size=(2, 30))
    for y in (np.ones(30), np.zeros(30), np.full(30, 0.5), (a > b).astype(float), (a < b).astype(float)):
        mean, low, high = ends(length_controlled_win_rate(y, a, b, range(30)))
        assert 0 < low < mean < high < 1
    wins = length_controlled_win_rate(np.ones(30), a, b, range(30))
    assert wins.low > 0.5 and wins.mean > 0.85
    one_prompt = length_controlled_win_rate([1.0, 0.0, 0.5], [3, 5, 9], [4, 4, 4], "aaa")
    assert (one_prompt.low, one_prompt.high) == (0.0, 1.0)


def test_no_small_data_set_gives_an_error_or_no_number(rng):
    """Few prompts, systems and preferences, most of them separated."""
    pytest.importorskip("statsmodels")
    # Lengths that differ by almost the same: the regression overflowed, or did not converge.
    for y, lengths in [
        ([1.0] * 5, [148.991, 157.147, 167.342, 95.582, 131.679]),
        ([1.0, 0.0, 0.5, 1.0, 1.0], [169.89, 158.512, 169.492, 134.114, 146.643]),
    ]:
        assert length_controlled_win_rate(y, lengths, [0.0] * 5, range(5)) is None
    # Newton's method without a line search goes back and forth.
    d = np.array([151.0, 151.0, 100.0])
    features = np.column_stack([np.ones(3), np.tanh(d / d.std())])
    assert np.isfinite(logit_coefficients(np.array([1.0, 1.0, 0.0]), features, repeats=1.0)).all()
    for k in range(300):
        n, prompts, systems = rng.integers(2, 25), rng.integers(1, 9), rng.integers(2, 6)
        keys, y = (
            rng.integers(prompts, size=n),
            rng.choice([0.0, 0.5, 1.0], size=n, p=[0.1 * (k % 2), 0.1, 0.9 - 0.1 * (k % 2)]),
        )
        estimate = length_controlled_win_rate(y, rng.normal(50 * (k % 3), 30, size=n), np.zeros(n), keys)
        assert estimate is None or 0 <= estimate.low <= estimate.mean <= estimate.high <= 1
        a = rng.integers(systems, size=n)
        b = (a + rng.integers(1, systems, size=n)) % systems
        for strength in bradley_terry(a.astype(str), b.astype(str), y, keys, "0").values():
            assert np.isfinite(strength.mean)
            assert strength.low is None or np.isfinite([strength.low, strength.high]).all()


# -- power ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("prompts", [10, 100, 1000])
def test_detectable_difference_has_the_power_that_statsmodels_computes(prompts):
    power = pytest.importorskip("statsmodels.stats.power")
    effect = power.TTestPower().solve_power(nobs=prompts, alpha=0.05, power=0.8, alternative="two-sided")
    assert detectable_difference(prompts, deviation=3.0) == pytest.approx(3.0 * effect, rel=0.01)


def test_both_directions_are_inverse():
    for difference in (0.3, 0.1, 0.02):
        n = prompts_needed(difference, win_rate_deviation(0.2))
        assert detectable_difference(n, win_rate_deviation(0.2)) <= difference
        assert detectable_difference(n - 1, win_rate_deviation(0.2)) > difference
    assert prompts_needed(100.0, 0.5) == 2
    with pytest.raises(ValueError, match="above 0"):
        prompts_needed(0.0, 0.5)
    with pytest.raises(ValueError, match="at least 2"):
        detectable_difference(1, 0.5)


def test_ties_and_independent_answers_need_fewer_prompts():
    assert win_rate_deviation(0.0) == 0.5 and win_rate_deviation(1.0) == 0.0
    assert win_rate_deviation(0.36) == pytest.approx(np.std([0.0] * 32 + [0.5] * 36 + [1.0] * 32))
    alone = detectable_difference(100, 0.5)
    assert detectable_difference(100, 0.5, answers=4) == pytest.approx(alone)
    assert detectable_difference(100, 0.5, answers=4, correlation=0.0) == pytest.approx(alone / 2)


def test_measured_difference_is_2_8_standard_errors(rng):
    y, prompts = rng.choice([0.0, 1.0], size=2000), np.repeat(range(1000), 2)
    estimate = cluster_mean(y, prompts)
    standard_error = (estimate.high - estimate.low) / 2 / stats.t.ppf(0.975, 999)
    assert measured_detectable_difference(y, prompts) == pytest.approx(2.8 * standard_error, rel=0.005)
    assert measured_detectable_difference(y, [0] * 2000) is None
    assert measured_detectable_difference([0.5] * 9, range(9)) is None


def test_a_detectable_difference_is_detected_in_80_of_100_evaluations(rng):
    n, ties = 60, 0.3
    difference = detectable_difference(n, win_rate_deviation(ties))
    chances = [(1 - ties) / 2 - difference, ties, (1 - ties) / 2 + difference]
    samples = [cluster_share(rng.choice([0.0, 0.5, 1.0], size=n, p=chances), range(n)) for _ in range(1000)]
    assert 0.76 <= np.mean([sample.low > 0.5 for sample in samples]) <= 0.88  # p away from 0.5 has a smaller variance


# -- agreement of judges, ratings -------------------------------------------------------------------------------------


def test_agreement_counts_ties_as_verdicts_and_leaves_out_what_one_judge_did_not_judge():
    one, other = [1.0, 0.9, 0.5, 0.0, None, 1.0], [1.0, 0.6, 0.5, 0.5, 1.0, None]
    agreement = judge_agreement(one, other, "aabbcc")
    assert (agreement.mean, agreement.n) == (0.75, 4)
    assert ends(agreement) == ends(cluster_share([1, 1, 1, 0], "aabb"))
    assert judge_agreement([None], [1.0], "a") is None
    with pytest.raises(ValueError, match="same pairs"):
        judge_agreement([1.0], [1.0, 0.0], "a")


def test_alpha_is_agreement_beyond_chance(rng):
    pytest.importorskip("krippendorff")
    one = rng.choice([0.0, 0.5, 1.0], size=3000)
    assert judge_alpha(one, one) == 1.0
    assert judge_alpha(one, rng.permutation(one)) == pytest.approx(0, abs=0.05)
    assert judge_alpha([1.0, 1.0, None], [1.0, 1.0, 0.0]) is None
    # Krippendorff 2011, example A: Meg 0100000010, Owen 1110010000, alpha = .095
    meg, owen = [0, 1, 0, 0, 0, 0, 0, 0, 1, 0], [1, 1, 1, 0, 0, 1, 0, 0, 0, 0]
    assert judge_alpha(meg, owen) == pytest.approx(0.095, abs=5e-4)


def test_mean_of_ratings_stays_on_the_scale():
    share = cluster_share([1.0, 0.5, 1.0], "abc")
    assert ends(scale_mean([7, 4, 7], "abc")) == pytest.approx([1 + 6 * end for end in ends(share)])
    best = scale_mean([7.0] * 10, range(10))
    assert best.high == 7.0 and 4 < best.low < 7
    with pytest.raises(ValueError, match="scale from 1 to 7"):
        scale_mean([0.5], "a")
