"""How often the 95 % intervals of the evaluation cover the truth, for 5 to 1,000 prompts.

    python benchmarks/interval_coverage.py
    python benchmarks/interval_coverage.py --statistics mean "win rate .8" --clusters 10 1000 --samples 10000

Each statistic has two designs. `1` is one answer a prompt. `several` has clusters of unequal sizes: rounded log-normal
numbers with a median of 4 to 5; one in twenty is above 16. Values of a prompt are correlated (--icc). The statistics:

    mean, skewed mean     means of normal and of exponential values
    difference            mean of paired differences
    rating                mean of ratings from 1 to 7, most of them 5 to 7, by `scale_mean`
    share p               share of successes, `cluster_share`
    share difference      two shares of .6 and .5 on the same prompts
    win rate p            preferences, with ties of 0.5: 3 in 10 at p = .5, 1 in 5 at p = .8
    agreement .75         equal verdicts of two judges
    length, length .9     length-controlled win rates of .5 and .9; longer answers win, and the system's are longer
    strength              Bradley-Terry strengths of -1, .5 and 2 of three systems against a baseline of 0, compared in
                          all pairs with ties; the coverage is that of the one covered least

With 4,000 samples the standard error of a coverage of 95 % is 0.3 %. Prints a table, and the same as JSON on the last
line.
"""

import argparse
import json
from collections.abc import Callable, Sequence

import numpy as np
from scipy.special import expit, ndtr

from rlhf.evaluation.bradley_terry import bradley_terry
from rlhf.evaluation.judge_agreement import judge_agreement
from rlhf.evaluation.length_control import length_controlled_win_rate
from rlhf.statistics import Estimate, cluster_difference, cluster_mean, cluster_share, scale_mean, share_difference

CLUSTERS = (5, 10, 20, 50, 200, 1000)
STRENGTHS = np.array([0.0, -1.0, 0.5, 2.0])  # of the baseline and three systems
RATINGS = np.array([0.02, 0.03, 0.05, 0.1, 0.2, 0.3, 0.3])  # chances of 1 to 7


class Sample:
    """Values of clusters; each method returns an estimate and the truth."""

    def __init__(self, clusters: int, several: bool, icc: float, rng: np.random.Generator):
        self.icc, self.rng, self.clusters = icc, rng, clusters
        sizes = np.ones(clusters, dtype=int)
        if several:
            sizes = np.maximum(1, np.round(np.exp(rng.normal(1.5, 0.8, size=clusters)))).astype(int)
        self.index = np.repeat(np.arange(clusters), sizes)

    def mean(self) -> tuple[Estimate, float]:
        return cluster_mean(self.correlated(self.rng.normal), self.index), 0.0

    def skewed_mean(self) -> tuple[Estimate, float]:
        return cluster_mean(self.correlated(lambda size: self.rng.exponential(size=size) - 1), self.index), 0.0

    def difference(self) -> tuple[Estimate, float]:
        base, gain = self.correlated(self.rng.normal), self.correlated(self.rng.normal)
        return cluster_difference(10 * base + gain + 1, 10 * base, self.index), 1.0

    def rating(self) -> tuple[Estimate, float]:
        ratings = 1 + np.searchsorted(np.cumsum(RATINGS)[:-1], self.uniform())
        return scale_mean(ratings, self.index), float(RATINGS @ np.arange(1, 8))

    def share(self, p: float) -> tuple[Estimate, float]:
        return cluster_share(self.uniform() < p, self.index), p

    def share_difference(self) -> tuple[Estimate, float]:
        total = 1 / self.icc - 1
        easy = self.rng.beta(0.6 * total, 0.4 * total, size=self.clusters)[self.index]
        a, b = (self.rng.random(len(self.index)) < chance for chance in (easy, easy * 5 / 6))
        return share_difference(a.astype(float), b.astype(float), self.index, self.index), 0.1

    def win_rate(self, p: float, ties: float) -> tuple[Estimate, float]:
        return cluster_share(self.preferences(np.full(len(self.index), p), ties), self.index), p

    def agreement(self) -> tuple[Estimate, float]:
        one = self.rng.choice([0.0, 0.5, 1.0], size=len(self.index))
        equal = self.uniform() < 0.75
        estimate = judge_agreement(one, np.where(equal, one, (one + 0.5) % 1.5), self.index)
        assert estimate is not None
        return estimate, 0.75

    def length(self, p: float) -> tuple[Estimate, float]:
        longer = 100 * (self.correlated(self.rng.normal) + 0.5)
        log_odds = np.log(p / (1 - p)) + np.tanh(longer / 100)
        preferences = self.preferences(expit(log_odds), ties=0.2)
        estimate = length_controlled_win_rate(preferences, longer, np.zeros_like(longer), self.index)
        return (estimate, p) if estimate else self.length(p)  # nearly equal differences: no number, so drawn again

    def strengths(self) -> list[tuple[Estimate, float]]:
        """Returns one estimate for each system but the baseline.

        The better of two answers is the one of higher utility, strength + Gumbel noise: Bradley and Terry's model.

        Some answers of a prompt share their noise, and pairs share answers, so all comparisons of a prompt depend on
        each other.
        """
        noise = np.where(
            (self.rng.random(len(self.index)) < self.icc)[:, None],
            self.rng.gumbel(size=(self.clusters, len(STRENGTHS)))[self.index],
            self.rng.gumbel(size=(len(self.index), len(STRENGTHS))),
        )
        a, b = np.triu_indices(len(STRENGTHS), 1)
        won = (STRENGTHS + noise)[:, a] > (STRENGTHS + noise)[:, b]
        preferences = self.with_ties(won, np.broadcast_to(expit(STRENGTHS[a] - STRENGTHS[b]), won.shape), ties=0.2)
        one, other = (np.tile(pair.astype(str), len(self.index)) for pair in (a, b))
        strengths = bradley_terry(one, other, preferences.ravel(), np.repeat(self.index, len(a)), "0")
        return [(strengths[str(i)], float(STRENGTHS[i])) for i in range(1, len(STRENGTHS))]

    def preferences(self, chances: np.ndarray, ties: float) -> np.ndarray:
        """Preferences of mean `chances`, [N]."""
        return self.with_ties(self.uniform() < chances, chances, ties)

    def with_ties(self, won: np.ndarray, chances: np.ndarray, ties: float) -> np.ndarray:
        """Makes ties of wins and defeats without a change of the mean: 4 ties p (1 - p) of all, half of them wins."""
        tied = self.rng.random(won.shape) < 2 * ties * np.where(won, 1 - chances, chances)
        return np.where(tied, 0.5, won)

    def uniform(self) -> np.ndarray:
        """Uniform numbers, correlated within clusters."""
        return ndtr(self.correlated(self.rng.normal))

    def correlated(self, draw: Callable[..., np.ndarray]) -> np.ndarray:
        """Values of mean 0 and variance 1, with the intra-cluster correlation."""
        effects = draw(size=self.clusters)[self.index]
        return np.sqrt(self.icc) * effects + np.sqrt(1 - self.icc) * draw(size=len(self.index))


