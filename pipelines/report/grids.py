"""Tables of a study as their declarations lay them out: blocks of rows, columns, and values with bounds."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import pandas as pd

from conf.schema import TableView
from pipelines.report import words
from pipelines.report.cells import NOTHING, Cell, Key, Trials, Value, by_task, pooled
from pipelines.report.grouping import LABELS, beside, group, label_of, models, sort_keys, text
from pipelines.report.measures import bounded, evaluate
from pipelines.report.views import NAMES, RELATIVE, measure_of, select, several, wanted

MEAN: Key = ("mean",)
REFERENCE: Key = ("reference",)
AVERAGE: Key = ("Average",)
Place = tuple[Key, Key, Key]
"""Block, row and column of a cell."""
MIXED = ("base", "training", "pool", "method", "n", "suite", "attack", "setting", "lr", "training.batch_size")
"""Columns of which it is noted that a table's cells are means over several of their values."""
TOLD = ("task", "metric")


@dataclass
class Grid:
    """A table: ``values[block, row, column]`` holds a value for each of its measures."""

    name: str
    view: TableView
    blocks: list[Key] = field(default_factory=list)
    rows: dict[Key, list[Key]] = field(default_factory=dict)
    """Rows of every block."""
    columns: list[Key] = field(default_factory=list)
    values: dict[Place, list[Value]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    @property
    def title(self) -> str:
        """What the table is called."""
        return self.view.title or self.name

    @property
    def measures(self) -> list[str]:
        """Measures that stand in every column."""
        return [m for m in self.view.measures if m != "reference" or not self.view.columns]

    @property
    def known(self) -> bool:
        """Whether there is a number in it."""
        return any(not math.isnan(values[0].estimate) for values in self.values.values())

    @property
    def names(self) -> list[str]:
        """Columns that name a row."""
        return [*several(self.view.blocks), *self.view.rows]

    def aside(self, row: Key) -> bool:
        """Whether a row is of a base or of experts, beside the trials."""
        return any(str(value).startswith(LABELS) for value in row)

    def measured(self, block: Key, row: Key, column: Key) -> list[tuple[str, Value]]:
        """What stands in a cell, by measure; the column of the reference has that alone."""
        measures = ["reference"] if column == REFERENCE else self.measures
        return list(zip(measures, self.values.get((block, row, column), [NOTHING] * len(measures))))

    def flat(self) -> list[dict[str, Any]]:
        """The rows with all digits: of every column a value, and ``_low`` and ``_high`` where it has bounds."""
        bounded = {
            measure
            for block, row, column in self.values
            for measure, value in self.measured(block, row, column) if not math.isnan(value.low)
        }  # fmt: skip
        several_blocks = len(self.names) - len(self.view.rows)
        found = []
        for block, row in [(b, r) for b in self.blocks for r in self.rows[b]]:
            line: dict[str, Any] = dict(zip(self.names, [*block, *[""] * (several_blocks - len(block)), *row]))
            for column in self.columns:
                head = self.heading(column) if self.view.columns else ""
                for measure, value in self.measured(block, row, column):
                    alone = head and (len(self.measures) == 1 or column == REFERENCE)
                    name = head if alone else f"{head} {measure}".strip()
                    line[name] = value.text or value.estimate
                    if measure in bounded:
                        line |= {f"{name}_low": value.low, f"{name}_high": value.high}
            found.append(line)
        return found

    def heading(self, column: Key) -> str:
        """What stands over a column: its values, with the column's name before numbers."""
        if column == REFERENCE:
            return NAMES.get(str(self.view.reference), "reference")
        if column == MEAN:
            return "mean"
        return label_of(self.view.columns, column)


def build_grid(name: str, view: TableView, trials: Trials) -> Grid:
    """Lay out a table and compute every value of it."""
    grid, where = Grid(name, view), {"task": trials.tasks, **wanted(view)}
    lines = _lines(view, trials)
    if lines.empty:
        grid.notes.append(f"Table {name} is empty: no scored trial is what it asks for.")
        return grid
    blocks = several(view.blocks)
    found = group(lines, [*blocks, *view.rows], view.columns)
    cells: dict[Place, Cell] = {(key[: len(blocks)], key[len(blocks) :], column): cell
                                for (key, column), cell in found.items()}  # fmt: skip
    grid.blocks = sort_keys((b for b, _, _ in cells), blocks, where)
    grid.columns = sort_keys((c for _, _, c in cells), view.columns, where)
    for block in grid.blocks:
        rows = sort_keys((r for b, r, _ in cells if b == block), view.rows, where)
        grid.rows[block] = sorted(rows, key=lambda row: _rank(row, view.also))
    _compute(grid, cells, trials)
    if view.average and len(grid.blocks) > 1:
        _average(grid, trials.statistics.confidence)
    grid.notes += _mixed(lines, [*blocks, *view.rows, *view.columns])
    return grid


def _lines(view: TableView, trials: Trials) -> pd.DataFrame:
    """Lines of the tidy table that the view is of, with those of bases and experts that stand beside them."""
    where = wanted(view)
    chosen = select(trials.frame, where)
    placed = [*several(view.blocks), *view.columns]
    parts = [chosen]
    if view.singles:
        parts.append(beside(models(trials, "mean_expert", where), chosen, {*placed, *view.rows} - {"n"}))
    merges = pd.concat(parts)
    for name in view.also:
        parts.append(beside(models(trials, name, where), merges, placed, view.rows, NAMES[name]))
    return pd.concat(parts, ignore_index=True)


def _rank(row: Key, also: Sequence[str]) -> int:
    """Bases and experts first, as they are listed."""
    places = [i - len(also) for i, name in enumerate(also) if any(str(v).startswith(NAMES[name]) for v in row)]
    return places[0] if places else 0


def _compute(grid: Grid, cells: dict[Place, Cell], trials: Trials) -> None:
    view, columns = grid.view, list(grid.columns)
    own = [(block, row) for block in grid.blocks for row in grid.rows[block]]
    if "reference" in view.measures and view.columns:
        grid.columns.insert(0, REFERENCE)
        cells |= {(b, r, REFERENCE): pooled([cells[b, r, c] for c in columns if (b, r, c) in cells]) for b, r in own}
    if view.mean and columns:
        grid.columns.append(MEAN)
        cells |= {(b, r, MEAN): cell for b, r in own if (cell := _pooled(cells, b, r, columns)) is not None}
    for place, cell in by_task(cells):
        reference = partial(_reference, cells, place, grid, trials)
        measures = ["reference"] if place[2] == REFERENCE else grid.measures
        of = "score"
        values = []
        for measure in measures:
            of = of if measure in RELATIVE else measure
            values.append(evaluate(trials, measure, cell, reference, of=of, band=view.band))
        grid.values[place] = values
    if view.mean and columns:
        for b, r in own:
            there = [grid.values.get((b, r, c)) for c in columns if any((b, x, c) in cells for x in grid.rows[b])]
            if (b, r, MEAN) not in cells and None not in there:
                grid.values[b, r, MEAN] = _means(there, trials.statistics.confidence)  # type: ignore[arg-type]


def _pooled(cells: Mapping[Place, Cell], block: Key, row: Key, columns: Sequence[Key]) -> Cell | None:
    """All columns of a row as one cell, where that is their mean: each has as many subsets."""
    in_block = {c for b, _, c in cells if b == block} & set(columns)
    own = [cells[block, row, c] for c in columns if (block, row, c) in cells]
    same = len(own) == len(in_block) and len({len(cell.distinct) for cell in own}) == 1
    return pooled(own) if same else None


def _reference(cells: Mapping[Place, Cell], place: Place, grid: Grid, trials: Trials, cell: Cell) -> Cell | None:
    """What a cell is compared with; nothing for the reference itself."""
    wanted = grid.view.reference
    if isinstance(wanted, str):
        found = trials.named(wanted, cell)
        return None if found == cell else found
    blocks = several(grid.view.blocks)
    new = [tuple(wanted.get(name, value) for name, value in zip(names, key))
           for names, key in zip((blocks, grid.view.rows, grid.view.columns), place)]  # fmt: skip
    other = (new[0], new[1], new[2] if len(place[2]) == len(grid.view.columns) else place[2])
    other = (other[0], other[1], place[2]) if place[2] in (MEAN, REFERENCE) else other
    return None if other == place else cells.get(other)


def _means(lists: Sequence[list[Value]], confidence: float) -> list[Value]:
    return [_mean(values, confidence) for values in zip(*lists)]


def _mean(values: Sequence[Value], confidence: float) -> Value:
    """The mean of several values, with its interval where all have replicates, else with the mean of their bounds."""
    estimate = float(np.mean([v.estimate for v in values]))
    draws = [v.draws for v in values]
    if math.isnan(estimate):
        return NOTHING
    if any(d is None for d in draws):
        low, high = (float(np.mean([getattr(v, end) for v in values])) for end in ("low", "high"))
        return Value(estimate, low, high)
    return bounded(estimate, np.mean(draws, axis=0), confidence)  # type: ignore[arg-type]


def _average(grid: Grid, confidence: float) -> None:
    """One more block: of every row and column that all blocks have, the mean over blocks."""
    rows = [row for row in grid.rows[grid.blocks[0]] if all(row in grid.rows[b] for b in grid.blocks)]
    for row in rows:
        for column in grid.columns:
            own = [grid.values.get((block, row, column)) for block in grid.blocks]
            if None not in own:
                grid.values[AVERAGE, row, column] = _means(own, confidence)  # type: ignore[arg-type]
    grid.blocks.append(AVERAGE)
    grid.rows[AVERAGE] = rows


def _mixed(lines: pd.DataFrame, keys: Sequence[str]) -> list[str]:
    """What the cells are means over without the view's saying so."""
    merges = lines[lines["kind"] == "merge"].drop_duplicates("trial")
    own = [name for name in keys if name in merges and name not in TOLD]
    found = []
    for name in (n for n in MIXED if n in merges and n not in keys):
        groups = merges.groupby(own, dropna=False)[name] if own else merges.assign(all=0).groupby("all")[name]
        if (groups.nunique() > 1).any():
            found.append(f"{name} {words.listed([text(v) for v in merges[name].dropna().unique()], 4)}")
    return [f"Cells are means over {'; '.join(found)}."] if found else []


def marks(grid: Grid) -> dict[Place, int]:
    """Places of the best (1) and second best (2) of a block in every column by the first measure; no rows aside."""
    better = measure_of(grid.measures[0]).better if grid.measures else 0
    found: dict[Place, int] = {}
    if not grid.view.mark or not better:
        return found
    for block in grid.blocks:
        for column in (c for c in grid.columns if c != REFERENCE):
            scored = {row: grid.values[block, row, column][0].estimate for row in grid.rows[block]
                      if (block, row, column) in grid.values and not grid.aside(row)}  # fmt: skip
            known = {row: better * value for row, value in scored.items() if not math.isnan(value)}
            best = sorted(set(known.values()), reverse=True)[:2]
            if len(known) > 1:
                found |= {(block, row, column): best.index(v) + 1 for row, v in known.items() if v in best}
    return found
