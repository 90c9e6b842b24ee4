"""The best of several, chosen by looking, and whether it leads."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray

from mergeopt_core.statistics.bootstrap import difference_p, percentile_interval
from mergeopt_core.statistics.tests import Interval, holm


def leads(
    scores: ArrayLike, replicates: NDArray, documents: int, confidence: float = 0.95
) -> tuple[int, list[Interval]]:
    """The highest of K paired scores, and its difference to each.

    As the best is chosen by looking, any of the K(K−1)/2 pairs could have been the one that is told of: the p-values
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
