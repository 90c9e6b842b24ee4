"""What an attack costs: the performance drop rate between a clean and an attacked evaluation, with its interval."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from mergeopt_core.statistics import percentile_interval, performance_drop, task_replicates


@dataclass(frozen=True)
class Drop:
    """PDR = (clean − attacked) / clean of one task, its interval, and the two means it comes from."""

    task: str
    rate: float
    low: float
    high: float
    clean: float
    attacked: float
    n: int


def drops(
    clean: pa.Table,
    attacked: pa.Table,
    metrics: dict[str, str],
    *,
    confidence: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
) -> list[Drop]:
    """Performance drop rate of each task (named with its metric) from the documents tables of two evaluations.

    Documents are paired by their id and resampled together, so that the interval is that of the rate itself. NaN
    where nothing was right to begin with. Raises ValueError when a task's documents are not the same in both.
    """
    out = []
    for task, metric in metrics.items():
        before, after = _values(clean, task, metric), _values(attacked, task, metric)
        if before.keys() != after.keys() or not before:
            raise ValueError(f"task {task}: the two evaluations did not score the same documents by {metric}")
        ids = sorted(before)
        a, b = np.array([before[i] for i in ids]), np.array([after[i] for i in ids])
        means = task_replicates(np.stack([a, b]), resamples=resamples, seed=seed, task=task)  # [2, B]
        rate = float(performance_drop(a.mean(), b.mean()))
        interval = percentile_interval(rate, performance_drop(means[0], means[1]), confidence)
        out.append(Drop(task, rate, interval.low, interval.high, float(a.mean()), float(b.mean()), len(ids)))
    return out


def _values(table: pa.Table, task: str, metric: str) -> dict[str, float]:
    """Scores by document; for a metric of gold and prediction (Matthews, F1) whether the two agree."""
    whole, gold, said = (_column(table, task, name) for name in (metric, f"{metric}.0", f"{metric}.1"))
    return whole or {i: float(gold[i] == said[i]) for i in gold}


def _column(table: pa.Table, task: str, metric: str) -> dict[str, float]:
    rows = table.filter((pc.field("task") == task) & (pc.field("metric") == metric))
    return dict(zip(rows["document"].to_pylist(), rows["value"].to_pylist(), strict=True))
