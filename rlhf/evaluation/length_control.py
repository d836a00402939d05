"""Length-controlled win rate: how often a system would win if its answers were as long as the baseline's.

After Dubois et al. 2024 (arXiv 2404.04475). Judges prefer longer answers. A logistic regression tells the part of
length from the rest,

    P(win) = sigmoid(a + b tanh(d / sd(d))),    d = length of the answer - length of the baseline's answer

and sigmoid(a) is the win rate at d = 0. tanh is theirs: a difference of ten standard deviations should not move a
judge ten times as much as one of one, and a single endless answer should not decide the slope. d is not centered, so
0 stays equal lengths. Two terms of theirs are left out: the difficulty of an instruction, which takes the verdicts on
many systems to estimate, and the ridge penalty on b, which biases a towards the plain win rate.

statsmodels fits the regression. Its cluster-robust covariance is too small with few prompts; the variance is that of
`rlhf.evaluation.logistic`. The interval combines two parts as `rlhf.statistics.share_difference` does (Zou and Donner
2008, doi 10.1002/sim.3095): the win rate at the mean m of the covariate x, as a Wilson interval on the logit scale,
and the way from there to 0 along the slope, as a t interval:

    a = (a + b m) - b m,    half-width^2 = h1^2 + h2^2 - 2 r h1 h2,
    h1 = 2 asinh(t se(a + b m) / 2),    h2 = t |m| se(b)

with m = sum w x / sum w and the correlation r of the two parts. With answers of equal length, win rate and interval are
those of `rlhf.statistics.win_rate`. If a length separates all wins from all defeats, or there is only one of the two,
the estimate is the finite one under Jeffreys' prior (`rlhf.evaluation.logistic`).
"""

import warnings

import numpy as np
from scipy.special import expit, stdtrit

from rlhf.errors import InputError
from rlhf.evaluation.logistic import ClusteredLogit, clustered_logit, wilson_half_width
from rlhf.statistics import Clusters, Estimate, Values, cluster_share


def length_controlled_win_rate(
    preferences: Values, lengths: Values, baseline_lengths: Values, clusters: Clusters
) -> Estimate | None:
    """Returns the win rate at equal lengths; None if every answer is longer, or shorter, by nearly the same number.

    Args:
        preferences: [N] 1 if the system's answer is preferred, 0 if the baseline's is, 0.5 for a tie; or a probability.
        lengths, baseline_lengths: [N] lengths of the two answers, both in tokens or both in characters.
        clusters: [N] prompts.

    Raises:
        InputError: statsmodels is not installed.
        ValueError: no preferences, or lengths that differ.
    """
    y = np.asarray(preferences, dtype=float)
    difference = np.asarray(lengths, dtype=float) - np.asarray(baseline_lengths, dtype=float)
    prompts = clusters if isinstance(clusters, np.ndarray) else np.array(list(clusters))
    if not len(y) or not len(y) == len(difference) == len(prompts):
        raise ValueError(f"Got {len(y)} preferences, {len(difference)} pairs of lengths and {len(prompts)} clusters.")
    if not difference.any():
        return cluster_share(y, prompts)
    deviation = difference.std()
    x = np.tanh(difference / deviation) if deviation else np.ones_like(difference)
    if np.ptp(x) < 0.01:  # x = 0 is a hundred times the range of the data away
        return None
    index = np.unique(prompts, return_inverse=True)[1]
    clusters_n = len(y) ** 2 / np.square(np.bincount(index)).sum()  # effective, see rlhf.statistics
    features = np.column_stack([np.ones_like(x), x])
    separated = _separated(y, x)
    logit = clustered_logit(
        y,
        features,
        index,
        repeats=len(y) / clusters_n,
        separated=separated,
        coefficients=None if separated else _glm(y, features),
    )
    log_odds = float(logit.coefficients[0])
    if not logit.known.all():
        return Estimate(float(expit(log_odds)), 0.0, 1.0, len(y))
    half_width = _half_width(logit, x, float(stdtrit(max(clusters_n - 1.0, 1.0), 0.975)))
    low, high = float(expit(log_odds - half_width)), float(expit(log_odds + half_width))
    return Estimate(float(expit(log_odds)), low, high, len(y))


def _glm(y: np.ndarray, features: np.ndarray) -> np.ndarray:
    try:
        from statsmodels.genmod.families import Binomial
        from statsmodels.genmod.generalized_linear_model import GLM
        from statsmodels.tools.sm_exceptions import PerfectSeparationWarning
    except ImportError as error:
        raise InputError("the package statsmodels is missing. Run pip install 'instruct-rlhf[eval]'.") from error
    with warnings.catch_warnings(), np.errstate(invalid="ignore"):  # two values leave no degrees of freedom
        warnings.simplefilter("ignore", PerfectSeparationWarning)  # also said of ties alone, which are fitted exactly
        return np.asarray(GLM(y, features, family=Binomial()).fit(tol=1e-12).params)


def _separated(y: np.ndarray, x: np.ndarray) -> bool:
    """Returns True if a threshold on x has all wins on one side and all defeats on the other; a tie is both."""
    won, lost = x[y > 0], x[y < 1]
    return not len(won) or not len(lost) or won.min() >= lost.max() or lost.min() >= won.max()


def _half_width(logit: ClusteredLogit, x: np.ndarray, t: float) -> float:
    """Returns the half-width of the interval of `a`, on the logit scale."""
    m = float(logit.weights @ x / logit.weights.sum())
    at_mean, slope = np.array([1.0, m]), np.array([0.0, m])
    variance, slope_variance, covariance = (
        float(u @ logit.covariance @ v) for u, v in ((at_mean, at_mean), (slope, slope), (at_mean, slope))
    )
    h1, h2 = wilson_half_width(np.sqrt(variance), t), t * np.sqrt(slope_variance)
    scale = np.sqrt(variance * slope_variance)
    r = covariance / scale if scale > 1e-12 else 0.0
    return float(np.sqrt(max(h1 * h1 + h2 * h2 - 2 * r * h1 * h2, 0.0)))
