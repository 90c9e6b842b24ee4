"""Resampling: the stratified paired bootstrap, and the sign-flip test of a paired difference.

Documents are drawn anew within each task, the same draw for every model. One matrix product per task gives the
replicates of all models at once; any difference of two models, any mean over merges, is then a difference or a mean of
replicates.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Mapping

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import ndtr

from mergeopt_core.statistics.tests import Interval, paired

CHUNK = 1 << 21
"""Document counts, or signs, held in memory at once."""
EXACT_UP_TO = 16
"""Documents that differ, up to which all 2^m sign patterns are gone through."""


def task_replicates(scores: NDArray, *, resamples: int, seed: int, task: str = "") -> NDArray:
    """Bootstrap replicates `[models, B]` of every model's mean on one task, from scores `[models, n]`.

    Each replicate draws n documents with replacement, the same for all models, and moves from the mean by
    √(n/(n−1)) times the resampled deviation, so that its variance is s²/n with the unbiased s² (Rao & Wu, JASA 1988).
    The draw depends on (seed, task, n) only: on no other task, and not on how many models there are. One document has
    no spread: its replicates are constant.
    """
    models, n = scores.shape
    mean = scores.mean(axis=1)  # [models]
    if n == 1:
        return np.repeat(mean[:, None], resamples, axis=1)
    rng = np.random.default_rng([seed, zlib.crc32(task.encode()), n])
    deviations = (scores - mean[:, None]) * (math.sqrt(n / (n - 1)) / n)  # [models, n]
    out = np.empty((models, resamples))
    step = max(1, CHUNK // n)
    for start in range(0, resamples, step):
        rows = min(step, resamples - start)
        drawn = rng.integers(0, n, (rows, n)) + np.arange(rows)[:, None] * n  # [rows, n]
        counts = np.bincount(drawn.ravel(), minlength=rows * n).reshape(rows, n)
        out[:, start : start + rows] = deviations @ counts.T.astype(float)
    return out + mean[:, None]


def macro_replicates(tasks: Mapping[str, NDArray], *, resamples: int = 2000, seed: int = 0) -> NDArray:
    """Bootstrap replicates `[models, B]` of every model's macro mean (1/T)·Σ_t mean_t, from scores `[models, n_t]`."""
    if not tasks:
        raise ValueError("no tasks")
    draws = (task_replicates(scores, resamples=resamples, seed=seed, task=name) for name, scores in tasks.items())
    return sum(draws, np.zeros(())) / len(tasks)


def cluster_weights(clusters: int, population: int | None = None, *, resamples: int, seed: int = 0) -> NDArray:
    """Weights that resample a second level: which merges (expert subsets, pools, seeds) happened to be drawn.

    w_bs = 1/S + (c_bs − 1)/S · √(S/(S−1) · (1 − S/N)) for counts c_b ~ Multinomial(S; 1/S): unbiased between-cluster
    variance with the finite-population correction, so nothing is added when all N possible clusters were used.
    Used beside the documents' draw this is the two-way bootstrap of Owen, Annals of Applied Statistics 2007.

    Args:
        clusters: number S of merges drawn.
        population: number N of merges that there are; None: infinitely many.
        resamples: number of replicates B.
        seed: of the draw.

    Returns:
        Weights `[S, B]`, each column summing to 1. One cluster has no spread: its weight is 1.

    Raises:
        ValueError: for no cluster, or more than there are.
    """
    if clusters < 1 or (population is not None and population < clusters):
        raise ValueError(f"{clusters} clusters of a population of {population}")
    if clusters == 1 or clusters == population:
        return np.full((clusters, resamples), 1 / clusters)
    rng = np.random.default_rng([seed, clusters, 0x5EB5E7])
    counts = rng.multinomial(clusters, np.full(clusters, 1 / clusters), size=resamples).T  # [S, B]
    unseen = 1.0 if population is None else 1 - clusters / population
    return 1 / clusters + (counts - 1) / clusters * math.sqrt(clusters / (clusters - 1) * unseen)


def percentile_interval(
    estimate: float, replicates: NDArray, confidence: float = 0.95, *, p: float | None = None
) -> Interval:
    """Interval between the (1∓confidence)/2 quantiles of the replicates `[B]`."""
    tail = (1 - confidence) / 2
    low, high = np.quantile(replicates, [tail, 1 - tail])
    return Interval(float(estimate), float(low), float(high), p)


def difference_p(estimate: float, replicates: NDArray, differing: int) -> float:
    """Two-sided p-value of 'no difference': 2Φ(−|d|/σ*), never below 2^(1−m).

    σ* is the replicates' standard deviation; counting replicates instead could not go below 1/B, which a correction
    for many questions needs. 2^(1−m) is the least p-value an exact sign-flip test can give when m documents differ.

    Args:
        estimate: the difference d.
        replicates: its bootstrap replicates `[B]`; NaN where they are unknown, and the p-value then.
        differing: number m of documents on which the two differ.
    """
    if differing == 0 or estimate == 0:
        return 1.0
    spread = float(np.std(replicates))
    if math.isnan(spread):
        return math.nan
    tail = 2 * float(ndtr(-abs(estimate) / spread)) if spread > 0 else 0.0
    return min(1.0, max(tail, 2.0 ** (1 - min(differing, 1000))))


