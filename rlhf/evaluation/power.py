"""Differences that an evaluation can detect: "n prompts detect a difference of x", before it is run and after.

A difference is detected if its 95 % interval leaves out 0 (of a win rate: 0.5). With standard error se and Student's
t of G - 1 degrees of freedom for G prompts, the smallest difference that is detected in 80 of 100 repetitions is
(Bloom 1995, Evaluation Review 19, 547-556)

    x = (t_0.975 + t_0.8) * se

two-sided, at the 5 % level; 2.8 standard errors with many prompts. Before, se is assumed:

    se = sd * sqrt((1 + (m - 1) * rho) / (m n)),    sd of a win rate = sqrt(1 - ties) / 2

for n prompts with m answers of correlation rho each. A tie of 0.5 adds no variance. sd is that of two equal systems;
that of systems which differ is smaller. After, se is the clustered one of the data.
"""

from bisect import bisect_left
from math import sqrt

from scipy.special import stdtrit

from rlhf.statistics import Clusters, Values, cluster_standard_error

LEVEL, POWER = 0.05, 0.8


def win_rate_deviation(ties: float = 0.0) -> float:
    """Returns the standard deviation of one preference between two equal systems, with this share of ties in [0, 1]."""
    return sqrt(1 - ties) / 2


def detectable_difference(prompts: float, deviation: float, answers: int = 1, correlation: float = 1.0) -> float:
    """Returns the smallest difference that `prompts` prompts detect; at least two prompts.

    Args:
        prompts: number of prompts, n.
        deviation: standard deviation of one value: `win_rate_deviation(ties)`, or that of a score or paired difference.
        answers: number of values for each prompt, m.
        correlation: of the values of one prompt. The default is the worst case: more answers tell nothing new.
    """
    if prompts < 2:
        raise ValueError(f"{prompts} prompts have no interval; at least 2 are needed.")
    variance = deviation**2 * (1 + (answers - 1) * correlation) / (answers * prompts)
    return _quantiles(prompts - 1) * sqrt(variance)


def prompts_needed(difference: float, deviation: float, answers: int = 1, correlation: float = 1.0) -> int:
    """Returns the smallest number of prompts that detect a difference above 0; arguments of `detectable_difference`."""
    if difference <= 0:
        raise ValueError(f"A difference of {difference} cannot be detected; it must be above 0.")

    def undetected(prompts: int) -> bool:
        return detectable_difference(prompts, deviation, answers, correlation) > difference

    most = 2
    while undetected(most):
        most *= 2
    return 2 + bisect_left(range(2, most), True, key=lambda prompts: not undetected(prompts))


def measured_detectable_difference(values: Values, clusters: Clusters) -> float | None:
    """Returns the smallest difference that an evaluation detects, from its own values.

    None if all values are in one prompt, or have no variance to measure.

    Args:
        values: [N] preferences with ties 0.5 for a win rate, or paired differences of scores.
        clusters: [N] prompts.
    """
    measured = cluster_standard_error(values, clusters)
    if measured is None or measured[0] < 1e-9:
        return None
    return _quantiles(measured[1]) * measured[0]


def _quantiles(degrees_of_freedom: float) -> float:
    return float(stdtrit(degrees_of_freedom, 1 - LEVEL / 2) + stdtrit(degrees_of_freedom, POWER))
