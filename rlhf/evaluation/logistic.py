"""Logistic regression of preferences in [0, 1], ties 0.5, with the variance of its coefficients clustered by prompt.

With p = sigmoid(X beta), w = p (1 - p), A = sum_i w_i x_i x_i^T and A_g the part of cluster g, the variance is that
of the linearized jackknife that leaves out one of the G clusters at a time (CV3L: MacKinnon, Nielsen and Webb 2024,
arXiv 2406.00650):

    V = (G - 1) / G * sum_g d_g d_g^T,    d_g = (A - A_g)^-1 sum_{i in g} (y_i - p_i) x_i

It is the variance of `rlhf.statistics` if beta is one intercept. The usual sandwich (CV1) is too small with few
clusters.

Separated data, such as those of a system that always wins, have no finite maximum of the likelihood. It is then
multiplied by a power of Jeffreys' prior, and the maximum is finite for every data set (Kosmidis and Firth 2021,
Biometrika 108, 71-82):

    log L(beta) + repeats / 2 * log det A(beta)

`repeats` is the number of observations that a cluster may repeat, so that the prior weighs as much as one cluster,
however often its answers are repeated. The residuals of separated data say nothing about the variance. V is then the
inverse of the information, times `repeats`: as if each cluster had been observed once.
"""

from dataclasses import dataclass

import numpy as np
from scipy.special import expit

TINY = 1e-12  # variances below it are rounding errors of 0


@dataclass(frozen=True)
class ClusteredLogit:
    """Coefficients and their variance.

    Attributes:
        coefficients: [k] float64.
        covariance: [k, k] float64.
        weights: [N] p (1 - p) of the observations.
        effective_clusters: [k] number of clusters that determine each coefficient, (sum_g c_g)^2 / sum_g c_g^2 with the
            share c_g of cluster g in its variance under independence (Carter, Schnepel and Steigerwald 2017, doi
            10.1162/REST_a_00639).
        known: [k] False if a coefficient rests on a single cluster, whose error is unknown.
    """

    coefficients: np.ndarray
    covariance: np.ndarray
    weights: np.ndarray
    effective_clusters: np.ndarray
    known: np.ndarray


def clustered_logit(
    y: np.ndarray,
    features: np.ndarray,
    index: np.ndarray,
    repeats: float,
    separated: bool,
    coefficients: np.ndarray | None = None,
) -> ClusteredLogit:
    """Returns the regression of `y` on `features`.

    Args:
        y: [N] preferences in [0, 1].
        features: [N, k], of rank k.
        index: [N] integers from 0, the clusters.
        repeats: see above; at least 1.
        separated: whether the likelihood has no finite maximum.
        coefficients: [k] maximum of the likelihood, if it is known already.
    """
    if separated:
        coefficients = logit_coefficients(y, features, repeats)
    elif coefficients is None:
        coefficients = logit_coefficients(y, features)
    p = expit(features @ coefficients)
    weights = p * (1 - p)
    designs = _cluster_products(features, np.ones_like(weights), index)
    information = _cluster_products(features, weights, index)
    inverse = np.linalg.inv(information.sum(0))
    shares = np.einsum("ij,gjk,ki->gi", inverse, information, inverse)
    as_if_once = inverse * repeats
    if separated:
        hat = repeats * _hat(features, weights)
        as_if_once = np.linalg.inv(_cluster_products(features, weights * (1 + hat), index).sum(0)) * repeats
    covariance = as_if_once
    if not separated and len(information) > 1:
        covariance = _jackknife(information, _cluster_sums(features * (y - p)[:, None], index))
        without_error = np.diag(covariance) < TINY  # ties alone
        covariance = np.where(without_error[:, None] | without_error[None, :], as_if_once, covariance)
    return ClusteredLogit(
        coefficients,
        covariance,
        weights,
        shares.sum(0) ** 2 / np.square(shares).sum(0),
        _estimable_without_each_cluster(designs),
    )


