"""What one evaluation says: a score a task, a value a document, and what it was measured with."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa

DOCUMENTS = pa.schema(
    [("task", pa.string()), ("document", pa.string()), ("metric", pa.string()), ("value", pa.float64())]
)
"""Columns of the per-document table: task as named in the suite, document as ``index`` or ``subtask:index`` (the
index in the whole split, whatever the limit), metric as in TaskScore, or a part of it (``mcc.0``, ``prf.recall``)."""


@dataclass(frozen=True)
class TaskScore:
    """One cell: a task's score with its standard error, or why there is none."""

    metric: str
    """Metric as in the documents table: ``acc``, or ``exact_match,strict-match`` when read from a filter."""
    value: float
    """The metric over the documents; NaN where the task failed."""
    stderr: float
    """Standard error from the per-document scores; NaN where there is none."""
    n: int
    """Documents scored."""
    error: str | None = None
    """Why the task failed."""
    note: str | None = None
    """What makes the score doubtful."""


@dataclass(frozen=True)
class Evaluation:
    """One model on one suite."""

    tasks: dict[str, TaskScore]
    """Scores by the suite's task names."""
    documents: pa.Table
    """Per-document values (``DOCUMENTS``)."""
    batch_size: int
    """Sequences a forward pass, as really used."""
    seconds: float
    """Wall-clock time of scoring."""
    versions: dict[str, Any] = field(default_factory=dict)
    """Packages, tasks, fingerprint of each task's prompts, device, dtype, seed."""
    lm_eval: dict[str, Any] = field(default_factory=dict)
    """The same in lm-eval's own JSON layout (its ``results_*.json``)."""

    @property
    def score(self) -> float:
        """Mean over the tasks that have a score; NaN when none has."""
        values = [t.value for t in self.tasks.values() if t.error is None]
        return sum(values) / len(values) if values else float("nan")

    @property
    def errors(self) -> dict[str, str]:
        """Failed tasks and why."""
        return {name: t.error for name, t in self.tasks.items() if t.error is not None}


def document_table(rows: list[tuple[str, str, str, float]]) -> pa.Table:
    """The documents table of (task, document, metric, value) rows."""
    arrays = [pa.array([row[i] for row in rows], type=column.type) for i, column in enumerate(DOCUMENTS)]
    return pa.table(arrays, schema=DOCUMENTS)