def paired_bootstrap(
    a: ArrayLike, b: ArrayLike, strata: ArrayLike | None = None, *, resamples: int = 2000, confidence: float = 0.95,
    seed: int = 0, population: int | None = None,
) -> Interval:  # fmt: skip
    """Difference a − b of two models' macro mean over tasks, both scored on the same documents.

    d = (1/T)·Σ_t (1/n_t)·Σ_{i∈t} (a_i − b_i); documents are drawn anew within each task, the same draw for both.

    Args:
        a: scores of one model `[n]`, or of several merges `[merges, n]`, resampled as a second level.
        b: scores of the other on the same documents, of a's shape or `[n]`.
        strata: the task of each document `[n]`; default: one task.
        resamples: number of replicates.
        confidence: coverage of the interval.
        seed: of the draw.
        population: number of merges there are of this kind; equal to `merges` when all were scored.

    Raises:
        ValueError: for different numbers of documents, empty input, NaN, or strata of another length.
    """
    x, y = _matrix(a), _matrix(b)
    if x.shape[1] != y.shape[1] or len(y) not in (1, len(x)):
        raise ValueError(f"scores of shapes {list(x.shape)} and {list(y.shape)} are not paired")
    gaps = x - y  # [merges, n]
    estimate, replicates = _bootstrap(gaps, strata, resamples, seed, population)
    p = difference_p(estimate, replicates, int((gaps != 0).any(axis=0).sum()))
    return percentile_interval(estimate, replicates, confidence, p=p)


def bootstrap_mean(
    values: ArrayLike, strata: ArrayLike | None = None, *, resamples: int = 2000, confidence: float = 0.95,
    seed: int = 0, population: int | None = None,
) -> Interval:  # fmt: skip
    """Macro mean over tasks of scores `[n]` or `[merges, n]`, with its interval; arguments of ``paired_bootstrap``.

    Raises:
        ValueError: for empty input, NaN, or strata of another length.
    """
    return percentile_interval(*_bootstrap(_matrix(values), strata, resamples, seed, population), confidence)


def _matrix(values: ArrayLike) -> NDArray:
    x = np.asarray(values, dtype=float)
    if x.ndim not in (1, 2) or x.size == 0:
        raise ValueError(f"scores must be [documents] or [merges, documents], not of shape {list(x.shape)}")
    if np.isnan(x).any():
        raise ValueError("scores hold NaN")
    return np.atleast_2d(x)


def _bootstrap(
    rows: NDArray, strata: ArrayLike | None, resamples: int, seed: int, population: int | None
) -> tuple[float, NDArray]:
    """Macro mean of `[merges, n]` scores, averaged over merges, and its replicates `[B]`."""
    tasks = {task: rows[:, positions] for task, positions in _by_task(rows.shape[1], strata).items()}
    estimate = float(np.mean([scores.mean() for scores in tasks.values()]))
    replicates = macro_replicates(tasks, resamples=resamples, seed=seed)  # [merges, B]
    weights = cluster_weights(len(rows), population, resamples=resamples, seed=seed)  # [merges, B]
    return estimate, (replicates * weights).sum(axis=0)


def _by_task(n: int, strata: ArrayLike | None) -> dict[str, NDArray]:
    """Positions of each task's documents, in the order of the tasks' names; without strata all are of one task, ""."""
    if n == 0:
        raise ValueError("no documents")
    names = np.full(n, "") if strata is None else np.asarray(strata)
    if names.shape != (n,):
        raise ValueError(f"strata of shape {list(names.shape)} for {n} documents: give one task name a document")
    return {str(name): np.flatnonzero(names == name) for name in np.unique(names)}


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
    x, y = paired(a, b)
    terms, tasks = x - y, _by_task(len(x), strata)  # [n]
    for positions in tasks.values():
        terms[positions] *= 1 / (len(tasks) * len(positions))
    if np.isnan(terms).any():
        raise ValueError("scores hold NaN")
    terms = terms[terms != 0]  # [m]
    if len(terms) == 0:
        return 1.0
    seen = abs(terms.sum()) * (1 - 1e-9)
    if (m := len(terms)) <= EXACT_UP_TO:
        signs = ((np.arange(2**m)[:, None] >> np.arange(m)) & 1) * 2.0 - 1  # [2^m, m]
        return float((np.abs(signs @ terms) >= seen).mean())
    hits, rng, step = 0, np.random.default_rng(seed), max(1, 2 * CHUNK // m)
    for start in range(0, resamples, step):
        signs = rng.integers(0, 2, (min(step, resamples - start), m), dtype=np.int8) * 2.0 - 1  # [rows, m]
        hits += int((np.abs(signs @ terms) >= seen).sum())
    return (1 + hits) / (resamples + 1)
