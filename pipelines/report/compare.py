"""The same subsets and methods in two pools (or studies), merge by merge."""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from mergeopt_core.statistics import (
    Interval,
    cluster_weights,
    holm,
    task_replicates,
)  # fmt: skip
from pipelines.report.panel import Panel

OVERALL = "all merges"


@dataclass
class ComparisonRow:
    """Matched models of two panels: other − reference."""

    reference: str
    other: str
    what: str
    """all merges, own skill (experts on the task of their name), experts (on the suite) or merges."""
    method: str
    experts: int
    matched: int
    reference_score: float
    other_score: float
    difference: Interval
    p_holm: float = 1.0
    """p-value corrected over the lines of these two panels; that of all merges together over all pairs of panels."""
    main: bool = True
    """Whether the other panel is compared with the one that it is to be compared with, line by line."""


Match = tuple[list[int], list[int]]
"""Rows of the reference and of the other panel, in one order."""


def compare(panels: list[Panel]) -> tuple[list[ComparisonRow], list[str]]:
    """Compare every panel with its reference, and those of one study with each other by their overall lines."""
    rows: list[ComparisonRow] = []
    notes: list[str] = []
    done = set()
    for other in panels:
        if (reference := _reference(other, panels)) is None:
            continue
        if not same_documents(reference, other):
            notes.append(f"{other.title} is not compared with {reference.title}: other documents were scored.")
            continue
        rows += _compare(reference, other)
        done.add(frozenset((reference.title, other.title)))
    for i, other in enumerate(panels):
        for one in panels[:i]:
            if frozenset((one.title, other.title)) not in done and _alike(one, other):
                rows += [replace(row, main=False) for row in _compare(one, other) if row.what != "merges"]
    _correct([row for row in rows if row.what == OVERALL])
    return rows, notes


def _reference(other: Panel, panels: list[Panel]) -> Panel | None:
    """What a panel is compared with: the pool that it names; else in its study the first with plainly trained experts,
    or the first above it; else the same pool of an earlier study, or any panel above it.
    """
    found = [p for p in panels if p is not other and comparable(p, other)]
    if named := _named(other):
        found = [p for p in found if p.key.pool == named]
    else:
        found = [p for p in found if _may_be_reference(p, other, panels.index(p) < panels.index(other))]

    def rank(p: Panel) -> tuple[bool, bool, bool]:
        own = p.key.study == other.key.study
        return not (own and p.plain), not own, p.key.pool != other.key.pool

    return min(found, key=rank, default=None)


def _may_be_reference(p: Panel, other: Panel, above: bool) -> bool:
    """Those above; in one study plainly trained experts are the reference of others, and never the other way round."""
    if p.key.study == other.key.study and p.plain != other.plain:
        return p.plain
    return above


def _named(panel: Panel) -> str | None:
    return panel.rows[0].reference if panel.rows else None


def _alike(a: Panel, b: Panel) -> bool:
    """Whether two panels of one study that name no reference can be compared."""
    same = a.key.study == b.key.study and _named(a) is None and _named(b) is None
    return same and comparable(a, b) and same_documents(a, b)


def _correct(family: list[ComparisonRow]) -> None:
    p = [row.difference.p for row in family]
    for row, corrected in zip(family, holm([1.0 if x is None or np.isnan(x) else x for x in p])):
        row.p_holm = float(corrected)


def comparable(a: Panel, b: Panel) -> bool:
    """Same suite, attack and base, answers written by the same program, and merges or experts that match."""
    same = (a.key.suite, a.key.attack) == (b.key.suite, b.key.attack)
    same = same and {row.base for row in a.rows} == {row.base for row in b.rows}
    same = same and _generators(a) == _generators(b)
    return same and bool(_matches(a, b) or set(a.experts) & set(b.experts))


def _generators(panel: Panel) -> set[bool]:
    """Whether vLLM wrote answers: a setting of the suite, whatever the suite is called."""
    return {"generate_with=vllm" in (row.provenance.get("options") or "") for row in panel.rows}


def same_documents(a: Panel, b: Panel) -> bool:
    """Whether two panels were scored on the same documents of the same tasks."""
    mine, theirs = a.samples, b.samples
    if sorted(mine.tasks) != sorted(theirs.tasks) or mine.ids.keys() != theirs.ids.keys():
        return False
    return all(np.array_equal(mine.ids[t], theirs.ids[t]) for t in mine.ids)


