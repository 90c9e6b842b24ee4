"""Scores on all documents, estimated from a few of each task that what base and experts answered tells apart."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from conf.errors import UserError
from conf.schema import Suite
from mergeopt_core.statistics.items import Items, fit_items, spread_choice
from pipelines.store.samples import read_table
from pipelines.store.store import Entry, Store
from pipelines.study.trial import Trial

WHERE = "search.estimate_from"


class Estimator:
    """What documents of a suite are asked of a configuration, and what its answers to them come to on all.

    ``known`` are trials with results on the whole suite; ``count`` documents of each task are drawn, all where there
    are no more. Raises UserError for a task whose score is no mean over documents of values between 0 and 1.
    """

    def __init__(self, suite: Suite, known: Sequence[Trial], store: Store, count: int, seed: int):
        self.store = store
        tables = [documents_of(trial, store) for trial in known]
        self.items: dict[str, Items] = {}
        self.chosen: dict[str, np.ndarray] = {}
        self.indices: dict[str, list[int]] = {}
        for task, values in tables[0].items():
            answers = np.array([[table[task][index] for index in values] for table in tables])
            self.items[task], generator = fit_items(answers), np.random.default_rng([seed, len(self.items)])
            self.chosen[task] = spread_choice(self.items[task], min(count, len(values)), generator)
            self.indices[task] = [list(values)[place] for place in self.chosen[task]]
        tasks = {n: dataclasses.replace(spec, documents=self.indices[n]) for n, spec in suite.tasks.items()}
        self.suite = dataclasses.replace(suite, tasks=tasks)
        """The suite with the drawn documents alone."""

    def of(self, trial: Trial) -> tuple[float, float] | None:
        """The mean over tasks on all documents, estimated, and its standard error; None where there is no result."""
        if not self.store.has("results", trial.key, complete=True):
            return None
        tasks, found = documents_of(trial, self.store), []
        for task, items in self.items.items():
            answers = np.array([tasks[task][index] for index in self.indices[task]])
            found.append(items.estimate(self.chosen[task], answers))
        scores, errors = np.array(found).T
        return float(scores.mean()), float(np.sqrt((errors**2).sum()) / len(found))


def documents_of(trial: Trial, store: Store) -> dict[str, dict[int, float]]:
    """By task and index in the split, what a trial's documents scored."""
    return documents_of_entry(store, store.entry("results", trial.key))


def documents_of_entry(store: Store, entry: Entry) -> dict[str, dict[int, float]]:
    """By task and index in the split, what a result's documents scored."""
    frame, made = read_table(store, entry).to_pandas(), {}
    for name, task in entry.describe()["tasks"].items():
        own = frame[(frame["task"] == name) & (frame["metric"] == task["metric"])]
        values, several = own["value"].to_numpy(), own["document"].str.contains(":").any()
        mean = len(values) > 1 and values.min() >= 0 and values.max() <= 1
        mean = mean and abs(values.mean() - task["value"]) < 1e-6
        if several or not mean:
            what = "is a group" if several else f"{task['metric']} is no mean over two documents or more of 0 … 1"
            raise UserError(f"{name}: {what}", where=WHERE, do="leave search.estimate_from out")
        made[name] = dict(zip(own["document"].astype(int), values))
    return made
