"""What a panel's numbers say: the leaderboard, how merges stand to their base and experts, a line per trial."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mergeopt_core.statistics import Interval, Standing, Tally, constructive, difference_p, holm, union_test
from pipelines.report.data import TrialRow
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
    """Subsets whose merges, orders and draws averaged, are above the base."""
    above_mean: Tally | None = None
    """… above the mean of their own experts."""
    constructive: Tally | None = None
    """… above the base and every one of their own experts."""
    significant: int | None = None
    """Constructive ones beyond noise: intersection–union p-value, Holm-corrected over the panel's."""


@dataclass
class Cell:
    """A line of the leaderboard with what it was computed from."""

    row: LeaderRow
    replicates: NDArray
    """Of the mean score `[B]`."""


@dataclass
class MergeStanding:
    """The merges of one subset by one method, orders and draws averaged, against their base and experts."""

    members: list[int]
    """Rows of the merges."""
    standing: Standing
    p: float
    """Holm-corrected p-value of 'beats the base and all of its experts'."""


def merge_standings(panel: Panel) -> dict[int, MergeStanding]:
    """Compare the merges of every subset, whose base and experts were all scored, with these; by each merge's row."""
    groups: dict[Any, list[int]] = defaultdict(list)
    for m in panel.merges:
        groups[panel.rows[m].method, panel.rows[m].run, frozenset(panel.rows[m].experts)].append(m)
    found: list[Standing | None] = []
    p = []
    for members in groups.values():
        experts = panel.parents(members[0])
        if panel.base is None or not experts:
            found.append(None)
            p.append(1.0)
            continue
        scores = panel.scores[experts].tolist()
        found.append(one := constructive(float(panel.scores[members].mean()), panel.scores[panel.base], scores))
        p.append(_beats_all(panel, members, [panel.base, *experts]) if one.constructive else 1.0)
    judged = zip(groups.values(), found, holm(np.array(p)))
    return {m: MergeStanding(members, one, float(q)) for members, one, q in judged if one is not None for m in members}


def _beats_all(panel: Panel, merges: list[int], rivals: list[int]) -> float:
    """p-value of 'their mean is above every rival'."""
    gaps = panel.scores[merges].mean() - panel.scores[rivals]
    draws = panel.replicates[merges].mean(axis=0) - panel.replicates[rivals]  # [rivals, B]
    p = [difference_p(g, d, panel.differing(merges, [r] * len(merges))) for g, d, r in zip(gaps, draws, rivals)]
    return union_test(gaps, np.nan_to_num(p, nan=1.0))


def build_cells(panel: Panel, standings: dict[int, MergeStanding]) -> list[Cell]:
    """The panel's references, then its cells (method × number of experts) by falling mean score."""
    singles = list(panel.experts.values())
    cells = []
    if panel.base is not None:
        cells.append(_cell(panel, "base", "base", 0, [panel.base]))
    if singles:
        best = max(singles, key=lambda i: panel.scores[i])
        missing = sum(row.kind == "expert" for row in panel.incomplete)
        cells.append(_cell(panel, "best expert", f"best expert ({panel.rows[best].experts[0]})", 1, [best]))
        cells.append(_cell(panel, "mean expert", "mean of experts", 1, singles, missing))
    if panel.joint:
        cells.append(_cell(panel, "joint", "joint training", 0, list(panel.joint.values())))
    merged = [_merge_cell(panel, method, size, members, standings) for (method, size), members in panel.cells().items()]
    return cells + sorted(merged, key=lambda c: -c.row.score.estimate)


def _cell(
    panel: Panel, kind: str, method: str, experts: int, members: list[int], missing: int = 0,
    weights: NDArray | None = None, draws: NDArray | None = None,
) -> Cell:  # fmt: skip
    """A line with its score and its difference to the base.

    ``weights`` ``[S]`` are those of the estimate and ``draws`` ``[S, B]`` those of its replicates; None: all alike.
    """
    replicates = _average(panel.replicates[members], draws)
    score = panel.interval(float(_average(panel.scores[members], weights)), replicates)
    row = LeaderRow(*panel.key, panel.title, kind, method, experts, len(members), len(members) + missing, score)
    if kind != "base":
        row.to_base = _gap(panel, members, [panel.base] * len(members), weights, draws)
    return Cell(row, replicates)


