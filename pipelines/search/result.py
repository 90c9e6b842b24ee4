"""What a search found: scores with intervals, and the best configuration against the method's defaults."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from conf.schema import Statistics
from mergeopt_core.statistics import Interval
from pipelines.report.data import TrialRow
from pipelines.report.panel import Panel, build_panels
from pipelines.store.store import Store
from pipelines.study.trial import Trial
from pipelines.study.worker import documents_of


@dataclass
class Candidate:
    """One configuration and its scores; the mean over tasks of the mean over documents."""

    values: dict[str, Any]
    """The values that were searched, by dimension; the configured ones of the default."""
    default: bool
    tuning: Trial
    """Its trial on the tuned split."""
    score: float
    number: int | None = None
    """Its number in the search; None for the default."""
    validation: Interval | None = None
    test: Interval | None = None

    def to_dict(self) -> dict[str, Any]:
        """The candidate for machines."""
        assert self.tuning.merge is not None
        return {
            "default": self.default,
            "number": self.number,
            "values": self.values,
            "parameters": dict(self.tuning.merge.parameters),
            "key": self.tuning.key,
            "validation": _plain(self.validation),
            "test": _plain(self.test),
        }


@dataclass
class SearchResult:
    """How a search went."""

    search: str
    method: str
    experts: list[str]
    sampler: str
    tuned_on: str
    reported_on: str
    tuned_on_reported_split: list[str]
    """Tasks whose tuned split is the one that is reported, which was forced."""
    tried: int
    failed: dict[str, str]
    """Why configurations have no score, by key."""
    confidence: float
    candidates: list[Candidate]
    """All that were scored, the best on the tuned split first; the default before its equals, then the earlier."""
    folder: Path
    interrupted: bool = False
    difference: Interval | None = None
    """Best minus default on the reported split, paired by document."""

    def __post_init__(self) -> None:
        order = sorted(self.candidates, key=lambda c: (-c.score, not c.default, c.number))
        self.candidates = list({c.tuning.key: c for c in reversed(order)}.values())[::-1]

    @property
    def best(self) -> Candidate | None:
        """The highest on the tuned split, the default where none is higher; None where nothing was scored."""
        return next(iter(self.candidates), None)

    @property
    def default(self) -> Candidate | None:
        """The method as it was configured."""
        return next((c for c in self.candidates if c.default), None)

    @property
    def label(self) -> str:
        """What must stand beside the numbers where they are no honest test."""
        tasks = ", ".join(self.tuned_on_reported_split)
        return f"tuned on the split that is reported ({tasks}): the scores are no estimate" if tasks else ""

    def top(self, count: int) -> list[Candidate]:
        """The best candidates, and the default."""
        return [c for place, c in enumerate(self.candidates) if place < count or c.default]

    def to_dict(self) -> dict[str, Any]:
        """The search for machines."""
        ends = {"best": self.best, "default": self.default}
        return {
            **vars(self),
            **{name: candidate and candidate.to_dict() for name, candidate in ends.items()},
            "label": self.label,
            "difference": _plain(self.difference),
            "candidates": [candidate.to_dict() for candidate in self.candidates],
            "folder": str(self.folder),
        }


def bootstrap(trials: Sequence[Trial], store: Store, statistics: Statistics) -> Panel:
    """The trials' scores with replicates, the same draws of documents for all of them; one row for each trial."""
    (panel,) = build_panels([_row(trial, store) for trial in trials], statistics)
    return panel


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
        scores={name: task["value"] for name, task in sorted(tasks.items())},
        n={name: task["n"] for name, task in tasks.items()},
        documents=lambda: documents_of(store, entry),
    )


def _plain(interval: Interval | None) -> dict[str, float | None] | None:
    numbers = dataclasses.asdict(interval) if interval else {}
    return {name: None if x is None or math.isnan(x) else x for name, x in numbers.items()} or None