def logit_coefficients(y: np.ndarray, features: np.ndarray, repeats: float = 0.0) -> np.ndarray:
    """Returns the [k] maximum of log L + repeats / 2 * log det A, by Newton's method.

    The gradient is sum_i (y_i - p_i + h_i (1/2 - p_i)) x_i with h_i = repeats * w_i x_i^T A^-1 x_i (Firth 1993,
    Biometrika 80, 27-38).

    Raises:
        RuntimeError: no maximum was found; without the prior, the data may be separated.
    """
    beta = np.zeros(features.shape[1])
    value = _penalized_likelihood(beta, y, features, repeats)
    for _ in range(500):
        p = expit(features @ beta)
        weights = p * (1 - p)
        hat = repeats * _hat(features, weights) if repeats else np.zeros_like(p)
        gradient = features.T @ (y - p + hat * (0.5 - p))
        step = np.linalg.solve(features.T @ (features * (weights * (1 + hat))[:, None]), gradient)
        if np.abs(features @ step).max() < 1e-9:
            return beta + step
        size = min(1.0, 5.0 / np.abs(features @ step).max())  # a longer step could reach p = 0 or 1
        while (new := _penalized_likelihood(beta + size * step, y, features, repeats)) < value and size > 1e-6:
            size /= 2
        beta, value = beta + size * step, new
    raise RuntimeError("The logistic regression did not converge.")


def _penalized_likelihood(beta: np.ndarray, y: np.ndarray, features: np.ndarray, repeats: float) -> float:
    log_odds = features @ beta
    value = float(y @ log_odds - np.logaddexp(0.0, log_odds).sum())
    if repeats:
        p = expit(log_odds)
        value += repeats / 2 * float(np.linalg.slogdet(features.T @ (features * (p * (1 - p))[:, None]))[1])
    return value


def wilson_half_width(standard_error: float, t: float) -> float:
    """Returns the half-width on the logit scale of an interval of log odds, 2 asinh(t * se / 2).

    Wilson's interval of a share p of n observations is exactly logit p +- 2 asinh(t * se / 2) with the standard error
    of the logit, se = 1 / sqrt(n p (1 - p)) (Newcombe 2001, The American Statistician 55, 200-202). So two systems
    get the interval of `rlhf.statistics.win_rate`.
    """
    return 2.0 * float(np.arcsinh(t * standard_error / 2))


def _hat(features: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Returns w_i x_i^T A^-1 x_i, [N]."""
    information = features.T @ (features * weights[:, None])
    return weights * np.einsum("ij,ji->i", features, np.linalg.solve(information, features.T))


def _cluster_sums(values: np.ndarray, index: np.ndarray) -> np.ndarray:
    """Returns the sums over clusters, [G, k], of values [N, k]."""
    return np.stack([np.bincount(index, weights=column) for column in values.T], axis=1)


def _cluster_products(features: np.ndarray, weights: np.ndarray, index: np.ndarray) -> np.ndarray:
    """Returns sum_{i in g} w_i x_i x_i^T, [G, k, k]."""
    products = (features * weights[:, None])[:, :, None] * features[:, None, :]
    k = features.shape[1]
    return _cluster_sums(products.reshape(len(features), k * k), index).reshape(-1, k, k)


def _jackknife(information: np.ndarray, scores: np.ndarray) -> np.ndarray:
    rest = np.linalg.pinv(information.sum(0) - information, hermitian=True)
    deletions = np.einsum("gij,gj->gi", rest, scores)
    return (len(scores) - 1) / len(scores) * deletions.T @ deletions


def _estimable_without_each_cluster(designs: np.ndarray) -> np.ndarray:
    """Returns [k] booleans: coefficient j has an estimate from the other clusters, whichever one is left out."""
    rest = designs.sum(0) - designs
    projection = np.linalg.pinv(rest, rcond=1e-10, hermitian=True) @ rest
    return np.abs(projection - np.eye(designs.shape[1])).max(axis=(0, 2)) < 1e-6
