"""Figures of a study as their declarations ask for them: the points of every line and panel, and their references."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import pandas as pd

from conf.schema import FigureView
from pipelines.report.cells import Cell, Key, Trials, Value, by_task
from pipelines.report.grouping import beside, group, label_of, models, sort_keys
from pipelines.report.measures import evaluate
from pipelines.report.ranks import mean_ranks
from pipelines.report.views import MEASURES, NAMES, select, several, wanted

FLAT = ("heat", "contour")
"""Kinds whose y is a column too."""
SINGLES = ("lines", "bars", "scatter")
"""Kinds that can show single subsets."""
POINTS = 500
"""Single subsets of a figure whose measures are computed, evenly chosen."""


@dataclass
class Series:
    """A figure's data."""

    name: str
    view: FigureView
    frame: pd.DataFrame
    """Columns panel, line, x, y, low, high; of heat and contour panel, x, y, z, low, high. In a histogram y counts the
    values between low and high."""
    references: pd.DataFrame
    """Columns panel, name, y."""
    singles: pd.DataFrame | None = None
    """Points of single subsets, where means are of several: the frame's columns and subset."""
    notes: list[str] = field(default_factory=list)

    @property
    def title(self) -> str:
        """What the figure is called."""
        return self.view.title or self.name


def build_series(name: str, view: FigureView, trials: Trials) -> Series:
    """Compute the points of a figure and the heights of its references."""
    flat, measured = view.kind in FLAT, view.kind == "histogram" or view.x in MEASURES
    panels = several(view.panels)
    placed = [*([] if measured else [view.x]), *([view.y] if flat else [])]
    named = [*panels, *view.lines, *((view.points or ["unit"]) if measured else [])]
    where, listed = wanted(view), {"task": trials.tasks, **wanted(view)}
    lines = select(trials.frame, where)
    if view.kind == "ranks":
        frame, notes = mean_ranks(name, view, trials, lines)
        return Series(name, view, frame, _references(view, trials, lines), notes=notes)
    if view.singles and not lines.empty:
        experts = beside(models(trials, "mean_expert", where), lines, {*named, *placed} - {"n", "unit"})
        lines = pd.concat([lines, experts], ignore_index=True)
    cells = group(lines, named, placed)
    point = partial(_point, view, measured, cells, trials)
    points = {(*key[0], *key[1]): point(key, cell) for key, cell in by_task(cells)}
    order = sort_keys([(*first, *second) for first, second in cells], [*named, *placed], listed)
    rows = [points[key] for key in order]
    frame = pd.DataFrame(rows, columns=["panel", "line", "x", "y", "z", "low", "high"])
    frame = frame.dropna(subset=["x", "y", "z"] if flat else ["x", "y"]).drop(columns="line" if flat else "z")
    frame = _bins(frame) if view.kind == "histogram" else frame
    notes = [] if len(frame) else [f"Figure {name} is empty: no scored trial is what it asks for."]
    singles = _singles(cells, point) if view.kind in SINGLES else None
    return Series(name, view, frame.reset_index(drop=True), _references(view, trials, lines), singles, notes)


def _point(
    view: FigureView,
    measured: bool,
    cells: dict[tuple[Key, Key], Cell],
    trials: Trials,
    key: tuple[Key, Key],
    cell: Cell,
) -> tuple[Any, ...]:
    """Panel, line, x, y, z, low and high of a cell (or a part of one) that stands at ``key``."""
    flat, panels = view.kind in FLAT, several(view.panels)
    value = partial(_value, view, key, cell, cells, trials)
    x = value(view.x).estimate if measured else key[1][0]
    y = key[1][-1] if flat else x if view.kind == "histogram" else None
    height = Value(float("nan")) if view.kind == "histogram" else value(view.z if flat else view.y)
    names = label_of(panels, key[0]), label_of(view.lines, key[0][len(panels) :])
    return (*names, x, height.estimate if y is None else y, height.estimate, height.low, height.high)


def _singles(cells: dict[tuple[Key, Key], Cell], point: Callable[..., tuple[Any, ...]]) -> pd.DataFrame:
    """The point of every subset of cells that are of several; none of a figure that has too many."""
    apart = [(key, cell, unit) for key, cell in by_task(cells) if len(cell.distinct) > 1 for unit in cell.distinct]
    if len(apart) > POINTS:
        apart = apart[:: -(-len(apart) // POINTS)]
    rows = [
        (*point(key, cell.only(own == unit for own in cell.units)), unit.partition("|")[2]) for key, cell, unit in apart
    ]
    frame = pd.DataFrame(rows, columns=["panel", "line", "x", "y", "z", "low", "high", "subset"])
    return frame.drop(columns="z").dropna(subset=["x", "y"])


def _bins(frame: pd.DataFrame) -> pd.DataFrame:
    """Counts y of the values x between low and high, in the same bins for every line and panel."""
    rows: list[tuple[Any, ...]] = []
    edges = np.histogram_bin_edges(frame["x"], bins="auto") if len(frame) else ()
    for (panel, line), own in frame.groupby(["panel", "line"], sort=False):
        counts, _ = np.histogram(own["x"], edges)
        rows += [(panel, line, (a + b) / 2, int(y), a, b) for y, a, b in zip(counts, edges[:-1], edges[1:])]
    return pd.DataFrame(rows, columns=["panel", "line", "x", "y", "low", "high"])


def _value(
    view: FigureView, key: tuple[Key, Key], own: Cell, cells: dict[tuple[Key, Key], Cell], trials: Trials, measure: str
) -> Value:  # fmt: skip
    def reference(cell: Cell) -> Cell | None:
        if isinstance(view.reference, str):
            return trials.named(view.reference, cell)
        names = [*several(view.panels), *view.lines, *view.points], [view.x, view.y]
        first, second = (tuple(view.reference.get(n, v) for n, v in zip(of, part)) for of, part in zip(names, key))
        return None if (first, second) == key else cells.get((first, second))

    return evaluate(trials, measure, own, reference, band=view.band)


def _references(view: FigureView, trials: Trials, lines: pd.DataFrame) -> pd.DataFrame:
    """The height of every reference in every panel; of figures of scores alone."""
    panels = several(view.panels)
    rows: list[tuple[Any, ...]] = []
    for name in view.references if view.y in ("score", "own") and not lines.empty else ():
        own = beside(models(trials, name, wanted(view)), lines, panels)
        for (key, _), cell in group(own, panels, []).items():
            rows.append((label_of(panels, key), NAMES[name], evaluate(trials, "score", cell, band="none").estimate))
    return pd.DataFrame(rows, columns=["panel", "name", "y"])
