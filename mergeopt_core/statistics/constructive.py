"""What merging was worth: constructive interference, the share of a skill that is kept, the drop under attack."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from mergeopt_core.statistics.tests import Interval, wilson


@dataclass(frozen=True)
class Standing:
    """Where a merge stands among what it was made of."""

    above_base: bool
    above_mean: bool
    constructive: bool
    best_rival: int
    """Position of the best of (base, expert 1, expert 2, …)."""


def constructive(merge: float, base: float, experts: Sequence[float]) -> Standing:
    """Compare a merge's suite score with its base's and its experts': constructive means better than all of them.

    constructive ⇔ s(merge) > max(s(base), s(expert_1), …, s(expert_K)). Equal is not above.

    Raises:
        ValueError: without experts, or for NaN.
    """
    rivals = np.array([base, *experts], dtype=float)
    if len(rivals) < 2 or np.isnan(rivals).any() or np.isnan(merge):
        raise ValueError("a merge is compared with the scores of its base and of at least one expert, none of them NaN")
    margin = 1e-12  # sums of the same terms in another order are equal
    return Standing(
        above_base=bool(merge > base + margin),
        above_mean=bool(merge > rivals[1:].mean() + margin),
        constructive=bool(merge > rivals.max() + margin),
        best_rival=int(rivals.argmax()),
    )


@dataclass(frozen=True)
class Tally:
    """k of n, with Wilson's interval of the share."""

    k: int
    n: int
    share: Interval

    @classmethod
    def of(cls, hits: Sequence[bool], confidence: float = 0.95) -> Tally:
        """Count the hits."""
        k = sum(map(bool, hits))
        return cls(k, len(hits), wilson(k, len(hits), confidence))


def union_test(differences: ArrayLike, p: ArrayLike) -> float:
    """p-value of 'the merge beats every rival': the largest of the pairwise ones, 1 where a difference is not positive.

    Beating all of them is claimed only when each single claim holds, so no correction for the number of rivals is due
    (intersection–union test; Berger, Technometrics 1982).

    Args:
        differences: merge − rival `[rivals]`.
        p: two-sided p-values of these differences `[rivals]`.

    Raises:
        ValueError: for vectors of different lengths, or without elements.
    """
    d, each = np.asarray(differences, dtype=float), np.asarray(p, dtype=float)
    if d.shape != each.shape or d.ndim != 1 or len(d) == 0:
        raise ValueError(f"differences {list(d.shape)} and p-values {list(each.shape)} must be vectors of one length")
    return 1.0 if (d <= 0).any() else float(each.max())


def share_kept(merge: NDArray, base: NDArray, expert: NDArray) -> NDArray:
    """Share of the experts' own-skill gain that a merge keeps: Σ_k (merge_k − base_k) / Σ_k (expert_k − base_k).

    All are scored on expert k's own task: 1 keeps everything, 0 keeps nothing, and below 0 the merge is worse than the
    base. The ratio of sums stays steady where the mean of ratios blows up: at an expert that gained next to nothing.
    Scores are `[K, …]`; trailing axes (replicates) are kept.
    """
    return (merge - base).sum(axis=0) / (expert - base).sum(axis=0)


def performance_drop(clean: ArrayLike, attacked: ArrayLike) -> NDArray:
    """Performance drop rate PDR = (clean − attacked) / clean: 0 is unharmed, 1 is all lost; NaN where clean is 0.

    Works on estimates and, element by element, on their replicates.
    """
    whole, left = np.asarray(clean, dtype=float), np.asarray(attacked, dtype=float)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(whole != 0, (whole - left) / whole, np.nan)
