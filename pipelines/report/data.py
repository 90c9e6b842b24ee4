"""The trials of a study as data: a row per trial, one tidy table of all, and per-document scores in one order."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import pyarrow


Kind = Literal["base", "expert", "merge"]


@dataclass(frozen=True)
class TrialRow:
    """One scored model: a base, an expert or a merge."""

    study: str
    """Name of the study."""
    pool: str
    """Name of the pool."""
    kind: Kind
    """base, expert or merge."""
    method: str | None
    """Name of the merge method as the study calls it; None for a base or an expert."""
    label: str
    """Name of the model in tables."""
    experts: tuple[str, ...]
    """Names of the merged experts in order; an expert's own name; empty for a base."""
    parameters: Mapping[str, Any]
    """Parameters of the merge method."""
    key: str
    """Key of the trial in the store."""
    scores: Mapping[str, float]
    """Score on each task of the suite; NaN or absent where the task failed."""
    n: Mapping[str, int]
    """Documents scored on each task."""
    documents: pyarrow.Table | Callable[[], pyarrow.Table] | None = None
    """Per-document scores (task, document, metric, value), or what loads them when asked; None: not kept."""
    suite: str = ""
    """Name of the suite."""
    seconds: Mapping[str, float] = field(default_factory=dict)
    """Time spent, by stage."""
    weights: str | None = None
    """Folder of the merged checkpoint where it was kept."""
    attack: str = "none"
    """Perturbation of the prompts that the scores were taken under."""
    base: str = ""
    """What the pool's base is, so that pools of other bases are not compared."""
    reference: str | None = None
    """Pool that this row's pool is compared with; None: the plainly trained one of the same base, or the first."""
    provenance: Mapping[str, Any] = field(default_factory=dict)
    """How the result came about: base, training, seeds, evaluation settings, machine; empty where it is not known."""

    @property
    def scored(self) -> bool:
        """Whether there is a result (perhaps with failed tasks)."""
        return bool(self.scores or self.provenance)

    def table(self) -> pyarrow.Table | None:
        """The per-document scores, loaded if need be."""
        return self.documents() if callable(self.documents) else self.documents

    def complete(self, tasks: list[str]) -> bool:
        """Whether every one of the tasks has a score."""
        return all(not math.isnan(self.scores.get(task, math.nan)) for task in tasks)


@dataclass(frozen=True)
class PanelKey:
    """What must be the same for two trials to stand in one table."""

    study: str
    pool: str
    suite: str
    attack: str

    @classmethod
    def of(cls, row: TrialRow) -> PanelKey:
        """The panel that a row belongs to."""
        return cls(row.study, row.pool, row.suite, row.attack)


def panel_titles(keys: list[PanelKey]) -> dict[PanelKey, str]:
    """A short name for every panel: its pool, and of study, suite and attack what is needed to tell them apart."""
    orders: list[tuple[str, ...]] = [("pool",), ("study", "pool"), ("pool", "suite"), ("pool", "attack")]
    orders += [("study", "pool", "suite"), ("study", "pool", "attack"), ("pool", "suite", "attack")]
    orders += [("study", "pool", "suite", "attack")]
    titles: dict[PanelKey, str] = {}
    for fields in orders:
        titles = {key: " · ".join(_parts(key, fields)) for key in keys}
        if len(set(titles.values())) == len(set(keys)):
            break
    return titles


def _parts(key: PanelKey, fields: tuple[str, ...]) -> list[str]:
    named = [(field, getattr(key, field)) for field in fields]
    return [value for field, value in named if value and (field, value) != ("attack", "none")]


TOLERANCE = 1e-4
"""How far a task's score may be from the mean over its documents and still be that mean."""


@dataclass
class Samples:
    """Scores of the rows on the tasks, and on their documents."""

    tasks: list[str]
    scores: dict[str, NDArray]
    """Per task `[rows]`."""
    documents: dict[str, NDArray] = field(default_factory=dict)
    """Per task `[rows, n]`, NaN for a row without; only for tasks whose score is the mean over documents."""
    ids: dict[str, NDArray] = field(default_factory=dict)
    """Per task, the documents' ids `[n]` in the order of the columns."""
    notes: list[str] = field(default_factory=list)


