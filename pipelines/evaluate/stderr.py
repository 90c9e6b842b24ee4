"""Standard errors of metrics from the values of their documents."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from lm_eval.api import metrics
from lm_eval.api.registry import AGGREGATION_REGISTRY

RESAMPLES = 1000
"""Bootstrap resamples where they are cheap: metrics of counts, and sacrebleu's."""

FEW = 200
"""Bootstrap resamples of lm-eval's other aggregations."""


def standard_error(aggregate: Callable[[list[Any]], float], values: list[Any], seed: int) -> float:
    """Standard error of ``aggregate(values)`` over documents; NaN where there is none.

    s/√n for a mean, lm-eval's closed form for ``acc_all``, and for lm-eval's other aggregations the standard deviation
    over a seeded bootstrap of the documents. An aggregation that comes with a task has none, as in lm-eval.
    """
    if len(values) < 2:
        return math.nan
    if aggregate is metrics.mean:
        return float(np.std(np.asarray(values, dtype=float), ddof=1) / math.sqrt(len(values)))
    if aggregate is metrics.acc_all:
        return float(metrics.acc_all_stderr(values))
    if aggregate not in AGGREGATION_REGISTRY.values():
        return math.nan
    rng = np.random.default_rng(seed)
    if aggregate in (metrics.matthews_corrcoef, metrics.f1_score):
        draws = _from_counts(aggregate, values, rng)
    elif aggregate in (metrics.bleu, metrics.chrf, metrics.chrfpp, metrics.ter):
        draws = _from_sums(aggregate, values, rng)
    else:
        picks = rng.integers(0, len(values), size=(FEW, len(values)))
        draws = np.array([aggregate([values[i] for i in pick]) for pick in picks])
    return float(np.std(draws, ddof=1))


def _from_counts(aggregate: Callable[..., float], values: list[Any], rng: np.random.Generator) -> np.ndarray:
    """Matthews' coefficient or binary F1 of resampled (gold, prediction) pairs, from their confusion matrices."""
    labels, codes = np.unique(np.asarray(values), return_inverse=True)
    k, n = len(labels), len(values)
    gold, said = codes.reshape(n, 2).T
    shares = np.bincount(gold * k + said, minlength=k * k) / n
    matrix = rng.multinomial(n, shares, size=RESAMPLES).reshape(-1, k, k).astype(float)  # [R, gold, prediction]
    true, given = matrix.sum(2), matrix.sum(1)  # [R, k]
    if aggregate is metrics.f1_score:
        one = labels == 1
        hits = matrix[:, one, one].sum(1)
        return _ratio(2 * hits, true[:, one].sum(1) + given[:, one].sum(1))
    right = np.trace(matrix, axis1=1, axis2=2)
    spread = (n * n - (true**2).sum(1)) * (n * n - (given**2).sum(1))
    return _ratio(right * n - (true * given).sum(1), np.sqrt(spread))


def _ratio(above: np.ndarray, below: np.ndarray) -> np.ndarray:
    """above / below, and 0 where below is 0, as scikit-learn has it."""
    return np.divide(above, below, out=np.zeros_like(above), where=below > 0)


def _from_sums(aggregate: Callable[..., float], values: list[Any], rng: np.random.Generator) -> np.ndarray:
    """BLEU, chrF or TER of resampled documents, from the sums of each document's counts."""
    from sacrebleu.metrics import BLEU, CHRF, TER

    made: dict[Any, Any] = {metrics.bleu: BLEU, metrics.chrf: CHRF, metrics.ter: TER}
    scorer = CHRF(word_order=2) if aggregate is metrics.chrfpp else made[aggregate]()
    references, predictions = metrics._sacreformat(*(list(part) for part in zip(*values)))
    counts = np.array(scorer._extract_corpus_statistics(predictions, references))  # [n, counts]
    picks = (rng.integers(0, len(counts), size=len(counts)) for _ in range(RESAMPLES))
    return np.array([scorer._compute_score_from_stats(counts[pick].sum(0).tolist()).score for pick in picks])
