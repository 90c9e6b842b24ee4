"""The trials of a study as data: a row per trial, one tidy table of all, and per-document scores in one order."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from pipelines.report import words

if TYPE_CHECKING:
    import pyarrow

Kind = Literal["base", "expert", "joint", "merge"]
SCORES = ("task", "metric", "value", "stderr", "documents")
"""Columns of the tidy table that are of a task."""
TOLERANCE = 1e-4
"""How far a task's score may be from the mean over its documents and still be that mean."""


@dataclass(frozen=True)
class TrialRow:
    """One scored model: a base, an expert, a model trained on all tasks together, or a merge."""

    study: str
    pool: str
    kind: Kind
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
    samples: Callable[[], pyarrow.Table] | None = None
    """What loads the prompts and answers that were kept (task, document, lm_eval_task, sample); None: none were."""
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
    run: int = 0
    """Place of the experts' training seed among the pool's; a merge is of experts of one run."""
    provenance: Mapping[str, Any] = field(default_factory=dict)
    """How the result came about: base, training, seeds, evaluation settings, machine; empty where it is not known."""
    metrics: Mapping[str, str] = field(default_factory=dict)
    """Name of the metric that each task's score is of."""
    stderr: Mapping[str, float | None] = field(default_factory=dict)
    """Standard error of each task's score, as the task gives it."""
    made: float | None = None
    """When it was scored, in seconds since 1970."""
    columns: Mapping[str, Any] = field(default_factory=dict)
    """Further columns of the tidy table: ``split`` of a candidate scored on another split, ``setting`` (label and
    values) of a grid's merge, what was drawn for the whole merge, ``base_method``, update norm, cost of training."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """How the pool's experts are trained, by dotted name: columns of the tidy table alone."""

    @property
    def scored(self) -> bool:
        """Whether there is a result (perhaps with failed tasks)."""
        return bool(self.scores or self.provenance)

    def table(self) -> pyarrow.Table | None:
        """The per-document scores, loaded if need be."""
        return self.documents() if callable(self.documents) else self.documents

    def describe(self) -> dict[str, Any]:
        """Which trial this is and how its result came about, as plain columns."""
        return {
            "study": self.study,
            "pool": self.pool,
            "suite": self.suite,
            "attack": self.attack,
            "kind": self.kind,
            "method": self.method,
            "label": self.label,
            "experts": "+".join(self.experts),
            "size": len(self.experts),
            "parameters": json.dumps(dict(self.parameters), sort_keys=True, default=str) if self.parameters else "",
            "key": self.key,
            **{name: value for name, value in self.provenance.items() if name != "suite"},
            **self.columns,
        }


def trial_frame(rows: Sequence[TrialRow]) -> pd.DataFrame:
    """One tidy table: a line per trial and task, or per trial where it has no score yet.

    Columns: ``trial`` (place of the row), those of ``TrialRow.describe``, ``training`` cut down to the names of the
    fine-tuning methods; every parameter of a merge method and every setting of a pool by its name; n (experts), subset,
    order, draw, train_seed; then task, metric, value, stderr and documents.
    """
    nothing: list[tuple[Any, float]] = [(None, math.nan)]
    lines = [
        (place, task, row.metrics.get(task or ""), float(value), row.stderr.get(task or ""), row.n.get(task or ""))
        for place, row in enumerate(rows)
        for task, value in list(row.scores.items()) or nothing
    ]
    scores = pd.DataFrame(lines, columns=["trial", "task", "metric", "value", "stderr", "documents"])
    trials = _trial_columns(rows).take(scores["trial"].tolist()).reset_index(drop=True)
    return pd.concat([scores[["trial"]], trials, scores.drop(columns="trial")], axis=1)


def _trial_columns(rows: Sequence[TrialRow]) -> pd.DataFrame:
    """What is said of each trial, whatever the task."""
    parameters = {name for row in rows for name in row.parameters}
    told = [row.describe() for row in rows]
    taken = parameters.union(*told, SCORES)
    settings = {name: last if (last := name.rpartition(".")[2]) not in taken else name
                for row in rows for name in row.settings}  # fmt: skip
    first: dict[tuple[str, frozenset[str]], str] = {}
    lines = []
    for row, line in zip(rows, told):
        order = " > ".join(row.experts)
        line["subset"] = first.setdefault((row.pool, frozenset(row.experts)), line["experts"])
        line |= {"order": order, "n": len(row.experts), "weights": row.weights}
        line |= {"training": trained_by(line.get("training")), "train_seed": line.pop("training_seed", None)}
        line |= {name: _scalar(value) for name, value in row.parameters.items() if name not in line}
        line |= {settings[name]: value for name, value in row.settings.items() if settings[name] not in line}
        lines.append(line | {f"seconds.{stage}": float(value) for stage, value in row.seconds.items()})
    frame = pd.DataFrame(lines)
    same = ["study", "pool", "suite", "attack", "label", "parameters"]
    frame["draw"] = frame.groupby(same)["seed"].rank("dense").fillna(1).astype(int) - 1 if "seed" in frame else 0
    frame["label"] = [row.method or (row.experts[0] if row.experts else row.kind) for row in rows]
    return frame


