"""The same subsets and methods in two pools (or studies), and the same models with and without an attack."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from mergeopt_core.statistics import (
    Interval,
    cluster_weights,
    holm,
    percentile_interval,
    performance_drop,
    task_replicates,
)
from pipelines.report import words
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


@dataclass
class RobustnessRow:
    """Performance drop rate (clean − attacked) / clean of matched models."""

    panel: str
    attack: str
    method: str
    experts: int
    matched: int
    clean: float
    attacked: float
    pdr: Interval


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
        rows += _corrected(_compare(reference, other))
        done |= {(reference.title, other.title), (other.title, reference.title)}
    for i, other in enumerate(panels):
        for one in panels[:i]:
            if (one.title, other.title) not in done and _alike(one, other):
                rows += [replace(row, main=False) for row in _corrected(_compare(one, other)) if row.what != "merges"]
    overall = [row for row in rows if row.what == OVERALL]
    for row, p in zip(overall, holm([_known(row.difference.p) for row in overall])):
        row.p_holm = float(p)
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


def _corrected(rows: list[ComparisonRow]) -> list[ComparisonRow]:
    family = [row for row in rows if row.what != OVERALL]
    for row, p in zip(family, holm([_known(row.difference.p) for row in family])):
        row.p_holm = float(p)
    return rows


def _known(p: float | None) -> float:
    return 1.0 if p is None or np.isnan(p) else p


def comparable(a: Panel, b: Panel) -> bool:
    """Same suite, attack and base, and merges or experts that match."""
    same = (a.key.suite, a.key.attack) == (b.key.suite, b.key.attack)
    same = same and {row.base for row in a.rows} == {row.base for row in b.rows}
    return same and bool(_matches(a, b) or set(a.experts) & set(b.experts))


def same_documents(a: Panel, b: Panel) -> bool:
    """Whether two panels were scored on the same documents of the same tasks."""
    tasks = a.samples.tasks
    if sorted(tasks) != sorted(b.samples.tasks) or a.samples.ids.keys() != b.samples.ids.keys():
        return False
    return all(np.array_equal(a.samples.ids[t], b.samples.ids[t]) for t in a.samples.ids)


def _matches(a: Panel, b: Panel) -> dict[tuple[str, int], Match]:
    """Merges of the same method, experts in the same order and repetition, by (method, number of experts)."""
    there = by_recipe(b)
    groups: dict[tuple[str, int], Match] = defaultdict(lambda: ([], []))
    for recipe, row in by_recipe(a).items():
        if recipe in there:
            method, experts, _ = recipe
            mine, theirs = groups[method, len(experts)]
            mine.append(row)
            theirs.append(there[recipe])
    return dict(sorted(groups.items()))


def by_recipe(panel: Panel) -> dict[tuple[str, tuple[str, ...], int], int]:
    """Rows of a panel's merges by method, experts in order and repetition."""
    seen: dict[tuple[str, tuple[str, ...]], int] = defaultdict(int)
    found = {}
    for m in panel.merges:
        recipe = (panel.rows[m].method or "?", panel.rows[m].experts)
        found[(*recipe, seen[recipe])] = m
        seen[recipe] += 1
    return found


def _compare(a: Panel, b: Panel) -> list[ComparisonRow]:
    """All matched merges together, then the experts, then every method at every size."""
    rows: list[ComparisonRow] = []
    both = [name for name in a.experts if name in b.experts]
    if both:
        mine, theirs = [a.experts[n] for n in both], [b.experts[n] for n in both]
        rows += _own_skill(a, b, both)
        rows.append(_line(a, b, "experts", "", 1, (mine, theirs), _gaps(a, b, (mine, theirs), merges=False)))
    draws = []
    matches = _matches(a, b)
    for (method, size), match in matches.items():
        draws.append(_gaps(a, b, match, merges=True))
        rows.append(_line(a, b, "merges", method, size, match, draws[-1]))
    if len(matches) > 1:
        every: Match = ([m for mine, _ in matches.values() for m in mine], [m for _, t in matches.values() for m in t])
        share = np.array([len(mine) for mine, _ in matches.values()]) / len(every[0])
        rows.insert(0, _line(a, b, OVERALL, "", 0, every, share @ np.array(draws)))
    return rows


def _gaps(a: Panel, b: Panel, match: Match, merges: bool) -> NDArray:
    """Replicates `[B]` of the mean difference; the draw of subsets, or of training runs, is resampled too."""
    mine, theirs = match
    weights = a.cluster(mine) if merges else _runs(a, len(mine))
    return ((b.replicates[theirs] - a.replicates[mine]) * weights).sum(axis=0)


