"""What merging was worth: constructive interference, who leads, the share of a skill kept, the drop under attack."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from mergeopt_core.statistics.bootstrap import difference_p, percentile_interval
from mergeopt_core.statistics.tests import Interval, holm, wilson


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


def leads(
    scores: ArrayLike, replicates: NDArray, documents: int, confidence: float = 0.95
) -> tuple[int, list[Interval]]:
    """The highest of K paired scores, and its difference to each.

    As the best is chosen by looking, any of the K(K−1)/2 pairs could have been the one that is reported: the p-values
    are Holm-corrected over all pairs, which bounds the chance of even one false lead whichever comes out highest.

    Args:
        scores: the scores `[K]`.
        replicates: their paired bootstrap replicates `[K, B]`.
        documents: number of documents scored, for the floor of the p-values.
        confidence: coverage of each interval (these are not corrected).

    Returns:
        Position of the highest, and for each of the K the interval of highest − it; p is None where it is unknown.
    """
    points = np.asarray(scores, dtype=float)
    best = int(points.argmax())
    pairs = [(i, j) for i in range(len(points)) for j in range(i)]
    p = [difference_p(points[i] - points[j], replicates[i] - replicates[j], max(documents, 1)) for i, j in pairs]
    known = [k for k, value in enumerate(p) if not math.isnan(value)]
    corrected = dict(zip((pairs[k] for k in known), holm([p[k] for k in known])))
    found = []
    for k, point in enumerate(points):
        q = corrected.get((max(best, k), min(best, k)))
        gap = replicates[best] - replicates[k]
        found.append(percentile_interval(points[best] - point, gap, confidence, p=None if q is None else float(q)))
    return best, found


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