@dataclass
class _Layout:
    columns: tuple[pyarrow.ChunkedArray, ...]
    positions: dict[str, NDArray]
    """Per task, places of its documents in the table, by ascending id."""
    ids: dict[str, NDArray]


def gather(rows: list[TrialRow], tasks: list[str]) -> Samples:
    """Put the per-document scores of all rows side by side, paired by document id.

    A row that has no documents, or other ones than the rest, gets NaN there: it keeps its score and has no interval.
    A task whose score is not the mean over its documents (a corpus-level metric) counts as a constant; both are noted.
    """
    samples = Samples(tasks, {t: np.array([row.scores[t] for row in rows], dtype=float) for t in tasks})
    layout: _Layout | None = None
    reference: _Layout | None = None
    unpaired = []
    for i, row in enumerate(rows):
        table = row.table()
        if table is None or table.num_rows == 0:
            unpaired.append(row.label)
            continue
        layout = _read_layout(table, row, layout)
        reference = reference or layout
        if not _fill(samples, reference, layout, table, i, len(rows)):
            unpaired.append(row.label)
    if unpaired:
        shown = ", ".join(unpaired[:5]) + (f" and {len(unpaired) - 5} more" if len(unpaired) > 5 else "")
        samples.notes.append(f"No interval for {shown}: no per-document scores of the same documents as the others.")
    _keep_means(samples)
    return samples


def _columns(table: pyarrow.Table) -> tuple[pyarrow.ChunkedArray, ...]:
    import pyarrow as pa

    names = [name for name in ("task", "document", "metric") if name in table.column_names]
    columns = (table.column(name) for name in names)
    return tuple(c.cast(pa.string()) if pa.types.is_dictionary(c.type) else c for c in columns)


def _read_layout(table: pyarrow.Table, row: TrialRow, last: _Layout | None) -> _Layout:
    """Where each task's documents are in the table; the last row's answer where the columns are the same."""
    columns = _columns(table)
    known = last.columns if last is not None else ()
    if last is not None and len(columns) == len(known) and all(a.equals(b) for a, b in zip(columns, known)):
        return last
    tasks, documents = (np.array(c.to_pylist()) for c in columns[:2])
    metrics = np.array(columns[2].to_pylist()) if len(columns) > 2 else np.full(len(tasks), "")
    values = _values(table)
    layout = _Layout(columns, {}, {})
    for task, score in row.scores.items():
        places = np.flatnonzero(tasks == task)
        if len(places) == 0:
            continue
        places = _one_metric(places, metrics, values, score)
        places = places[np.argsort(documents[places], kind="stable")]
        layout.positions[task], layout.ids[task] = places, documents[places]
    return layout


def _one_metric(places: NDArray, metrics: NDArray, values: NDArray, score: float) -> NDArray:
    """Of several metrics on the same documents, the one whose mean is the score (the first where none is)."""
    names: list[Any] = list(dict.fromkeys(metrics[places].tolist()))
    sets = [places[metrics[places] == name] for name in names]
    return min(sets, key=lambda s: abs(float(values[s].mean()) - score) > TOLERANCE)


def _values(table: pyarrow.Table) -> NDArray:
    return np.asarray(table.column("value").to_numpy(), dtype=float)


def _fill(samples: Samples, reference: _Layout, layout: _Layout, table: pyarrow.Table, i: int, rows: int) -> bool:
    """Write row i's documents; False when they are not those of the reference."""
    values, paired = _values(table), True
    for task in samples.tasks:
        ids = reference.ids.get(task)
        if ids is None:
            continue
        samples.ids.setdefault(task, ids)
        matrix = samples.documents.setdefault(task, np.full((rows, len(ids)), np.nan))
        own = layout.ids.get(task)
        if layout is reference or (own is not None and np.array_equal(own, ids)):
            matrix[i] = values[layout.positions[task]]
        else:
            paired = False
    return paired


def _keep_means(samples: Samples) -> None:
    """Drop the documents of tasks whose score is not their mean."""
    for task, matrix in list(samples.documents.items()):
        gap = np.abs(matrix.mean(axis=1) - samples.scores[task])
        if (gap > TOLERANCE).any():
            del samples.documents[task], samples.ids[task]
    constant = [t for t in samples.tasks if t not in samples.documents]
    if constant and samples.documents:
        samples.notes.append(
            f"Intervals leave out the noise of {', '.join(constant)}: their scores are not means over documents."
        )
