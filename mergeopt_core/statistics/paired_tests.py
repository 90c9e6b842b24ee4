"""Tests of 'both models answer these documents equally well', exact where that can be had."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import gammaln, xlog1py, xlogy

from mergeopt_core.statistics.strata import stratum_weights

EXACT_UP_TO = 16
"""Documents that differ, up to which all 2^m sign patterns are gone through."""
CHUNK = 1 << 22
"""Signs held in memory at once."""


def binomial_test(k: int, n: int, chance: float = 0.5) -> float:
    """Exact two-sided p-value of k successes in n: the mass of all outcomes no likelier than the one seen.

    Raises:
        ValueError: unless 0 ≤ k ≤ n and 0 ≤ chance ≤ 1.
    """
    if not 0 <= k <= n or not 0 <= chance <= 1:
        raise ValueError(f"k = {k}, n = {n}, chance = {chance}: need 0 ≤ k ≤ n and 0 ≤ chance ≤ 1")
    i = np.arange(n + 1)
    log_mass = gammaln(n + 1) - gammaln(i + 1) - gammaln(n - i + 1) + xlogy(i, chance) + xlog1py(n - i, -chance)
    mass = np.exp(log_mass)
    return float(min(1.0, mass[mass <= mass[k] * (1 + 1e-7)].sum()))


def mcnemar(a: ArrayLike, b: ArrayLike) -> float:
    """Exact McNemar test for paired 0/1 scores: the documents on which the two differ fall either way like a coin.

    p = binomial_test(#{a=1, b=0}, #{a≠b}). McNemar, Psychometrika 1947.

    Args:
        a: 0/1 scores of one model `[n]`.
        b: 0/1 scores of the other on the same documents `[n]`.

    Raises:
        ValueError: for different shapes or scores other than 0 and 1.
    """
    x, y = np.asarray(a, dtype=float), np.asarray(b, dtype=float)
    if x.shape != y.shape or x.ndim != 1:
        raise ValueError(f"paired scores must be vectors of one length, not {list(x.shape)} and {list(y.shape)}")
    if not (np.isin(x, (0, 1)).all() and np.isin(y, (0, 1)).all()):
        raise ValueError("McNemar's test needs scores that are 0 or 1; use sign_flip or paired_bootstrap for others")
    return binomial_test(int((x > y).sum()), int((x != y).sum()))


def sign_flip(
    a: ArrayLike, b: ArrayLike, strata: ArrayLike | None = None, *, resamples: int = 10_000, seed: int = 0
) -> float:
    """Permutation test of the macro mean difference: under no difference each document's sign is a fair coin.

    The statistic is Σ_i w_i(a_i − b_i) with w_i = 1/(T·n_t) for a document of task t. Exact (every sign pattern) for up
    to 16 documents that differ; otherwise p = (1 + #{|S*| ≥ |S|}) / (resamples + 1). Fisher, 1935.

    Args:
        a: scores of one model `[n]`.
        b: scores of the other on the same documents `[n]`.
        strata: the task of each document `[n]`; default: one task.
        resamples: random sign patterns where there are too many for all.
        seed: of the random signs.

    Raises:
        ValueError: for different lengths or NaN.
    """
    x, y = np.asarray(a, dtype=float), np.asarray(b, dtype=float)
    if x.shape != y.shape or x.ndim != 1:
        raise ValueError(f"paired scores must be vectors of one length, not {list(x.shape)} and {list(y.shape)}")
    terms = (x - y) * stratum_weights(len(x), strata)  # [n]
    if np.isnan(terms).any():
        raise ValueError("scores hold NaN")
    terms = terms[terms != 0]  # [m]
    if len(terms) == 0:
        return 1.0
    seen = abs(terms.sum()) * (1 - 1e-9)
    if len(terms) <= EXACT_UP_TO:
        return float((np.abs(_all_signs(len(terms)) @ terms) >= seen).mean())
    hits, done, rng = 0, 0, np.random.default_rng(seed)
    while done < resamples:
        rows = min(resamples - done, max(1, CHUNK // len(terms)))
        signs = rng.integers(0, 2, (rows, len(terms)), dtype=np.int8) * 2.0 - 1  # [rows, m]
        hits += int((np.abs(signs @ terms) >= seen).sum())
        done += rows
    return (1 + hits) / (resamples + 1)


def _all_signs(m: int) -> NDArray:
    """All sign patterns of m documents `[2^m, m]`."""
    return ((np.arange(2**m)[:, None] >> np.arange(m)) & 1) * 2.0 - 1
