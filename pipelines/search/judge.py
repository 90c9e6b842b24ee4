"""What a search found: scores with intervals, and the chosen configuration against the method's defaults."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray

from conf.schema import Statistics
from mergeopt_core.statistics import Interval, difference_p, macro_replicates, percentile_interval
from pipelines.report.rows import TrialRow
from pipelines.report.samples import Samples, gather
from pipelines.store import Store
from pipelines.trial import Trial
from pipelines.worker import DOCUMENTS


@dataclass
class Candidate:
    """One configuration and its scores; the mean over tasks of the mean over documents."""

    values: dict[str, Any]
    """The values that were searched, by dimension; the configured ones of the default."""
    default: bool
    tuning: Trial
    score: float
    number: int | None = None
    """Its number in the search; None for the default."""
    validation: Interval | None = None
    test: Interval | None = None

    def to_dict(self) -> dict[str, Any]:
        """The candidate for machines."""
        recipe = self.tuning.merge
        return {
            "default": self.default,
            "number": self.number,
            "values": self.values,
            "parameters": dict(recipe.parameters) if recipe else {},
            "key": self.tuning.key,
            "validation": _plain(self.validation),
            "test": _plain(self.test),
        }


@dataclass
class Found:
    """How a search went."""

    name: str
    method: str
    experts: list[str]
    sampler: str
    split: str
    report: str
    same_split: list[str]
    """Tasks that were tuned on the split that is reported, which was forced."""
    folder: Path
    candidates: list[Candidate] = field(default_factory=list)
    """All that were scored, the best on the tuned split first."""
    tried: int = 0
    failed: dict[str, str] = field(default_factory=dict)
    """Why configurations have no score, by key."""
    difference: Interval | None = None
    """Chosen minus default on the reported split, paired by document."""
    interrupted: bool = False
    confidence: float = 0.95

    @property
    def best(self) -> Candidate | None:
        """The chosen configuration: the highest on the tuned split, the default where none is higher."""
        return self.candidates[0] if self.candidates else None

    @property
    def label(self) -> str:
        """What must stand beside the numbers where they are no honest test."""
        if not self.same_split:
            return ""
        return f"tuned on the split that is reported ({', '.join(self.same_split)}): the scores are no estimate"

    def to_dict(self) -> dict[str, Any]:
        """The search for machines."""
        return {
            "search": self.name,
            "method": self.method,
            "experts": self.experts,
            "sampler": self.sampler,
            "tuned_on": self.split,
            "reported_on": self.report,
            "tuned_on_reported_split": self.same_split,
            "label": self.label,
            "tried": self.tried,
            "failed": self.failed,
            "interrupted": self.interrupted,
            "best": self.best.to_dict() if self.best else None,
            "default": next((c.to_dict() for c in self.candidates if c.default), None),
            "difference": _plain(self.difference),
            "confidence": self.confidence,
            "candidates": [candidate.to_dict() for candidate in self.candidates],
            "folder": str(self.folder),
        }


def rank(candidates: Sequence[Candidate]) -> list[Candidate]:
    """Distinct configurations, best score first; the default before its equals, then the earlier."""
    order = sorted(candidates, key=lambda c: (-c.score, not c.default, -1 if c.number is None else c.number))
    return list({c.tuning.key: c for c in reversed(order)}.values())[::-1]


def intervals(trials: Sequence[Trial], store: Store, statistics: Statistics) -> tuple[list[Interval], NDArray, Samples]:
    """The score of each trial with its bootstrap interval; the replicates ``[trials, B]`` pair documents."""
    rows = [_row(trial, store) for trial in trials]
    samples = gather(rows, sorted(rows[0].scores))
    means = np.mean([samples.scores[task] for task in samples.tasks], axis=0)  # [trials]
    if not samples.documents:
        unknown = np.full((len(rows), statistics.resamples), np.nan)
        return [Interval(float(mean), math.nan, math.nan) for mean in means], unknown, samples
    drawn = macro_replicates(samples.documents, resamples=statistics.resamples, seed=statistics.seed)  # [trials, B]
    fixed = [samples.scores[task] for task in samples.tasks if task not in samples.documents]
    total = drawn * len(samples.documents) + (np.sum(fixed, axis=0)[:, None] if fixed else 0.0)
    replicates = total / len(samples.tasks)
    found = [percentile_interval(float(m), r, statistics.confidence) for m, r in zip(means, replicates)]
    return found, replicates, samples


def paired_difference(first: Trial, second: Trial, store: Store, statistics: Statistics) -> Interval:
    """First minus second, documents drawn anew within each task, the same draw for both."""
    scores, replicates, samples = intervals([first, second], store, statistics)
    gap = scores[0].estimate - scores[1].estimate
    differing = sum(int((matrix[0] != matrix[1]).sum()) for matrix in samples.documents.values())
    if not samples.documents:
        return Interval(gap, math.nan, math.nan, math.nan)
    draws = replicates[0] - replicates[1]
    return percentile_interval(gap, draws, statistics.confidence, p=difference_p(gap, draws, differing))


def _row(trial: Trial, store: Store) -> TrialRow:
    entry = store.entry("results", trial.key)
    tasks = entry.describe()["tasks"]
    return TrialRow(
        study="search",
        pool="",
        kind="merge",
        method=trial.merge.method if trial.merge else None,
        label=trial.key[:10],
        experts=trial.names,
        parameters={},
        key=trial.key,
        scores={name: task["value"] for name, task in tasks.items()},
        n={name: task["n"] for name, task in tasks.items()},
        documents=lambda: pq.read_table(entry.folder / DOCUMENTS),
    )


def _plain(interval: Interval | None) -> dict[str, float | None] | None:
    if interval is None:
        return None
    numbers = {"estimate": interval.estimate, "low": interval.low, "high": interval.high, "p": interval.p}
    return {name: None if value is None or math.isnan(value) else value for name, value in numbers.items()}