Result = tuple[Estimate, float]
STATISTICS: dict[str, Callable[[Sample], Result | list[Result]]] = {
    "mean": Sample.mean,
    "skewed mean": Sample.skewed_mean,
    "difference": Sample.difference,
    "rating": Sample.rating,
    "share .5": lambda sample: sample.share(0.5),
    "share .9": lambda sample: sample.share(0.9),
    "share .97": lambda sample: sample.share(0.97),
    "share difference": Sample.share_difference,
    "win rate .5": lambda sample: sample.win_rate(0.5, ties=0.3),
    "win rate .8": lambda sample: sample.win_rate(0.8, ties=0.3),
    "agreement .75": Sample.agreement,
    "length": lambda sample: sample.length(0.5),
    "length .9": lambda sample: sample.length(0.9),
    "strength": Sample.strengths,
}


def coverage(statistic: Callable, clusters: int, several: bool, icc: float, samples: int, seed: int) -> dict:
    """Returns the share of intervals that cover the truth and their median width, for the estimate covered least."""
    rng = np.random.default_rng([seed, clusters, several])
    covered, widths = [], []
    for _ in range(samples):
        results = statistic(Sample(clusters, several, icc, rng))
        results = results if isinstance(results, list) else [results]
        covered.append([estimate.low <= truth <= estimate.high for estimate, truth in results])
        widths.append([estimate.high - estimate.low for estimate, _ in results])
    shares = np.mean(covered, axis=0)
    least = int(np.argmin(shares))
    return {"coverage": float(shares[least]), "median_width": float(np.median(widths, axis=0)[least])}


def tables(
    samples: int,
    icc: float = 0.3,
    seed: int = 0,
    clusters: Sequence[int] = CLUSTERS,
    statistics: Sequence[str] = tuple(STATISTICS),
) -> dict[str, dict[int, dict]]:
    """Returns statistic and design -> number of prompts -> cell; prints each line of the table when it is done."""
    table = {}
    print(f"{'coverage in %, prompts:':<28}" + "".join(f"{n:>8}" for n in clusters))
    for name in statistics:
        for design in ("1", "several"):
            cells = {n: coverage(STATISTICS[name], n, design == "several", icc, samples, seed) for n in clusters}
            table[f"{name}, {design}"] = cells
            line = "".join(f"{100 * cell['coverage']:>8.1f}" for cell in cells.values())
            print(f"{name + ', ' + design:<28}{line}", flush=True)
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=4000, help="Simulated data sets for each cell of the table.")
    parser.add_argument("--icc", type=float, default=0.3, help="Intra-cluster correlation, between 0 and 1.")
    parser.add_argument("--seed", type=int, default=0, help="Seed of the simulation.")
    parser.add_argument("--clusters", type=int, nargs="+", default=CLUSTERS, help="Numbers of prompts.")
    parser.add_argument("--statistics", nargs="+", choices=STATISTICS, default=tuple(STATISTICS), metavar="NAME")
    args = parser.parse_args()
    table = tables(args.samples, args.icc, args.seed, args.clusters, args.statistics)
    print(json.dumps({"icc": args.icc, "samples": args.samples, "statistics": table}))


if __name__ == "__main__":
    main()
