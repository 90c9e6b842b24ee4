"""What a search found: scores with intervals, and the best configuration against the method's defaults."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from conf.schema import Statistics
from mergeopt_core.statistics import Interval
from pipelines.report.data import TrialRow
from pipelines.report.figures import draw
from pipelines.report.panel import Panel, build_panels
from pipelines.report.plot import View
from pipelines.search.objectives import Objective
from pipelines.store.samples import read_table
from pipelines.store.store import Store
from pipelines.study.trial import Trial


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
    scores: Sequence[float] = ()
    """Its scores in every objective, on the tuned split."""
    reported: Sequence[float] | None = None
    """The same on the reported split, of those on the front of several objectives and the default."""
    whole: bool = True
    """Scored on all documents; otherwise ``score`` is the estimate."""
    estimate: tuple[float, float] | None = None
    """Its score on all documents as it was estimated from a few, and the standard error; None where it was not."""
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
            "scores": list(self.scores),
            "reported": self.reported and list(self.reported),
            "whole": self.whole,
            "estimate": self.estimate and list(self.estimate),
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
    objectives: list[Objective]
    tuned_on: str
    reported_on: str
    tuned_on_reported_split: list[str]
    """Tasks whose tuned split is the one that is reported, which was forced."""
    tried: int
    failed: dict[str, str]
    """Why configurations have no score, by key."""
    confidence: float
    candidates: list[Candidate]
    """All that were scored, the best on the tuned split first (those that were only estimated after the others); the
    default before its equals, then the earlier."""
    folder: Path
    interrupted: bool = False
    difference: Interval | None = None
    """Best minus default on the reported split, paired by document."""

    def __post_init__(self) -> None:
        sign = self.objectives[0].sign
        order = sorted(self.candidates, key=lambda c: (not c.whole, -sign * c.score, not c.default, c.number))
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
    def front(self) -> list[Candidate]:
        """Those that no other beats in one objective without losing in another, by the first objective."""
        signs = [objective.sign for objective in self.objectives]
        points = [[sign * score for sign, score in zip(signs, c.scores)] for c in self.candidates]

        def beaten(point: list[float]) -> bool:
            return any(other != point and all(o >= p for o, p in zip(other, point)) for other in points)

        return [c for c, point in zip(self.candidates, points) if not beaten(point)]

    @property
    def label(self) -> str:
        """What must stand beside the numbers where they are no honest test."""
        tasks = ", ".join(self.tuned_on_reported_split)
        return f"tuned on the split that is reported ({tasks}): the scores are no estimate" if tasks else ""

    @property
    def estimates(self) -> str:
        """How far estimates were from the scores on all documents, of those that have both."""
        both = [(c.score - c.estimate[0], c.estimate[1]) for c in self.candidates if c.whole and c.estimate]
        if not both:
            return ""
        off, stated = (math.sqrt(sum(x * x for x in part) / len(both)) for part in zip(*both))
        return f"estimates of the {len(both)} best were off by {off:.4f} (r.m.s.; {stated:.4f} were stated)"

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
            "estimates": self.estimates,
            "objectives": [objective.name for objective in self.objectives],
            "front": [candidate.to_dict() for candidate in self.front] if len(self.objectives) > 1 else [],
            "difference": _plain(self.difference),
            "candidates": [candidate.to_dict() for candidate in self.candidates],
            "folder": str(self.folder),
        }


def draw_front(result: SearchResult, out: Path) -> list[Path]:
    """The first two objectives of all that was tried, of the front and of the default, on the tuned split."""
    first, second = result.objectives[:2]
    rows = [
        ("default" if c.default else "front" if c in result.front else "tried", c.scores[0], c.scores[1], str(c.number))
        for c in result.candidates
    ]
    frame = pd.DataFrame(rows, columns=["line", "x", "y", "number"]).assign(panel="")
    title = f"{result.method}: {first.name} and {second.name} on {result.tuned_on}"
    return draw(View(title, "scatter", first.name, second.name), frame, None, out)


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
        documents=lambda: read_table(store, entry),
    )


def _plain(interval: Interval | None) -> dict[str, float | None] | None:
    numbers = dataclasses.asdict(interval) if interval else {}
    return {name: None if x is None or math.isnan(x) else x for name, x in numbers.items()} or None
