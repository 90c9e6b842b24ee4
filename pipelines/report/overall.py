"""Which training and which merging is best, over all pools that can be compared."""

from __future__ import annotations

from collections import defaultdict

import numpy as np
from numpy.typing import NDArray

from mergeopt_core.statistics import leads
from pipelines.report import words
from pipelines.report.analysis import Cell
from pipelines.report.compare import by_recipe, comparable, same_documents
from pipelines.report.panel import Panel
from pipelines.report.verdict import lead_over, winners

Scored = tuple[str, float, NDArray]
"""A name, its mean score and the replicates of that `[B]`."""


def overall_verdicts(panels: list[Panel], cells: list[list[Cell]]) -> list[str]:
    """The best of all, the best training and the best merging: one set of sentences for pools that can be compared."""
    families: list[list[int]] = []
    for i, panel in enumerate(panels):
        for family in families:
            if comparable(panels[family[0]], panel) and same_documents(panels[family[0]], panel):
                family.append(i)
                break
        else:
            families.append([i])
    lines = []
    for family in families:
        own = [panels[i] for i in family]
        merged = [cell for i in family for cell in cells[i] if cell.row.kind == "merge"]
        if not merged:
            found = ["No merge has been scored."]
        else:
            found = winners(own[0], sorted(merged, key=lambda c: -c.row.score.estimate))
            found += [_training(own), _merging(own)]
        prefix = f"{words.listed([p.title for p in own])}: " if len(families) > 1 else ""
        lines += [prefix + line for line in found if line]
    return lines


def _training(panels: list[Panel]) -> str:
    """The pool with the highest mean over the merges that all pools have."""
    recipes = [by_recipe(panel) for panel in panels]
    common = [recipe for recipe in recipes[0] if all(recipe in other for other in recipes)]
    if len(panels) < 2 or not common:
        return ""
    scored = [(panel.title, *_mean([(panel, [own[r] for r in common])])) for panel, own in zip(panels, recipes)]
    known = [panel.provenance.get("training") for panel in panels]
    apart = None not in known and len(set(known)) == len(known)
    line = _best(panels[0], "Training" if apart else "Pools", scored, f"the {len(common)} merges that every pool has")
    return f"{line} Each expert was trained once: the luck of a training is not in the interval."


def _merging(panels: list[Panel]) -> str:
    """The method with the highest mean over the subsets that all methods merged, over all pools."""
    merged: dict[str, dict[tuple[int, frozenset[str]], list[int]]] = defaultdict(lambda: defaultdict(list))
    for place, panel in enumerate(panels):
        for m in panel.merges:
            merged[panel.rows[m].method or "?"][place, frozenset(panel.rows[m].experts)].append(m)
    most = max(map(len, merged.values()))
    compared = {name: subsets for name, subsets in merged.items() if len(subsets) == most}
    common = set.intersection(*(set(subsets) for subsets in compared.values()))
    if len(compared) < 2 or not common:
        return ""
    scored = []
    for name, subsets in compared.items():
        rows: dict[int, list[int]] = defaultdict(list)
        for place, subset in common:
            rows[place] += subsets[place, subset]
        scored.append((name, *_mean([(panels[place], sorted(own)) for place, own in sorted(rows.items())])))
    across = " of all pools" if len(panels) > 1 else ""
    line = _best(panels[0], "Merging", scored, f"the {len(common)} subsets{across} that every method merged")
    left = [name for name in merged if name not in compared]
    return line + (f" Not compared, as they merged fewer: {words.listed(left)}." if left else "")


def _mean(parts: list[tuple[Panel, list[int]]]) -> tuple[float, NDArray]:
    """Mean over merges of panels, each merge alike, with its replicates; subsets of each size are resampled."""
    count = sum(len(rows) for _, rows in parts)
    point = sum(float(panel.scores[rows].sum()) for panel, rows in parts) / count
    draws = np.zeros(parts[0][0].statistics.resamples)
    for panel, rows in parts:
        groups: dict[tuple[str, int], list[int]] = defaultdict(list)
        for m in rows:
            groups[panel.rows[m].method or "?", len(panel.rows[m].experts)].append(m)
        for own in groups.values():
            draws += (panel.replicates[own] * panel.cluster(own)).sum(axis=0) * (len(own) / count)
    return point, draws


def _best(panel: Panel, what: str, scored: list[Scored], over: str) -> str:
    """The best of those scored, and whether it leads."""
    scored = sorted(scored, key=lambda one: -one[1])
    names, points, draws = [s[0] for s in scored], [s[1] for s in scored], np.array([s[2] for s in scored])
    _, found = leads(points, draws, panel.documents, panel.statistics.confidence)
    best = panel.interval(points[0], draws[0])
    rivals = list(zip(names, points, found))[1:]
    lead = lead_over(rivals, panel.statistics.confidence)
    return f"{what}: {names[0]} is highest, {words.score(best)} over {over}. Its lead {lead}."