def _scalar(value: Any) -> Any:
    return value if value is None or isinstance(value, (str, int, float)) else json.dumps(value)


def trained_by(how: str | None) -> str | None:
    """The names of the fine-tuning methods in a description of trainings: ``plain + mergopt``."""
    names = (re.split("[, ]", text)[0] for text in how.split(" + ")) if how else ()
    return " + ".join(dict.fromkeys(names)) or None


class PanelKey(NamedTuple):
    """What must be the same for two trials to stand in one table."""

    study: str
    pool: str
    suite: str
    attack: str


def panel_titles(keys: Sequence[PanelKey]) -> list[str]:
    """A short name for every panel: its pool, and of study, suite and attack what is needed to tell them apart."""
    orders: list[tuple[str, ...]] = [("pool",), ("study", "pool"), ("pool", "suite"), ("pool", "attack")]
    orders += [("study", "pool", "suite"), ("study", "pool", "attack"), ("pool", "suite", "attack"), PanelKey._fields]
    titles: list[str] = []
    for names in orders:
        parts = [{name: getattr(key, name) for name in names} for key in keys]
        titles = [" · ".join(v for k, v in part.items() if v and (k, v) != ("attack", "none")) for part in parts]
        if len(set(titles)) == len(keys):
            break
    return titles


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
    """Where each task's documents are in a table, by ascending id, and what these ids are."""

    columns: tuple[pyarrow.ChunkedArray, ...]
    positions: dict[str, NDArray] = field(default_factory=dict)
    ids: dict[str, NDArray] = field(default_factory=dict)


def gather(rows: Sequence[TrialRow], tasks: list[str]) -> Samples:
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
        values = np.asarray(table.column("value").to_numpy(), dtype=float)
        layout = _layout(table, values, row, layout)
        reference = reference or layout
        for task in (t for t in tasks if t in reference.ids):
            ids = samples.ids.setdefault(task, reference.ids[task])
            matrix = samples.documents.setdefault(task, np.full((len(rows), len(ids)), np.nan))
            if layout is reference or np.array_equal(layout.ids.get(task, ()), ids):
                matrix[i] = values[layout.positions[task]]
            elif row.label not in unpaired:
                unpaired.append(row.label)
    if unpaired:
        named = words.listed(unpaired, 5)
        samples.notes.append(f"No interval for {named}: no per-document scores of the same documents as the others.")
    _keep_means(samples)
    return samples


def _layout(table: pyarrow.Table, values: NDArray, row: TrialRow, last: _Layout | None) -> _Layout:
    """The layout of a row's table: the last row's, without a look at it, where the columns are the same."""
    import pyarrow as pa

    columns = tuple(table.column(name) for name in ("task", "document", "metric") if name in table.column_names)
    columns = tuple(c.cast(pa.string()) if pa.types.is_dictionary(c.type) else c for c in columns)
    if last and len(columns) == len(last.columns) and all(a.equals(b) for a, b in zip(columns, last.columns)):
        return last
    tasks, documents = (np.array(c.to_pylist()) for c in columns[:2])
    metrics = np.array(columns[2].to_pylist()) if len(columns) > 2 else np.full(len(tasks), "")
    layout = _Layout(columns)
    for task, score in row.scores.items():
        places = np.flatnonzero(tasks == task)
        if len(places) == 0:
            continue
        # of several metrics on the same documents, the one whose mean is the score; the first where none is
        sets = [places[metrics[places] == name] for name in dict.fromkeys(metrics[places].tolist())]
        places = min(sets, key=lambda s: abs(float(values[s].mean()) - score) > TOLERANCE)
        places = places[np.argsort(documents[places], kind="stable")]
        layout.positions[task], layout.ids[task] = places, documents[places]
    return layout


def _keep_means(samples: Samples) -> None:
    """Drop the documents of tasks whose score is not their mean."""
    for task, matrix in list(samples.documents.items()):
        if (np.abs(matrix.mean(axis=1) - samples.scores[task]) > TOLERANCE).any():
            del samples.documents[task], samples.ids[task]
    constant = [t for t in samples.tasks if t not in samples.documents]
    if constant and samples.documents:
        samples.notes.append(
            f"Intervals leave out the noise of {', '.join(constant)}: their scores are not means over documents."
        )
