"""Mean ranks of what a view compares, over the merges that all of them made, with intervals over training seeds."""

from __future__ import annotations

import math
from collections import defaultdict

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import stats

from conf.schema import FigureView
from pipelines.report.cells import Trials
from pipelines.report.grouping import group, label_of
from pipelines.report.measures import evaluate
from pipelines.report.views import measure_of, several

COLUMNS = ["panel", "line", "x", "y", "low", "high", "critical"]


def mean_ranks(name: str, view: FigureView, trials: Trials, lines: pd.DataFrame) -> tuple[pd.DataFrame, list[str]]:
    """Mean rank y (1 is best) of every line in every panel, and notes on how many blocks it is over.

    A block is a subset of one training seed's experts that every line of the panel merged; ties share their ranks. low
    and high are Student's interval over seeds' mean ranks. ``critical`` is Nemenyi's critical difference over the
    blocks, q √(k (k + 1) / 6N) (Demšar 2006).
    """
    panels = several(view.panels)
    better = measure_of(view.y).better or 1
    values: dict[str, dict[tuple[object, ...], dict[str, float]]] = defaultdict(lambda: defaultdict(dict))
    for (key, _), cell in group(lines, [*panels, *view.lines, "unit", "train_seed"], []).items():
        panel, line = label_of(panels, key[: len(panels)]), label_of(view.lines, key[len(panels) : -2])
        values[panel][key[-2:]][line] = better * evaluate(trials, view.y, cell, band="none").estimate
    rows: list[tuple[object, ...]] = []
    notes = []
    for panel, blocks in values.items():
        known = sorted({line for block in blocks.values() for line in block})
        whole = {key: block for key, block in blocks.items() if len(block) == len(known)}
        if len(known) < 2 or not whole:
            continue
        table = np.array([[block[line] for line in known] for block in whole.values()])
        ranks = stats.rankdata(-table, axis=1)
        low, high = _over_seeds(ranks, [key[-1] for key in whole], trials.statistics.confidence)
        critical = nemenyi(len(known), len(whole), trials.statistics.confidence)
        mean = ranks.mean(axis=0)
        order = np.argsort(mean, kind="stable")
        rows += [(panel, known[i], known[i], mean[i], low[i], high[i], critical) for i in order]
        of = f" of {panel}" if panel else ""
        notes.append(
            f"Figure {name}{of}: ranks over {len(whole)} blocks (a subset and seed), {len(blocks) - len(whole)} left "
            f"out; critical difference {critical:.2f}, as if blocks that share experts were independent."
        )
    if not rows:
        notes.append(f"Figure {name} is empty: no block has a score of two lines or more.")
    return pd.DataFrame(rows, columns=COLUMNS), notes


def _over_seeds(ranks: NDArray, seeds: list[object], confidence: float) -> tuple[NDArray, NDArray]:
    """Student's interval over the seeds' mean ranks; NaN for one seed."""
    means = np.array([ranks[[one == seed for one in seeds]].mean(axis=0) for seed in dict.fromkeys(seeds)])
    count = len(means)
    if count < 2:
        return np.full(ranks.shape[1], math.nan), np.full(ranks.shape[1], math.nan)
    half = stats.t.ppf((1 + confidence) / 2, count - 1) * means.std(axis=0, ddof=1) / math.sqrt(count)
    return ranks.mean(axis=0) - half, ranks.mean(axis=0) + half


def nemenyi(lines: int, blocks: int, confidence: float = 0.95) -> float:
    """Difference of two mean ranks beyond which they differ: q √(k (k + 1) / 6N), q that of the studentised range."""
    q = float(stats.studentized_range.ppf(confidence, lines, np.inf)) / math.sqrt(2)
    return q * math.sqrt(lines * (lines + 1) / (6 * blocks))
