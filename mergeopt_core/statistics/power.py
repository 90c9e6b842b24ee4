"""What a number of documents can tell: the smallest detectable difference, and the documents that one needs."""

from __future__ import annotations

import math

from scipy.special import ndtri


def detectable(error: float, level: float = 0.05, power: float = 0.8) -> float:
    """Smallest true difference that a two-sided test finds with this power: δ = (z_{1−level/2} + z_power)·σ.

    Args:
        error: standard error σ of the paired difference.
        level: chance of a false claim.
        power: chance of finding a difference of δ.

    Raises:
        ValueError: unless level and power lie strictly between 0 and 1. Bloom, Evaluation Review 1995.
    """
    return _multiple(level, power) * error


def documents_needed(difference: float, error: float, n: int, level: float = 0.05, power: float = 0.8) -> float:
    """Documents in all with which a true difference d is found with this power: n·(δ/d)², δ that of ``detectable``.

    Args:
        difference: the true difference d that is supposed; NaN is returned for 0, which no number finds.
        error: standard error of the paired difference on ``n`` documents; it falls as 1/√n.
        n: documents at hand.
        level: chance of a false claim.
        power: chance of finding the difference.
    """
    if difference == 0:
        return math.nan
    return n * (detectable(error, level, power) / difference) ** 2


def _multiple(level: float, power: float) -> float:
    if not (0 < level < 1 and 0 < power < 1):
        raise ValueError(f"level {level} and power {power}: need numbers between 0 and 1")
    return float(ndtri(1 - level / 2) + ndtri(power))
