"""Is one model better than another? Paired differences, tests, and what the documents at hand can tell at all."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from conf.errors import UserError, nearest
from conf.schema import Statistics
from mergeopt_core.statistics import detectable, documents_needed, holm, mcnemar, paired_bootstrap, sign_flip
from pipelines.checkpoints.untrusted import read_json
from pipelines.compare.scores import choose_metric, of_result, read_scores
from pipelines.store.samples import read_table
from pipelines.store.store import Store, title

MEAN = "mean"
"""Name of the row over all tasks."""


@dataclass(frozen=True)
class Difference:
    """Two models on one task, or on the mean over tasks."""

    a: str
    b: str
    task: str
    metric: str
    documents: int
    score_a: float
    score_b: float
    difference: float
    """b − a."""
    low: float
    high: float
    p: float
    p_holm: float
    """Corrected for the pairs of models, and for their tasks."""
    test: str
    """mcnemar (scores of 0 and 1) or sign flips."""
    detectable: float
    """Smallest true difference that would be found with the power asked for."""
    needed: float
    """Documents in all with which a true difference as large as the one seen would be found so; NaN where it is 0."""


@dataclass
class Comparison:
    """All pairs on all tasks, and what was left out."""

    scores: pd.DataFrame
    """Mean score by model (rows) and task (columns), the mean over tasks last."""
    differences: list[Difference]
    notes: list[str]

    @property
    def overall(self) -> list[Difference]:
        """The rows over all tasks (of the one task where there is one)."""
        several = any(d.task == MEAN for d in self.differences)
        return [d for d in self.differences if d.task == MEAN or not several]


def compare_results(
    names: Sequence[str], store: Store, statistics: Statistics, *, metric: str | None = None,
    tasks: Sequence[str] = (), power: float = 0.8,
) -> Comparison:  # fmt: skip
    """Compare two or more results, each a folder or a key of the store, on the documents that all of them have.

    Differences have stratified paired bootstrap intervals (documents drawn anew within each task, the same for both);
    p-values are exact McNemar tests where scores are 0 or 1 and sign-flip tests otherwise, corrected by Holm over all
    pairs (means over tasks) and over all pairs and tasks (single tasks).

    Raises:
        UserError: for fewer than two, for folders without per-document scores, where no task is shared, and where
            answers were written by different programs.
    """
    if len(names) < 2:
        raise UserError("it takes two results to compare", where="compare", do="name two or more folders or keys")
    frames = [_scores(name, store) for name in names]
    if len(found := {_generator(name, store) for name in names} - {None}) > 1:
        what = f"answers were written by {' and '.join(sorted(map(str, found)))}"
        raise UserError(what, where=", ".join(names), do="evaluate all with one suite.generate_with")
    labels = _labels(names, store)
    notes: list[str] = []
    matrices = _pair(labels, frames, metric, tasks, notes)
    rows = [
        _difference(labels, i, j, {task: both[[i, j]]}, statistics, power, task, name)
        for i, j in itertools.combinations(range(len(labels)), 2)
        for task, (name, both) in matrices.items()
    ]
    overall = [
        _difference(labels, i, j, {t: both[[i, j]] for t, (_, both) in matrices.items()}, statistics, power, MEAN, "")
        for i, j in itertools.combinations(range(len(labels)), 2)
    ]
    scores = pd.DataFrame({task: both.mean(axis=1) for task, (_, both) in matrices.items()}, index=labels)
    if len(matrices) > 1:
        scores[MEAN] = scores.mean(axis=1)
    return Comparison(scores, _corrected(rows) + (_corrected(overall) if len(matrices) > 1 else []), notes)


def _generator(name: str, store: Store) -> str | None:
    """What wrote the answers of one of our results; None for another tool's."""
    folder = Path(name).expanduser()
    entry = folder / "entry.json"
    about = (read_json(entry) if entry.is_file() else {}) if folder.is_dir() else store.find(name).describe()
    settings = about.get("settings")
    options = settings.get("options", {}) if isinstance(settings, dict) else None
    return str(options.get("generate_with", "transformers")) if isinstance(options, dict) else None


def _scores(name: str, store: Store) -> pd.DataFrame:
    """The scores in a folder, or of the result that a key of the store begins."""
    path = Path(name).expanduser()
    if path.is_dir():
        return read_scores(path)
    entry = store.find(name)
    if entry.kind != "results":
        do = "name a result, as `mergebench ls --kind results` lists them"
        raise UserError(f"{name} is in the store's {entry.kind}, which have no scores", where="compare", do=do)
    return of_result(entry.describe(), read_table(store, entry).to_pandas())


