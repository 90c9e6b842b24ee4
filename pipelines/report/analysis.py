"""What a panel's numbers say: leaderboard, experts on their own skill, what merging keeps of it, a line per trial."""

from __future__ import annotations

import json
from collections import defaultdict
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mergeopt_core.statistics import (
    Interval,
    Standing,
    Tally,
    constructive,
    difference_p,
    holm,
    union_test,
)
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


@dataclass
class ExpertRow:
    """An expert on the task of its own name, and over the whole suite."""

    study: str
    pool: str
    panel: str
    expert: str
    own: Interval
    base: Interval
    gain: Interval
    suite: Interval


@dataclass
class InterferenceRow:
    """The share of own-skill gain that the merges of a method at one number of experts keep."""

    study: str
    pool: str
    panel: str
    method: str
    experts: int
    merges: int
    kept: Interval
    """Σ(merge − base) / Σ(expert − base) over the merged experts' own tasks, averaged over merges."""
    kept_each: float
    """Mean over experts of the single shares (merge − base) / (expert − base), where that gain is beyond noise."""


def expert_rows(panel: Panel) -> list[ExpertRow]:
    """Every expert whose name is a task of the suite, on that task against the base."""
    key = panel.key
    return [
        ExpertRow(
            key.study,
            key.pool,
            panel.title,
            skill.name,
            skill.score,
            skill.base,
            skill.gain,
            panel.interval(panel.scores[skill.expert], panel.replicates[skill.expert]),
        )
        for skill in panel.skills
    ]


def interference_rows(panel: Panel) -> list[InterferenceRow]:
    """Mean share kept by method and number of experts."""
    groups: dict[tuple[str, int], list[int]] = defaultdict(list)
    for m in panel.merges:
        if np.isfinite(panel.kept[m]):
            groups[panel.rows[m].method or "?", len(panel.rows[m].experts)].append(m)
    rows = []
    for (method, size), members in sorted(groups.items()):
        replicates = (panel.kept_replicates[members] * panel.cluster(members)).sum(axis=0)
        kept = panel.interval(float(panel.kept[members].mean()), replicates)
        each = panel.kept_each[members]
        mean = float(each[np.isfinite(each)].mean()) if np.isfinite(each).any() else np.nan
        key = panel.key
        rows.append(InterferenceRow(key.study, key.pool, panel.title, method, size, len(members), kept, mean))
    return rows


def trial_lines(panel: Panel, standings: dict[int, MergeStanding]) -> list[dict[str, Any]]:
    """Every trial of the panel as plain columns, best first within base, experts and merges; incomplete ones last."""
    tail = (1 - panel.statistics.confidence) / 2
    low, high = np.quantile(panel.replicates, [tail, 1 - tail], axis=1) if panel.rows else ([], [])
    rank = {"base": 0, "expert": 1, "merge": 2}
    order = sorted(range(len(panel.rows)), key=lambda i: (rank[panel.rows[i].kind], -panel.scores[i]))
    lines = []
    for i in order:
        line = _describe(panel.rows[i]) | {"score": float(panel.scores[i])}
        line |= {"score_low": float(low[i]), "score_high": float(high[i])}
        if panel.base is not None and i != panel.base:
            line["to_base"] = float(panel.scores[i] - panel.scores[panel.base])
        judged = standings.get(i)
        if judged is not None and judged.standing is not None:
            line |= {"above_base": judged.standing.above_base, "above_mean": judged.standing.above_mean}
            line |= {"constructive": judged.standing.constructive, "constructive_p": judged.p}
        if np.isfinite(panel.kept[i]):
            line["kept"] = float(panel.kept[i])
        lines.append(line | _measured(panel.rows[i]))
    for row in panel.incomplete:
        note = "incomplete: a task has no score" if row.scored else "no result yet"
        lines.append(_describe(row) | {"note": note} | _measured(row))
    return lines


def _describe(row: TrialRow) -> dict[str, Any]:
    return {
        "study": row.study,
        "pool": row.pool,
        "suite": row.suite,
        "attack": row.attack,
        "kind": row.kind,
        "method": row.method,
        "label": row.label,
        "experts": "+".join(row.experts),
        "size": len(row.experts),
        "parameters": json.dumps(dict(row.parameters), sort_keys=True, default=str) if row.parameters else "",
        "key": row.key,
        **{name: value for name, value in row.provenance.items() if name != "suite"},
    }


def _measured(row: TrialRow) -> dict[str, Any]:
    line: dict[str, Any] = {f"task.{task}": float(value) for task, value in row.scores.items()}
    line["documents"] = sum(row.n.values())
    line |= {f"seconds.{stage}": float(value) for stage, value in row.seconds.items()}
    return line | ({"weights": str(row.weights)} if row.weights else {})
