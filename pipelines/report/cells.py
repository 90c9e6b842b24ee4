"""Cells of tables and points of figures: means over expert subsets of any measure, with bounds.

The trials of a cell are averaged within each subset of experts first (over orders, draws, training seeds and whatever
the view does not tell apart), then over subsets. Bootstrap replicates go the same way, so that every mean, difference
and ratio has an interval that is paired where documents are.
"""

from __future__ import annotations

import math
import zlib
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, lru_cache
from graphlib import CycleError, TopologicalSorter
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from mergeopt_core.statistics import cluster_weights, task_replicates
from pipelines.report.analysis import MergeStanding
from pipelines.report.panel import Panel

Key = tuple[Any, ...]
Sample = tuple[NDArray, NDArray | None]
"""A number for each subset `[U]` and its replicates `[U, B]`; None where documents are not known."""


@dataclass(frozen=True)
class Value:
    """One number with its bounds; ``text`` where it is no number."""

    estimate: float
    low: float = math.nan
    high: float = math.nan
    text: str = ""
    draws: NDArray | None = field(default=None, compare=False, repr=False)
    """Replicates `[B]`, so that means of cells have intervals too."""


NOTHING = Value(math.nan)


@dataclass(frozen=True)
class Cell:
    """Trials, each with the tasks that it is averaged over here, and the subset of experts that it is of."""

    trials: tuple[int, ...]
    tasks: tuple[tuple[str, ...], ...]
    units: tuple[str, ...]

    @cached_property
    def distinct(self) -> list[str]:
        """The subsets, in order of appearance."""
        return list(dict.fromkeys(self.units))

    @cached_property
    def average(self) -> NDArray:
        """Weights `[U, T]` that average the trials of every subset, each by its number of tasks."""
        place = {unit: i for i, unit in enumerate(self.distinct)}
        weights = np.zeros((len(place), len(self.trials)))
        weights[[place[unit] for unit in self.units], range(len(self.trials))] = [len(tasks) for tasks in self.tasks]
        return weights / weights.sum(axis=1, keepdims=True)

    def by_subset(self, values: NDArray) -> NDArray:
        """Values of the trials `[T, …]` averaged within every subset `[U, …]`."""
        return values if len(self.distinct) == len(self.trials) else self.average @ values

    def pick(self, places: Sequence[int]) -> Cell:
        """The cell of the trials at these places."""
        trials, tasks, units = ([part[i] for i in places] for part in (self.trials, self.tasks, self.units))
        return Cell(tuple(trials), tuple(tasks), tuple(units))  # type: ignore[arg-type]

    def only(self, keep: Iterable[bool]) -> Cell:
        """The cell of some of its trials."""
        return self.pick([place for place, yes in enumerate(keep) if yes])


def pooled(cells: Sequence[Cell]) -> Cell:
    """One cell of all trials of several, each with all of its tasks there."""
    tasks: dict[tuple[int, str], dict[str, None]] = defaultdict(dict)
    for cell in cells:
        for trial, own, unit in zip(cell.trials, cell.tasks, cell.units):
            tasks[trial, unit].update(dict.fromkeys(own))
    trials, units = zip(*tasks)
    return Cell(trials, tuple(map(tuple, tasks.values())), units)


