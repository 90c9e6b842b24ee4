"""Per-document scores of many trials, brought into one order."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pipelines.report.rows import TrialRow

if TYPE_CHECKING:
    import pyarrow

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