def _matches(a: Panel, b: Panel) -> dict[tuple[str, int], Match]:
    """Merges of the same method, experts in the same order and repetition, by (method, number of experts)."""
    there = by_recipe(b)
    groups: dict[tuple[str, int], Match] = defaultdict(lambda: ([], []))
    for recipe, row in by_recipe(a).items():
        if recipe in there:
            mine, theirs = groups[recipe[0], len(recipe[1])]
            mine.append(row)
            theirs.append(there[recipe])
    return dict(sorted(groups.items()))


def by_recipe(panel: Panel) -> dict[tuple[str, tuple[str, ...], int, int, int], int]:
    """Rows of a panel's merges by method, experts in order, training run, draw and repetition.

    A draw is told by its seed, counted from the panel's first, so that one without a result does not shift the others.
    """
    seeds = {m: panel.rows[m].provenance.get("seed") for m in panel.merges}
    first = min((seed for seed in seeds.values() if seed is not None), default=0)
    seen: Counter[tuple[str, tuple[str, ...], int, int]] = Counter()
    found = {}
    for m, seed in seeds.items():
        row = panel.rows[m]
        recipe = (row.method or "?", row.experts, row.run, 0 if seed is None else seed - first)
        found[(*recipe, seen[recipe])] = m
        seen[recipe] += 1
    return found


def _compare(a: Panel, b: Panel) -> list[ComparisonRow]:
    """All matched merges together, then the experts, then every method at every size; corrected but the first.

    The orders and draws of one subset count once.
    """
    rows: list[ComparisonRow] = []
    both = [name for name in a.experts if name in b.experts]
    if both:
        match = [a.experts[n] for n in both], [b.experts[n] for n in both]
        rows += _own_skill(a, b, both)
        alike = np.full(len(both), 1 / len(both))
        rows.append(_line(a, b, "experts", "", 1, match, alike, _gaps(a, b, match, _runs(a, len(both)))))
    draws, weights, counts = [], [], []
    matches = _matches(a, b)
    for (method, size), match in matches.items():
        draws.append(_gaps(a, b, match, a.cluster(match[0])))
        weights.append(a.alike(match[0]))
        counts.append(len({*a.subsets(match[0])}))
        rows.append(_line(a, b, "merges", method, size, match, weights[-1], draws[-1]))
    _correct(rows)
    if len(matches) > 1:
        every = [m for mine, _ in matches.values() for m in mine], [m for _, t in matches.values() for m in t]
        share = np.array(counts) / sum(counts)
        alike = np.concatenate([part * own for part, own in zip(share, weights)])
        rows.insert(0, _line(a, b, OVERALL, "", 0, every, alike, share @ np.array(draws)))
    return rows


def _gaps(a: Panel, b: Panel, match: Match, weights: NDArray) -> NDArray:
    """Replicates `[B]` of the mean difference; the draw of subsets, or of training runs, is resampled too."""
    return ((b.replicates[match[1]] - a.replicates[match[0]]) * weights).sum(axis=0)


def _line(
    a: Panel, b: Panel, what: str, method: str, size: int, match: Match, weights: NDArray, draws: NDArray
) -> ComparisonRow:
    mine, theirs = match
    before, after = float(weights @ a.scores[mine]), float(weights @ b.scores[theirs])
    difference = a.interval(after - before, draws, a.differing(mine, theirs, b))
    return ComparisonRow(a.title, b.title, what, method, size, len(mine), before, after, difference)


def _runs(a: Panel, experts: int) -> NDArray:
    """Weights `[experts, B]` that resample experts as draws from endlessly many training runs."""
    return cluster_weights(experts, resamples=a.statistics.resamples, seed=a.statistics.seed)


def _own_skill(a: Panel, b: Panel, names: list[tuple[str, int]]) -> list[ComparisonRow]:
    """Experts on the task of their own name, averaged over experts, which are resampled too."""
    shared = [n for n in names if n[0] in a.samples.documents and n[0] in b.samples.documents]
    if not shared:
        return []
    draw = a.statistics
    pairs = [(a.samples.documents[n[0]][a.experts[n]], b.samples.documents[n[0]][b.experts[n]]) for n in shared]
    gaps = np.array([
        task_replicates((after - before)[None], resamples=draw.resamples, seed=draw.seed, task=task)[0]
        for (task, _), (before, after) in zip(shared, pairs)
    ])  # fmt: skip
    low, high = (float(np.mean([values.mean() for values in side])) for side in zip(*pairs))
    differing = sum(int((after != before).sum()) for before, after in pairs)
    difference = a.interval(high - low, (gaps * _runs(a, len(shared))).sum(axis=0), differing)
    return [ComparisonRow(a.title, b.title, "own skill", "", 1, len(shared), low, high, difference)]
