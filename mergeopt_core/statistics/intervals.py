"""An estimate with its interval, and the two intervals of a proportion."""

from __future__ import annotations

import math
from dataclasses import dataclass

from scipy.special import betaincinv, ndtri


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


def _check(k: int, n: int, confidence: float) -> None:
    if not 0 <= k <= n:
        raise ValueError(f"k = {k} successes of n = {n}: need 0 ≤ k ≤ n")
    if not 0 < confidence < 1:
        raise ValueError(f"confidence = {confidence}: need a number between 0 and 1")


def wilson(k: int, n: int, confidence: float = 0.95) -> Interval:
    """Score interval of a proportion: all π with |k/n − π| ≤ z·√(π(1−π)/n).

    The bounds are (k + z²/2 ± z·√(k(n−k)/n + z²/4)) / (n + z²). With n = 0 nothing is known: (NaN, 0, 1).
    Wilson, "Probable inference, the law of succession, and statistical inference", JASA 1927.

    Raises:
        ValueError: unless 0 ≤ k ≤ n and 0 < confidence < 1.
    """
    _check(k, n, confidence)
    if n == 0:
        return Interval(math.nan, 0.0, 1.0)
    z = float(ndtri((1 + confidence) / 2))
    middle = (k + z * z / 2) / (n + z * z)
    half = z * math.sqrt(k * (n - k) / n + z * z / 4) / (n + z * z)
    low = 0.0 if k == 0 else max(0.0, middle - half)
    high = 1.0 if k == n else min(1.0, middle + half)
    return Interval(k / n, low, high)


def clopper_pearson(k: int, n: int, confidence: float = 0.95) -> Interval:
    """Exact interval of a proportion: the Beta quantiles that invert both binomial tails.

    Never covers less than asked, so it is wider than Wilson's. Clopper & Pearson, Biometrika 1934.

    Raises:
        ValueError: unless 0 ≤ k ≤ n and 0 < confidence < 1.
    """
    _check(k, n, confidence)
    if n == 0:
        return Interval(math.nan, 0.0, 1.0)
    tail = (1 - confidence) / 2
    low = 0.0 if k == 0 else float(betaincinv(k, n - k + 1, tail))
    high = 1.0 if k == n else float(betaincinv(k + 1, n - k, 1 - tail))
    return Interval(k / n, low, high)
