"""p-values corrected for having asked many questions."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray


def _sorted(p: ArrayLike) -> tuple[NDArray, NDArray]:
    p = np.asarray(p, dtype=float)
    if p.ndim != 1:
        raise ValueError(f"p-values must be a vector, not of shape {list(p.shape)}")
    if np.isnan(p).any() or (p < 0).any() or (p > 1).any():
        raise ValueError("p-values must lie between 0 and 1")
    order = np.argsort(p, kind="stable")
    return p[order], order


def holm(p: ArrayLike) -> NDArray:
    """Adjusted p-values that bound the chance of even one false claim: p̃_(i) = max_{j≤i} min(1, (m−j+1)·p_(j)).

    Valid under any dependence. Holm, "A simple sequentially rejective multiple test procedure", 1979.

    Args:
        p: p-values `[m]`.

    Returns:
        Adjusted p-values `[m]` in the order given.

    Raises:
        ValueError: for anything but a vector of numbers in [0, 1].
    """
    ranked, order = _sorted(p)
    m = len(ranked)
    adjusted = np.empty(m)
    adjusted[order] = np.maximum.accumulate(np.minimum(1.0, (m - np.arange(m)) * ranked))
    return adjusted


def benjamini_hochberg(p: ArrayLike) -> NDArray:
    """Adjusted p-values that bound the expected share of false claims: p̃_(i) = min_{j≥i} min(1, m·p_(j)/j).

    Valid under independence and positive dependence. Benjamini & Hochberg, JRSS B 1995.

    Args:
        p: p-values `[m]`.

    Returns:
        Adjusted p-values `[m]` in the order given.

    Raises:
        ValueError: for anything but a vector of numbers in [0, 1].
    """
    ranked, order = _sorted(p)
    m = len(ranked)
    scaled = np.minimum(1.0, m * ranked / np.arange(1, m + 1))
    adjusted = np.empty(m)
    adjusted[order] = np.minimum.accumulate(scaled[::-1])[::-1]
    return adjusted