class Trials:
    """The tidy table of a study's scored trials, with the replicates behind it."""

    def __init__(self, frame: pd.DataFrame, panels: Sequence[Panel], standings: Sequence[dict[int, MergeStanding]]):
        self.place = {trial: (p, i) for p, panel in enumerate(panels) for i, trial in enumerate(panel.trials)}
        self.panels, self.standings = panels, standings
        self.statistics = panels[0].statistics
        self.frame = frame[frame["trial"].isin(list(self.place)) & frame["value"].notna()].copy()
        base = self.frame["base"].astype(str) if "base" in frame else ""
        self.frame["unit"] = base + "|" + self.frame["subset"]
        titles = {trial: panel.title for panel in panels for trial in panel.trials}
        self.frame["panel"] = self.frame["trial"].map(titles)
        if "setting" in frame and frame["setting"].notna().any():
            self.frame["setting"] = self.frame["setting"].fillna(self.frame["method"])
        self.tasks = suite_order(self.frame)
        self.trials = self.frame.drop_duplicates("trial").set_index("trial")
        scores = self.frame.drop_duplicates(["trial", "task"]).pivot(index="trial", columns="task", values="value")
        self._row = {trial: i for i, trial in enumerate(scores.index)}
        self._column = {task: i for i, task in enumerate(scores.columns)}
        self._scores = scores.to_numpy()
        self._task, self._of_task = "", dict[int, NDArray]()

    def scores(self, cell: Cell) -> NDArray:
        """Mean score of each trial over its tasks `[T]`."""
        found = np.empty(len(cell.trials))
        for tasks, places in _alike(cell.tasks).items():
            rows = [self._row[cell.trials[i]] for i in places]
            found[places] = self._scores[np.ix_(rows, [self._column[task] for task in tasks])].mean(axis=1)
        return found

    def draws(self, cell: Cell) -> NDArray | None:
        """Replicates of these `[T, B]`; None where a trial has no documents."""
        found = np.empty((len(cell.trials), self.statistics.resamples))
        where = [(self.place[trial][0], tasks) for trial, tasks in zip(cell.trials, cell.tasks)]
        for (p, tasks), places in _alike(where).items():
            panel, rows = self.panels[p], [self.place[cell.trials[i]][1] for i in places]
            if set(tasks) == set(panel.samples.tasks):
                found[places] = panel.replicates[rows]
            elif len(tasks) == 1:
                found[places] = self._drawn(p, tasks[0])[rows]
            else:
                found[places] = sum(_task_draws(panel, task, rows) for task in tasks) / len(tasks)
        return None if np.isnan(found).any() else found

    def own_experts(self, trial: int) -> dict[str, int]:
        """The row of a trial's panel that is the expert of each task: the one of its name, where it scores above 0."""
        p, place = self.place[trial]
        panel = self.panels[p]
        own = {name: row for (name, run), row in panel.experts.items() if run == panel.rows[place].run}
        named = {task: row for task, row in own.items() if task in self._column}
        return {task: row for task, row in named.items() if self._score(panel.trials[row], task) > 0}

    def _score(self, trial: int, task: str) -> float:
        return float(self._scores[self._row[trial], self._column[task]])

    def normalised(self, cell: Cell) -> NDArray:
        """Each trial's score as a share of that of the task's own expert, averaged over its tasks `[T]`."""
        found = []
        for trial, tasks in zip(cell.trials, cell.tasks):
            panel, own = self.panels[self.place[trial][0]], self.own_experts(trial)
            shares = [self._score(trial, task) / self._score(panel.trials[own[task]], task) for task in tasks]
            found.append(float(np.mean(shares)))
        return np.array(found)

    def normalised_draws(self, cell: Cell) -> NDArray | None:
        """Replicates of these `[T, B]`, on the same documents for both; None where a trial has none."""
        found = np.empty((len(cell.trials), self.statistics.resamples))
        for i, (trial, tasks) in enumerate(zip(cell.trials, cell.tasks)):
            (p, row), own = self.place[trial], self.own_experts(trial)
            pairs = [_task_draws(self.panels[p], task, [row, own[task]]) for task in tasks]
            found[i] = sum(merge / expert for merge, expert in pairs) / len(tasks)
        return None if np.isnan(found).any() else found

    def _drawn(self, place: int, task: str) -> NDArray:
        """Replicates of a panel's rows on one task; those of the last task are kept, so ask task by task."""
        if task != self._task:
            self._task, self._of_task = task, {}
        if place not in self._of_task:
            panel = self.panels[place]
            self._of_task[place] = _task_draws(panel, task, list(range(len(panel.rows))))
        return self._of_task[place]

    def weights(self, cell: Cell) -> NDArray:
        """Weights `[U, B]` that average the subsets, drawn anew within each pool and size as ``Panel.cluster`` does."""
        first = {unit: self.place[trial] for unit, trial in zip(cell.units, cell.trials)}
        strata = _alike([(first[u][0], len(self.panels[first[u][0]].rows[first[u][1]].experts)) for u in cell.distinct])
        found = np.empty((len(cell.distinct), self.statistics.resamples))
        for (p, size), places in strata.items():
            panel = self.panels[p]
            subsets = [sorted(panel.rows[first[cell.distinct[i]][1]].experts) for i in places]
            order = sorted(range(len(places)), key=subsets.__getitem__)
            seed = self.statistics.seed + zlib.crc32(repr([subsets[i] for i in order]).encode())
            population = max(math.comb(panel.pool_size, size), len(places))
            drawn = _cluster_weights(len(places), population, self.statistics.resamples, seed)
            found[[places[i] for i in order]] = drawn * (len(places) / len(cell.distinct))
        return found

    def worst(self, trial: int, tasks: Sequence[str]) -> float:
        """The lowest score of a trial on any of the tasks."""
        return float(self._scores[self._row[trial], [self._column[task] for task in tasks]].min())

    def base(self, cell: Cell) -> Cell | None:
        """The base of every trial's pool, on the same tasks; None where one was not scored."""
        return self._instead(cell, [panel.base for panel in self._panels(cell)])

    def best_expert(self, cell: Cell) -> Cell | None:
        """The expert of every trial's pool with the highest mean over the suite, on the same tasks."""
        return self._instead(cell, [self.best(panel) for panel in self._panels(cell)])

    def joint(self, cell: Cell) -> Cell | None:
        """The model of every trial's pool and run that was trained on all tasks together, on the same tasks."""
        places = [self.place[trial] for trial in cell.trials]
        return self._instead(cell, [self.panels[p].joint.get(self.panels[p].rows[i].run) for p, i in places])

    def named(self, name: str, cell: Cell) -> Cell | None:
        """A reference by its name."""
        return {"base": self.base, "best_expert": self.best_expert, "joint": self.joint}[name](cell)

    def clean(self, cell: Cell) -> Cell | None:
        """The same models without an attack; None where one was not scored so."""
        same = [name for name in ("study", "pool", "suite", "label", "order", "parameters", "seed", "train_seed")
                if name in self.trials]  # fmt: skip
        if "attack" not in self.trials:
            return None
        key = dict(zip(self.trials.index, map(repr, self.trials[same].itertuples(index=False, name=None))))
        plain = {key[trial]: trial for trial in self.trials.index[self.trials["attack"] == "none"]}
        found = [plain.get(key[trial]) for trial in cell.trials]
        return None if None in found else replace(cell, trials=tuple(found))  # type: ignore[arg-type]

    def best(self, panel: Panel) -> int | None:
        """Row of a panel's best expert by mean score over the suite."""
        return max(panel.experts.values(), key=lambda row: panel.scores[row], default=None)

    def _panels(self, cell: Cell) -> list[Panel]:
        return [self.panels[self.place[trial][0]] for trial in cell.trials]

    def _instead(self, cell: Cell, rows: Sequence[int | None]) -> Cell | None:
        if None in rows:
            return None
        panels = self._panels(cell)
        return replace(cell, trials=tuple(panel.trials[row] for panel, row in zip(panels, rows)))  # type: ignore[index]


