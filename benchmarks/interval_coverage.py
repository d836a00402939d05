"""How often the 95 % intervals of `rlhf.statistics` cover the truth, for 5 to 200 clusters of unequal sizes.

    python benchmarks/interval_coverage.py

Cluster sizes are rounded log-normal numbers with a median of 4 to 5; one in twenty is above 16. Values of a cluster are
correlated (--icc). The statistics: `normal` and `skewed` (exponential) are means of continuous values, `share .5` and
`share .9` are win rates, `difference` is the mean of paired differences, and `share difference` compares two arms with
shares of .6 and .5 on the same clusters. With 4,000 samples the standard error of a coverage of 95 % is 0.3 %. Prints a
table, and the same as JSON on the last line.
"""

import argparse
import json
from collections.abc import Callable

import numpy as np

from rlhf.statistics import Estimate, cluster_difference, cluster_mean, cluster_share, share_difference

CLUSTERS = (5, 10, 20, 50, 200)


class Sample:
    """Values of clusters of random sizes; each method returns an estimate and the truth."""

    def __init__(self, clusters: int, icc: float, rng: np.random.Generator):
        self.icc, self.rng = icc, rng
        sizes = np.maximum(1, np.round(np.exp(rng.normal(1.5, 0.8, size=clusters)))).astype(int)
        self.index = np.repeat(np.arange(clusters), sizes)
        self.clusters = clusters

    def normal(self) -> tuple[Estimate, float]:
        return cluster_mean(self.continuous(self.rng.normal), self.index), 0.0

    def skewed(self) -> tuple[Estimate, float]:
        return cluster_mean(self.continuous(lambda size: self.rng.exponential(size=size) - 1), self.index), 0.0

    def share(self, p: float) -> tuple[Estimate, float]:
        return cluster_share(self.successes(self.chances(p)), self.index), p

    def difference(self) -> tuple[Estimate, float]:
        base, gain = self.continuous(self.rng.normal), self.continuous(self.rng.normal)
        return cluster_difference(10 * base + gain + 1, 10 * base, self.index), 1.0

    def share_difference(self) -> tuple[Estimate, float]:
        easy = self.chances(0.6)
        a, b = self.successes(easy), self.successes(easy * 5 / 6)
        return share_difference(a, b, self.index, self.index), 0.1

    def continuous(self, draw: Callable[..., np.ndarray]) -> np.ndarray:
        """Values of mean 0 and variance 1, with the intra-cluster correlation."""
        effects = draw(size=self.clusters)[self.index]
        return np.sqrt(self.icc) * effects + np.sqrt(1 - self.icc) * draw(size=len(self.index))

    def chances(self, p: float) -> np.ndarray:
        """Each cluster's chance of success: beta, with mean p and the intra-cluster correlation."""
        total = 1 / self.icc - 1
        return self.rng.beta(p * total, (1 - p) * total, size=self.clusters)

    def successes(self, chances: np.ndarray) -> np.ndarray:
        return (self.rng.random(len(self.index)) < chances[self.index]).astype(float)


STATISTICS: dict[str, Callable[[Sample], tuple[Estimate, float]]] = {
    "normal": Sample.normal,
    "skewed": Sample.skewed,
    "share .5": lambda sample: sample.share(0.5),
    "share .9": lambda sample: sample.share(0.9),
    "difference": Sample.difference,
    "share difference": Sample.share_difference,
}


def coverage(statistic: Callable, clusters: int, icc: float, samples: int, rng: np.random.Generator) -> dict:
    """Returns the share of intervals that cover the truth, and their median width."""
    covered, widths = 0, []
    for _ in range(samples):
        estimate, truth = statistic(Sample(clusters, icc, rng))
        covered += estimate.low <= truth <= estimate.high
        widths.append(estimate.high - estimate.low)
    return {"coverage": covered / samples, "median_width": float(np.median(widths))}


def tables(samples: int, icc: float, seed: int) -> dict[str, dict[int, dict]]:
    """Returns statistic -> number of clusters -> cell; prints one line for each statistic when it is done."""
    rng, table = np.random.default_rng(seed), {}
    print(f"{'coverage in %, clusters:':<26}" + "".join(f"{clusters:>8}" for clusters in CLUSTERS))
    for name, statistic in STATISTICS.items():
        table[name] = {n: coverage(statistic, n, icc, samples, rng) for n in CLUSTERS}
        print(f"{name:<26}" + "".join(f"{100 * cell['coverage']:>8.1f}" for cell in table[name].values()), flush=True)
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=4000, help="Simulated data sets for each cell of the table.")
    parser.add_argument("--icc", type=float, default=0.3, help="Intra-cluster correlation, between 0 and 1.")
    parser.add_argument("--seed", type=int, default=0, help="Seed of the simulation.")
    args = parser.parse_args()
    table = tables(args.samples, args.icc, args.seed)
    print(json.dumps({"icc": args.icc, "samples": args.samples, "statistics": table}))


if __name__ == "__main__":
    main()
