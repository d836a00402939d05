"""Simulated coverage of the 95 % intervals: the table of benchmarks/interval_coverage.py at small size."""

import runpy
from pathlib import Path

import pytest
from scipy.stats import multinomial

from rlhf.statistics import cluster_share

BENCHMARK = runpy.run_path(str(Path(__file__).parent.parent / "benchmarks" / "interval_coverage.py"))
STATISTICS, coverage = BENCHMARK["STATISTICS"], BENCHMARK["coverage"]
NAMES = ("mean", "rating", "share difference", "win rate .5", "win rate .8", "length", "strength")


def covered(name, prompts, several, samples):
    if name.startswith("length"):
        pytest.importorskip("statsmodels")
    return coverage(STATISTICS[name], prompts, several, icc=0.3, samples=samples, seed=1)["coverage"]


@pytest.mark.parametrize("name", NAMES)
def test_intervals_from_several_answers_to_ten_prompts_cover_the_truth(name):
    assert 0.92 <= covered(name, 10, True, samples=400) <= 0.985  # the standard error of 400 samples is .011


@pytest.mark.parametrize("name", ["length", "strength"])
def test_intervals_from_one_answer_to_ten_prompts_cover_the_truth(name):
    # Ten wins, ties and defeats take few values, so there is no upper bound: see the exact coverage below.
    assert covered(name, 10, False, samples=400) >= 0.92


@pytest.mark.parametrize(("p", "ties"), [(p, ties) for p in (0.5, 0.6, 0.7, 0.8, 0.9) for ties in (0.0, 0.3)])
def test_exact_coverage_of_a_win_rate_from_ten_preferences(p, ties):
    """The sum over all outcomes. It is up to .994, since there are few outcomes: too wide, never too narrow.

    With 1.96 in place of t it would be closer to .95 on average, but .910 at p = .7 with ties.
    """
    tied = 4 * ties * p * (1 - p)
    won = p - tied / 2
    total = 0.0
    for wins in range(11):
        for draws in range(11 - wins):
            estimate = cluster_share([1.0] * wins + [0.5] * draws + [0.0] * (10 - wins - draws), range(10))
            chance = multinomial.pmf([wins, draws, 10 - wins - draws], 10, [won, tied, 1 - won - tied])
            total += chance * (estimate.low - 1e-12 <= p <= estimate.high + 1e-12)
    assert total >= 0.93


@pytest.mark.slow
@pytest.mark.parametrize("several", [False, True], ids=["one answer", "several answers"])
@pytest.mark.parametrize("prompts", [30, 100, 1000])
@pytest.mark.parametrize("name", NAMES)
def test_intervals_cover_the_truth_in_93_to_97_of_100_samples(name, prompts, several):
    samples = 2000 if prompts < 1000 else 1000
    assert 0.93 <= covered(name, prompts, several, samples) <= 0.97