@lru_cache(maxsize=128)
def _cluster_weights(clusters: int, population: int, resamples: int, seed: int) -> NDArray:
    """Weights `[S, B]` of subsets, the same for every method that merged them."""
    return cluster_weights(clusters, population, resamples=resamples, seed=seed)


def suite_order(frame: pd.DataFrame) -> list[str]:
    """Tasks in the order that the suites have them in, of which some have a part of others' tasks."""
    before: dict[str, set[str]] = {}
    for _, tasks in frame.drop_duplicates(["suite", "task"]).groupby("suite", sort=False)["task"]:
        for first, task in zip([None, *tasks], tasks):
            before.setdefault(task, set()).update([first] if first else [])
    try:
        return list(TopologicalSorter(before).static_order())
    except CycleError:
        return list(before)


def _task_draws(panel: Panel, task: str, rows: list[int]) -> NDArray:
    """Replicates on one task `[rows, B]`, constant where the score is not the mean over documents."""
    s = panel.statistics
    if task in panel.samples.documents:
        return task_replicates(panel.samples.documents[task][rows], resamples=s.resamples, seed=s.seed, task=task)
    constant = panel.samples.scores[task][rows] if panel.samples.documents else np.full(len(rows), np.nan)
    return np.broadcast_to(constant[:, None], (len(rows), s.resamples))


def by_task(cells: Mapping[Any, Cell]) -> list[tuple[Any, Cell]]:
    """Cells in the order in which their replicates are cheap: task by task."""
    return sorted(cells.items(), key=lambda item: item[1].tasks[0])


def _alike(values: Sequence[Any]) -> dict[Any, list[int]]:
    """Places of equal values."""
    places: dict[Any, list[int]] = defaultdict(list)
    for place, value in enumerate(values):
        places[value].append(place)
    return places
