"""What stands in a cell: a score, a cost, or how either compares with a reference, with its bounds."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from mergeopt_core.statistics import performance_drop, wilson
from pipelines.report.cells import NOTHING, Cell, Sample, Trials, Value
from pipelines.report.panel import Panel
from pipelines.report.views import RELATIVE

PERCENT = 100.0


def narrowed(trials: Trials, measure: str, cell: Cell) -> Cell:
    """The trials of a cell, and of their tasks those, that the measure is known of."""
    if measure in ("score", "stderr", "models"):
        return cell
    if measure == "own":
        named = [set(trials.panels[p].rows[i].experts) for p, i in _places(trials, cell)]
        tasks = tuple(tuple(t for t in tasks if t in own) for tasks, own in zip(cell.tasks, named))
        return replace(cell, tasks=tasks).only(map(bool, tasks))
    if measure == "normalised":
        known = [trials.own_experts(trial) for trial in cell.trials]
        tasks = tuple(tuple(t for t in tasks if t in own) for tasks, own in zip(cell.tasks, known))
        return replace(cell, tasks=tasks).only(map(bool, tasks))
    return cell.only(np.isfinite(_each(trials, measure, cell)))


def _places(trials: Trials, cell: Cell) -> list[tuple[int, int]]:
    return [trials.place[trial] for trial in cell.trials]


def sample(trials: Trials, measure: str, cell: Cell, replicates: bool = True) -> Sample:
    """A measure of every subset of a cell, averaged over its trials; of scores, and what is kept, with replicates."""
    draws = None
    if replicates and measure in ("score", "own"):
        draws = trials.draws(cell)
    elif replicates and measure == "normalised":
        draws = trials.normalised_draws(cell)
    elif replicates and measure == "kept":
        draws = np.array([trials.panels[p].kept_replicates[i] for p, i in _places(trials, cell)])
    return cell.by_subset(_each(trials, measure, cell)), None if draws is None else cell.by_subset(draws)


def _each(trials: Trials, measure: str, cell: Cell) -> NDArray:
    """A measure of every trial `[T]`; NaN where it is not known."""
    if measure in ("score", "own"):
        return trials.scores(cell)
    if measure == "normalised":
        return trials.normalised(cell)
    if measure in ("kept", "kept_each"):
        return np.array([getattr(trials.panels[p], measure)[i] for p, i in _places(trials, cell)])
    if measure == "constructive":
        standing = [trials.standings[p].get(i) for p, i in _places(trials, cell)]
        return np.array([math.nan if s is None else PERCENT * s.standing.constructive for s in standing])
    if measure == "worst":
        return np.array([trials.worst(trial, tasks) for trial, tasks in zip(cell.trials, cell.tasks)])
    if measure == "expert_ratio":
        return np.array([_expert_ratio(trials.panels[p], i) for p, i in _places(trials, cell)])
    if measure == "joint_share":
        base, joint = trials.base(cell), trials.joint(cell)
        if base is None or joint is None:
            return np.full(len(cell.trials), math.nan)
        start = trials.scores(base)
        return (trials.scores(cell) - start) / (trials.scores(joint) - start)
    return _column(trials, measure, cell)


def _expert_ratio(panel: Panel, row: int) -> float:
    """A merge's mean over its experts' own tasks, over that of these experts; NaN where one is not known."""
    own, scores = panel.rows[row], panel.samples.scores
    parents = [panel.experts.get((name, own.run)) for name in own.experts]
    pairs = [(scores[task][row], scores[task][parent]) for task, parent in zip(own.experts, parents)
             if task in scores and parent is not None]  # fmt: skip
    return (
        sum(pair[0] for pair in pairs) / sum(pair[1] for pair in pairs) if len(pairs) == len(parents) > 0 else math.nan
    )


def _column(trials: Trials, name: str, cell: Cell) -> NDArray:
    """A number that is told of every trial `[T]`; NaN where it is not told, or no number."""
    table = trials.trials
    if name == "seconds":
        parts = [column for column in table if str(column).startswith("seconds.")]
        found = table[parts].sum(axis=1, min_count=1) if parts else pd.Series(math.nan, index=table.index)
    else:
        found = table[name] if name in table else pd.Series(math.nan, index=table.index)
    return pd.to_numeric(found.loc[list(cell.trials)], errors="coerce").to_numpy(dtype=float)


def evaluate(
    trials: Trials, measure: str, cell: Cell | None, reference: Callable[[Cell], Cell | None] | None = None, *,
    of: str = "score", band: str = "interval",
) -> Value:  # fmt: skip
    """A measure of a cell; those of ``RELATIVE`` are of the measure ``of``, against the reference's same subsets."""
    relative = measure in RELATIVE or measure == "pdr"
    of = "score" if measure == "pdr" else of
    whole, other = cell, None
    cell = cell and narrowed(trials, of if relative else measure, cell)
    if relative and cell is not None:
        other = trials.clean(cell) if measure == "pdr" else reference and reference(cell)
        other = None if measure == "pdr" and other == cell else other
        cell, other = _matched(cell, other and narrowed(trials, of, other))
    if cell is None or whole is None or not cell.trials:
        return _told(trials, measure, whole)
    if measure == "models":
        return Value(float(len(set(cell.trials))))
    if measure == "stderr":
        return _stderr(trials, cell)
    estimate, spread, draws = _estimate(trials, measure, cell, other, of, band == "interval")
    if band == "seeds":
        spread = np.array(_by_seed(trials, measure, cell, other, of))
    if band in ("std", "seeds"):
        std = float(np.std(spread, ddof=1)) if len(spread) > 1 else math.nan
        return Value(estimate, estimate - std, estimate + std)
    if band == "interval" and measure in ("above", "constructive"):
        share = wilson(round(estimate / PERCENT * len(spread)), len(spread), trials.statistics.confidence)
        return Value(estimate, PERCENT * share.low, PERCENT * share.high)
    return bounded(estimate, draws, trials.statistics.confidence)