def _line(a: Panel, b: Panel, what: str, method: str, size: int, match: Match, draws: NDArray) -> ComparisonRow:
    mine, theirs = match
    before, after = float(a.scores[mine].mean()), float(b.scores[theirs].mean())
    differing = sum(
        int((b.samples.documents[t][theirs] != m[mine]).any(axis=0).sum()) for t, m in a.samples.documents.items()
    )
    difference = a.interval(after - before, draws, differing)
    return ComparisonRow(a.title, b.title, what, method, size, len(mine), before, after, difference)


def _runs(a: Panel, experts: int) -> NDArray:
    """Weights `[experts, B]` that resample experts as draws from endlessly many training runs."""
    return cluster_weights(experts, resamples=a.statistics.resamples, seed=a.statistics.seed)


def _own_skill(a: Panel, b: Panel, names: list[str]) -> list[ComparisonRow]:
    """Experts on the task of their own name, averaged over experts, which are resampled too."""
    shared = [n for n in names if n in a.samples.documents and n in b.samples.documents]
    if not shared:
        return []
    gaps, points, differing = [], [], 0
    for task in shared:
        before = a.samples.documents[task][a.experts[task]]
        after = b.samples.documents[task][b.experts[task]]
        draw = a.statistics
        gaps.append(task_replicates((after - before)[None], resamples=draw.resamples, seed=draw.seed, task=task)[0])
        points.append((before.mean(), after.mean()))
        differing += int((after != before).sum())
    low, high = (float(x) for x in np.mean(points, axis=0))
    difference = a.interval(high - low, (np.array(gaps) * _runs(a, len(shared))).sum(axis=0), differing)
    return [ComparisonRow(a.title, b.title, "own skill", "", 1, len(shared), low, high, difference)]


def robustness(panels: list[Panel]) -> list[RobustnessRow]:
    """Performance drop rate of every attacked panel against the clean panel of the same pool and documents."""
    rows = []
    for attacked in (p for p in panels if p.key.attack != "none"):
        clean = [p for p in panels if p.key.attack == "none" and p.key.pool == attacked.key.pool]
        clean = [p for p in clean if same_documents(p, attacked)]
        clean.sort(key=lambda p: (p.key.study != attacked.key.study, p.key.suite != attacked.key.suite))
        if clean:
            rows += _drops(clean[0], attacked)
    return rows


def _drops(clean: Panel, attacked: Panel) -> list[RobustnessRow]:
    groups: list[tuple[str, int, list[int], list[int]]] = []
    if clean.base is not None and attacked.base is not None:
        groups.append(("base", 0, [clean.base], [attacked.base]))
    both = [name for name in clean.experts if name in attacked.experts]
    if both:
        mine = [clean.experts[n] for n in both]
        groups.append(("mean of experts", 1, mine, [attacked.experts[n] for n in both]))
    groups += [(method, size, *match) for (method, size), match in _matches(clean, attacked).items()]
    rows = []
    for method, size, mine, theirs in groups:
        weights = clean.cluster(mine) if size > 1 else np.full((len(mine), 1), 1 / len(mine))
        draws = performance_drop(
            (clean.replicates[mine] * weights).sum(axis=0), (attacked.replicates[theirs] * weights).sum(axis=0)
        )
        before, after = float(clean.scores[mine].mean()), float(attacked.scores[theirs].mean())
        pdr = percentile_interval(float(performance_drop(before, after)), draws, clean.statistics.confidence)
        title = clean.title if clean.key.pool in clean.title else clean.key.pool
        rows.append(RobustnessRow(title, attacked.key.attack, method, size, len(mine), before, after, pdr))
    return rows


def comparison_verdicts(rows: list[ComparisonRow], confidence: float) -> list[str]:
    """One sentence for each pair of panels: where the other is higher, lower, or cannot be told apart."""
    lines = []
    for reference, other in dict.fromkeys((r.reference, r.other) for r in rows if r.main):
        pair = [r for r in rows if (r.reference, r.other) == (reference, other)]
        sides: dict[int, list[str]] = {1: [], -1: [], 0: []}
        for r in pair:
            if r.what != OVERALL:
                sure = r.p_holm < 1 - confidence
                sides[words.direction(r.difference) if sure else 0].append(_short(r))
        overall = [r for r in pair if r.what == OVERALL]
        parts = [
            f"{words.gap(r.difference)} over all {r.matched} matched merges "
            f"({'beyond' if r.p_holm < 1 - confidence else 'inside the'} noise)"
            for r in overall
        ]
        parts += [f"higher in {words.listed(sides[1], 4)}"] if sides[1] else []
        parts += [f"lower in {words.listed(sides[-1], 4)}"] if sides[-1] else []
        count = len(pair) - len(overall)
        parts += [f"inside the noise in {len(sides[0])} of {count} comparisons (Holm-corrected)"] if sides[0] else []
        lines.append(f"{other} against {reference}: {'; '.join(parts)}.")
    return lines


def _short(r: ComparisonRow) -> str:
    where = f"{r.method} over {words.experts(r.experts)}" if r.what == "merges" else r.what
    return f"{where} ({words.signed(r.difference.estimate)})"