def _labels(names: Sequence[str], store: Store) -> list[str]:
    """What a key of the store stands for, else the last parts of a path: as many as tell them all apart."""
    titles = [None if Path(name).is_dir() else title(store.find(name).describe()) for name in names]
    parts = [(name[:10], known) if known else Path(name).parts for name, known in zip(names, titles)]
    for count in range(1, max(map(len, parts)) + 1):
        joints = [", " if known else "/" for known in titles]
        short = [joint.join(part[-count:]) for part, joint in zip(parts, joints)]
        if len(set(short)) == len(short):
            return short
    return [f"{name} ({place})" for place, name in enumerate(names, 1)]


def _pair(
    labels: list[str], frames: list[pd.DataFrame], metric: str | None, tasks: Sequence[str], notes: list[str]
) -> dict[str, tuple[str, NDArray]]:
    """Per task, its metric and the scores `[models, documents]` on the documents that all models have."""
    known = list(dict.fromkeys(name for frame in frames for name in frame["task"]))
    for task in tasks:
        if task not in known:
            raise UserError(f"no result has a task {task!r}", where="--task", do=nearest(task, known))
    paired: dict[str, tuple[str, NDArray]] = {}
    for task in tasks or known:
        lacking = [label for label, frame in zip(labels, frames) if task not in set(frame["task"])]
        name = None if lacking else choose_metric(task, frames, metric)
        if name is None:
            why = f"{', '.join(lacking)} lacks it" if lacking else f"not all have {metric or 'one metric in common'}"
            notes.append(f"{task} is left out: {why}.")
            continue
        own = [f[(f["task"] == task) & (f["metric"] == name)].set_index("document") for f in frames]
        if any(values.index.has_duplicates for values in own):
            raise UserError(f"{task} scores a document twice", where=name, do="name the folder of one evaluation")
        both = pd.concat([values["value"] for values in own], axis=1, join="inner").dropna()
        digests = pd.concat([values["digest"] for values in own], axis=1, join="inner").replace("", None)
        both = both[digests.loc[both.index].nunique(axis=1) <= 1]  # the same index may be of another document
        if left := max(map(len, own)) - len(both):
            notes.append(f"{task}: {left} documents are not in every result and are left out.")
        if len(both):
            paired[task] = name, both.to_numpy().T
    if not paired:
        raise UserError(
            "the results share no document",
            where=", ".join(labels),
            do="evaluate the models on the same tasks and documents",
        )
    return paired


def _difference(
    labels: list[str], i: int, j: int, tasks: Mapping[str, NDArray], statistics: Statistics, power: float,
    task: str, metric: str,
) -> Difference:  # fmt: skip
    a, b = (np.concatenate([scores[side] for scores in tasks.values()]) for side in (0, 1))
    strata = np.repeat(list(tasks), [scores.shape[1] for scores in tasks.values()])
    settings = {"resamples": statistics.resamples, "confidence": statistics.confidence, "seed": statistics.seed}
    interval = paired_bootstrap(b, a, strata, **settings)  # type: ignore[arg-type]
    binary = len(tasks) == 1 and bool(np.isin(np.concatenate([a, b]), (0, 1)).all())
    p = mcnemar(b, a) if binary else sign_flip(b, a, strata, seed=statistics.seed)
    gaps = [(scores[1] - scores[0]) for scores in tasks.values()]
    variance = sum(gap.var(ddof=1) / len(gap) for gap in gaps if len(gap) > 1) / len(gaps) ** 2
    error = float(np.sqrt(variance))
    mean_a, mean_b = (float(np.mean([scores[side].mean() for scores in tasks.values()])) for side in (0, 1))
    level = 1 - statistics.confidence
    return Difference(
        labels[i], labels[j], task, metric, len(a), mean_a, mean_b,
        interval.estimate, interval.low, interval.high, p, p,
        "mcnemar" if binary else "sign flips", detectable(error, level, power),
        documents_needed(interval.estimate, error, len(a), level, power),
    )  # fmt: skip


def _corrected(rows: list[Difference]) -> list[Difference]:
    return [dataclasses.replace(row, p_holm=float(p)) for row, p in zip(rows, holm([row.p for row in rows]))]