def _average(values: NDArray, weights: NDArray | None) -> NDArray:
    if weights is None:
        return values.mean(axis=0)
    return weights @ values if weights.ndim == 1 else (values * weights).sum(axis=0)


def _merge_cell(panel: Panel, method: str, size: int, members: list[int], standings: dict[int, MergeStanding]) -> Cell:
    weights = panel.alike(members)
    draws = panel.cluster(members)
    missing = sum((row.method, len(row.experts)) == (method, size) for row in panel.incomplete)
    cell = _cell(panel, "merge", method, size, members, missing, weights, draws)
    row, confidence = cell.row, panel.statistics.confidence
    best = [max(panel.parents(m) or (), key=lambda i: panel.scores[i], default=None) for m in members]
    row.to_best = _gap(panel, members, best, weights, draws)
    if all(m in standings for m in members):
        judged = [standings[m] for m in members if m == standings[m].members[0]]  # each subset once
        row.above_base = Tally.of([j.standing.above_base for j in judged], confidence)
        row.above_mean = Tally.of([j.standing.above_mean for j in judged], confidence)
        row.constructive = Tally.of([j.standing.constructive for j in judged], confidence)
        row.significant = sum(j.p < 1 - confidence for j in judged)
    return cell


def _gap(
    panel: Panel, members: list[int], others: Sequence[int | None], weights: NDArray | None, draws: NDArray | None
) -> Interval | None:
    """Mean difference between the members and their counterparts; None where one was not scored."""
    known = [other for other in others if other is not None]
    if len(known) < len(others):
        return None
    gaps = panel.replicates[members] - panel.replicates[known]  # [S, B]
    share = np.full(len(members), 1 / len(members)) if weights is None else weights
    estimate = float(share @ (panel.scores[members] - panel.scores[known]))
    return panel.interval(estimate, _average(gaps, draws), panel.differing(members, known))


def share_kept(panel: Panel, method: str) -> list[tuple[int, Interval]]:
    """Share of own-skill gain that the merges of a method keep, by number of experts; where it can be said."""
    found = []
    for (name, size), members in sorted(panel.cells(m for m in panel.merges if np.isfinite(panel.kept[m])).items()):
        if name == method:
            draws = _average(panel.kept_replicates[members], panel.cluster(members))
            found.append((size, panel.interval(float(panel.alike(members) @ panel.kept[members]), draws)))
    return found


def trial_lines(panel: Panel, standings: dict[int, MergeStanding]) -> list[dict[str, Any]]:
    """Every trial of the panel as plain columns, best first within base, experts and merges; incomplete ones last."""
    tail = (1 - panel.statistics.confidence) / 2
    low, high = np.quantile(panel.replicates, [tail, 1 - tail], axis=1) if panel.rows else ([], [])
    rank = {"base": 0, "joint": 1, "expert": 2, "merge": 3}
    lines = []
    for i in sorted(range(len(panel.rows)), key=lambda i: (rank[panel.rows[i].kind], -panel.scores[i])):
        line = {"score": float(panel.scores[i]), "score_low": float(low[i]), "score_high": float(high[i])}
        if panel.base is not None and i != panel.base:
            line["to_base"] = float(panel.scores[i] - panel.scores[panel.base])
        if i in standings:
            its = standings[i].standing
            line |= {"above_base": its.above_base, "above_mean": its.above_mean}
            line |= {"constructive": its.constructive, "constructive_p": standings[i].p}
        if np.isfinite(panel.kept[i]):
            line["kept"] = float(panel.kept[i])
        lines.append(panel.rows[i].describe() | line | _measured(panel.rows[i]))
    for row in panel.incomplete:
        note = "incomplete: a task has no score" if row.scored else "no result yet"
        lines.append(row.describe() | {"note": note} | _measured(row))
    return lines


def _measured(row: TrialRow) -> dict[str, Any]:
    line: dict[str, Any] = {f"task.{task}": float(value) for task, value in row.scores.items()}
    line["documents"] = sum(row.n.values())
    line |= {f"seconds.{stage}": float(value) for stage, value in row.seconds.items()}
    return line | ({"weights": str(row.weights)} if row.weights else {})
