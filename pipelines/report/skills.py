"""Experts on their own skill, and how much of it merges keep."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass

import numpy as np

from mergeopt_core.statistics import Interval
from pipelines.report.panel import Panel


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
