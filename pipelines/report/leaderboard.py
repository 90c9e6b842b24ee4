"""The leaderboard: for every method and number of experts, the mean over its merges, and what it beats."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mergeopt_core.statistics import Interval, Standing, Tally, constructive, difference_p, holm, union_test
from pipelines.report.panel import Panel


@dataclass
class LeaderRow:
    """One line of the leaderboard: a reference (base, experts) or a method at one number of experts."""

    study: str
    pool: str
    suite: str
    attack: str
    panel: str
    """Short name of what the line can be compared within."""
    kind: str
    """base, best expert, mean expert or merge."""
    method: str
    experts: int
    merges: int
    planned: int
    """Models that the line is to be the mean of; more than there are in a report that is partial."""
    score: Interval
    to_base: Interval | None = None
    to_best: Interval | None = None
    """Merge minus the best of its own experts."""
    above_base: Tally | None = None
    above_mean: Tally | None = None
    """Merges above the mean of their own experts."""
    constructive: Tally | None = None
    """Merges above the base and every one of their own experts."""
    significant: int | None = None
    """Constructive merges beyond noise: intersection–union p-value, Holm-corrected over the panel's merges."""


@dataclass
class Cell:
    """A line of the leaderboard with what it was computed from."""

    row: LeaderRow
    members: list[int]
    replicates: NDArray
    """Of the mean score `[B]`."""


@dataclass
class MergeStanding:
    """One merge against its base and experts."""

    standing: Standing | None
    """None when the base or one of its experts was not scored."""
    p: float
    """Holm-corrected p-value of 'beats the base and all of its experts'."""


def merge_standings(panel: Panel) -> dict[int, MergeStanding]:
    """Compare every merge of the panel with its base and its own experts."""
    found: dict[int, Standing | None] = {}
    p = []
    for m in panel.merges:
        names = panel.rows[m].experts
        if panel.base is None or any(name not in panel.experts for name in names):
            found[m] = None
            p.append(1.0)
            continue
        rivals = [panel.base, *(panel.experts[name] for name in names)]
        scores = panel.scores
        found[m] = standing = constructive(scores[m], scores[rivals[0]], scores[rivals[1:]].tolist())
        gaps = scores[m] - scores[rivals]
        p.append(union_test(gaps, _pairwise(panel, m, rivals, gaps)) if standing.constructive else 1.0)
    return {m: MergeStanding(found[m], float(q)) for m, q in zip(panel.merges, holm(np.array(p)))}


def _pairwise(panel: Panel, merge: int, rivals: list[int], gaps: NDArray) -> list[float]:
    values = [
        difference_p(gap, panel.replicates[merge] - panel.replicates[rival], panel.differing([merge], [rival]))
        for rival, gap in zip(rivals, gaps)
    ]
    return [1.0 if np.isnan(v) else v for v in values]


def build_cells(panel: Panel, standings: dict[int, MergeStanding]) -> list[Cell]:
    """The panel's references, then its cells (method × number of experts) by falling mean score."""
    groups: dict[tuple[str, int], list[int]] = defaultdict(list)
    for m in panel.merges:
        groups[panel.rows[m].method or "?", len(panel.rows[m].experts)].append(m)
    cells = [_merge_cell(panel, method, size, members, standings) for (method, size), members in groups.items()]
    return _references(panel) + sorted(cells, key=lambda c: -c.row.score.estimate)


def _row(panel: Panel, kind: str, method: str, experts: int, members: list[int], score: Interval) -> LeaderRow:
    key = panel.key
    return LeaderRow(
        key.study, key.pool, key.suite, key.attack, panel.title, kind, method, experts, len(members),
        len(members) + _missing(panel, kind, method, experts), score,
    )  # fmt: skip


def _missing(panel: Panel, kind: str, method: str, experts: int) -> int:
    """Models of a line that have no score."""
    if kind == "merge":
        return sum((row.method, len(row.experts)) == (method, experts) for row in panel.incomplete)
    return sum(row.kind == "expert" for row in panel.incomplete) if kind == "mean expert" else 0


def _references(panel: Panel) -> list[Cell]:
    """The base, the best expert and the mean of the experts."""
    singles = list(panel.experts.values())
    wanted: list[tuple[str, str, int, list[int]]] = []
    if panel.base is not None:
        wanted.append(("base", "base", 0, [panel.base]))
    if singles:
        best = max(singles, key=lambda i: panel.scores[i])
        wanted.append(("best expert", f"best expert ({panel.rows[best].experts[0]})", 1, [best]))
        wanted.append(("mean expert", "mean of experts", 1, singles))
    cells = []
    for kind, name, size, members in wanted:
        replicates = panel.replicates[members].mean(axis=0)
        row = _row(panel, kind, name, size, members, panel.interval(panel.scores[members].mean(), replicates))
        if kind != "base":
            row.to_base = _gap(panel, members, [panel.base] * len(members), None)
        cells.append(Cell(row, members, replicates))
    return cells


def _merge_cell(panel: Panel, method: str, size: int, members: list[int], standings: dict[int, MergeStanding]) -> Cell:
    weights = panel.cluster(members)  # [S, B]
    point = _point_weights(panel, members)  # [S]
    replicates = (panel.replicates[members] * weights).sum(axis=0)
    row = _row(panel, "merge", method, size, members, panel.interval(point @ panel.scores[members], replicates))
    row.to_base = _gap(panel, members, [panel.base] * len(members), weights, point)
    row.to_best = _gap(panel, members, [_best_expert(panel, m) for m in members], weights, point)
    judged = [standings[m] for m in members if standings[m].standing is not None]
    if len(judged) == len(members):
        confidence = panel.statistics.confidence
        row.above_base = Tally.of([j.standing.above_base for j in judged if j.standing], confidence)
        row.above_mean = Tally.of([j.standing.above_mean for j in judged if j.standing], confidence)
        row.constructive = Tally.of([j.standing.constructive for j in judged if j.standing], confidence)
        row.significant = sum(j.p < 1 - confidence for j in judged)
    return Cell(row, members, replicates)


def _point_weights(panel: Panel, members: list[int]) -> NDArray:
    """Weights `[S]` of the estimate: every subset alike, however many rows it has."""
    subsets = [frozenset(panel.rows[m].experts) for m in members]
    return np.array([1 / (subsets.count(s) * len(set(subsets))) for s in subsets])


def _best_expert(panel: Panel, merge: int) -> int | None:
    rows = [panel.experts.get(name) for name in panel.rows[merge].experts]
    found = [row for row in rows if row is not None]
    return max(found, key=lambda i: panel.scores[i]) if found and len(found) == len(rows) else None


def _gap(
    panel: Panel,
    members: list[int],
    others: list[int | None],
    weights: NDArray | None,
    point: NDArray | None = None,
) -> Interval | None:
    """Mean difference between the members and their counterparts; None where one was not scored."""
    known = [other for other in others if other is not None]
    if len(known) < len(others):
        return None
    share = np.full(len(members), 1 / len(members)) if point is None else point
    gaps = panel.replicates[members] - panel.replicates[known]  # [S, B]
    replicates = gaps.mean(axis=0) if weights is None else (gaps * weights).sum(axis=0)
    estimate = share @ (panel.scores[members] - panel.scores[known])
    return panel.interval(float(estimate), replicates, panel.differing(members, known))
