"""Estimates with their intervals, exact tests of counts, and p-values corrected for having asked many questions."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import ndtri


@dataclass(frozen=True)
class Interval:
    """An estimate, the interval around it and, for a difference, the two-sided p-value of 'it is zero'."""

    estimate: float
    low: float
    high: float
    p: float | None = None

    @property
    def known(self) -> bool:
        """Whether the interval could be computed (a lone estimate has NaN bounds)."""
        return not (math.isnan(self.low) or math.isnan(self.high))

    @property
    def excludes_zero(self) -> bool:
        """Whether the interval lies wholly on one side of zero."""
        return self.known and (self.low > 0 or self.high < 0)


def wilson(k: int, n: int, confidence: float = 0.95) -> Interval:
    """Score interval of a proportion: all π with |k/n − π| ≤ z·√(π(1−π)/n).

    The bounds are (k + z²/2 ± z·√(k(n−k)/n + z²/4)) / (n + z²). With n = 0 nothing is known: (NaN, 0, 1).
    Wilson, "Probable inference, the law of succession, and statistical inference", JASA 1927.

    Raises:
        ValueError: unless 0 ≤ k ≤ n and 0 < confidence < 1.
    """
    _check_counts(k, n, confidence)
    if n == 0:
        return Interval(math.nan, 0.0, 1.0)
    z = float(ndtri((1 + confidence) / 2))
    middle = (k + z * z / 2) / (n + z * z)
    half = z * math.sqrt(k * (n - k) / n + z * z / 4) / (n + z * z)
    return Interval(k / n, max(0.0, middle - half) if k else 0.0, min(1.0, middle + half) if k < n else 1.0)


def clopper_pearson(k: int, n: int, confidence: float = 0.95) -> Interval:
    """Exact interval of a proportion, from the quantiles that invert both binomial tails.

    Never covers less than asked, so it is wider than Wilson's. Clopper & Pearson, Biometrika 1934.

    Raises:
        ValueError: unless 0 ≤ k ≤ n and 0 < confidence < 1.
    """
    from scipy import stats

    _check_counts(k, n, confidence)
    if n == 0:
        return Interval(math.nan, 0.0, 1.0)
    found = stats.binomtest(k, n).proportion_ci(confidence, method="exact")
    return Interval(k / n, float(found.low), float(found.high))


def _check_counts(k: int, n: int, confidence: float) -> None:
    if not 0 <= k <= n:
        raise ValueError(f"k = {k} successes of n = {n}: need 0 ≤ k ≤ n")
    if not 0 < confidence < 1:
        raise ValueError(f"confidence = {confidence}: need a number between 0 and 1")


def binomial_test(k: int, n: int, chance: float = 0.5) -> float:
    """Exact two-sided p-value of k successes in n: the mass of all outcomes no likelier than the one seen.

    Raises:
        ValueError: unless 0 ≤ k ≤ n and 0 ≤ chance ≤ 1.
    """
    from scipy import stats

    return float(stats.binomtest(k, n, chance).pvalue) if k or n else 1.0


def mcnemar(a: ArrayLike, b: ArrayLike) -> float:
    """Exact McNemar test for paired 0/1 scores: the documents on which the two differ fall either way like a coin.

    p = binomial_test(#{a=1, b=0}, #{a≠b}) for scores `[n]`. McNemar, Psychometrika 1947.

    Raises:
        ValueError: for different shapes or scores other than 0 and 1.
    """
    x, y = paired(a, b)
    if not (np.isin(x, (0, 1)).all() and np.isin(y, (0, 1)).all()):
        raise ValueError("McNemar's test needs scores that are 0 or 1; use sign_flip or paired_bootstrap for others")
    return binomial_test(int((x > y).sum()), int((x != y).sum()))


def paired(a: ArrayLike, b: ArrayLike) -> tuple[NDArray, NDArray]:
    """Both scores as vectors `[n]`; ValueError for different shapes."""
    x, y = np.asarray(a, dtype=float), np.asarray(b, dtype=float)
    if x.shape != y.shape or x.ndim != 1:
        raise ValueError(f"paired scores must be vectors of one length, not {list(x.shape)} and {list(y.shape)}")
    return x, y


def holm(p: ArrayLike) -> NDArray:
    """Adjusted p-values `[m]` that bound the chance of even one false claim: p̃_(i) = max_{j≤i} min(1, (m−j+1)·p_(j)).

    Valid under any dependence. Holm, "A simple sequentially rejective multiple test procedure", 1979.

    Raises:
        ValueError: for anything but a vector of numbers in [0, 1].
    """
    values = _p_values(p)
    order, m = np.argsort(values, kind="stable"), len(values)
    adjusted = np.empty(m)
    adjusted[order] = np.maximum.accumulate(np.minimum(1.0, (m - np.arange(m)) * values[order]))
    return adjusted


def benjamini_hochberg(p: ArrayLike) -> NDArray:
    """Adjusted p-values `[m]` that bound the expected share of false claims: p̃_(i) = min_{j≥i} min(1, m·p_(j)/j).

    Valid under independence and positive dependence. Benjamini & Hochberg, JRSS B 1995.

    Raises:
        ValueError: for anything but a vector of numbers in [0, 1].
    """
    from scipy import stats

    return stats.false_discovery_control(_p_values(p))


def _p_values(p: ArrayLike) -> NDArray:
    values = np.asarray(p, dtype=float)
    if values.ndim != 1:
        raise ValueError(f"p-values must be a vector, not of shape {list(values.shape)}")
    if not ((values >= 0) & (values <= 1)).all():
        raise ValueError("p-values must lie between 0 and 1")
    return values