def _matched(cell: Cell, reference: Cell | None) -> tuple[Cell | None, Cell | None]:
    """Both on the subsets that both have, in one order."""
    if reference is None or not (both := set(cell.units) & set(reference.units)):
        return None, None
    cell = cell.only(unit in both for unit in cell.units)
    order = {unit: place for place, unit in enumerate(cell.distinct)}
    places = sorted((order[unit], i) for i, unit in enumerate(reference.units) if unit in both)
    return cell, reference.pick([i for _, i in places])


def bounded(estimate: float, draws: NDArray | None, confidence: float) -> Value:
    """An estimate between the quantiles of its replicates, where there are any and they differ."""
    if draws is None or np.isnan(draws).any():
        return Value(estimate)
    low, high = np.quantile(draws, [(1 - confidence) / 2, (1 + confidence) / 2])
    return Value(estimate, float(low), float(high), draws=draws)


def _estimate(
    trials: Trials, measure: str, cell: Cell, reference: Cell | None, of: str, replicates: bool
) -> tuple[float, NDArray, NDArray | None]:
    """The mean over subsets, the subsets' own numbers `[U]`, and replicates of the mean `[B]`."""
    if reference is None:
        return _mean(trials, cell, *sample(trials, measure, cell, replicates))
    (s, s_draws), (r, r_draws) = (sample(trials, of, part, replicates) for part in (cell, reference))
    combine, known = COMBINE[measure], s_draws is not None and r_draws is not None
    if measure in ("ratio", "pdr"):  # of means
        top, _, top_draws = _mean(trials, cell, s, s_draws)
        low, _, low_draws = _mean(trials, cell, r, r_draws)
        return float(combine(top, low)), combine(s, r), combine(top_draws, low_draws) if known else None
    return _mean(trials, cell, combine(s, r), combine(s_draws, r_draws) if known and measure != "above" else None)


COMBINE: dict[str, Callable[[Any, Any], Any]] = {
    "change": lambda s, r: PERCENT * (s - r) / r,
    "difference": lambda s, r: s - r,
    "above": lambda s, r: PERCENT * (s > r),
    "ratio": lambda s, r: s / r,
    "reference": lambda s, r: r,
    "pdr": lambda s, r: performance_drop(r, s),
}


def _mean(
    trials: Trials, cell: Cell, values: NDArray, draws: NDArray | None
) -> tuple[float, NDArray, NDArray | None]:  # fmt: skip
    """The mean over subsets; where documents are not known, its replicates are of the draw of subsets alone."""
    if draws is None and len(values) < 2:
        return float(values.mean()), values, None
    return float(values.mean()), values, (trials.weights(cell) * (values[:, None] if draws is None else draws)).sum(0)


def _told(trials: Trials, measure: str, cell: Cell | None) -> Value:
    """What is told of the trials in words, such as a parameter that is no number."""
    if cell is None or measure not in trials.trials:
        return NOTHING
    told = [str(value) for value in trials.trials[measure].loc[list(cell.trials)] if not pd.isna(value)]
    return Value(math.nan, text=", ".join(dict.fromkeys(told)))


def _stderr(trials: Trials, cell: Cell) -> Value:
    """Standard deviation of the mean score's replicates; of one model without documents, as its tasks give it."""
    _, _, draws = _estimate(trials, "score", cell, None, "score", True)
    if draws is not None and not np.isnan(draws).any():
        return Value(float(np.std(draws)))
    if len(set(cell.trials)) > 1:
        return NOTHING
    lines = trials.frame[(trials.frame["trial"] == cell.trials[0]) & trials.frame["task"].isin(cell.tasks[0])]
    errors = lines["stderr"].to_numpy(dtype=float)
    return Value(float(np.sqrt((errors**2).sum()) / len(errors)))


def _by_seed(trials: Trials, measure: str, cell: Cell, reference: Cell | None, of: str) -> Sequence[float]:
    """The measure of the trials of every training seed."""
    seeds = trials.trials["train_seed"] if "train_seed" in trials.trials else pd.Series(None, trials.trials.index)
    own = [seeds[trial] for trial in cell.trials]
    found = []
    for seed in dict.fromkeys(seed for seed in own if not pd.isna(seed)):
        part = cell.only(s == seed for s in own)
        matched = _matched(part, _of_seed(seeds, seed, reference)) if reference else (part, None)
        if matched[0] is not None:
            found.append(_estimate(trials, measure, matched[0], matched[1], of, False)[0])
    return found


def _of_seed(seeds: pd.Series, seed: Any, reference: Cell) -> Cell:
    """The reference's trials of this training seed; all of them where none is (a base)."""
    same = [seeds[trial] == seed for trial in reference.trials]
    return reference.only(same) if any(same) else reference
