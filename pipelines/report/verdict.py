"""What the numbers say, in sentences that do not say more than the numbers: of a panel, of two, and of all of them."""

from __future__ import annotations

from collections import defaultdict

import numpy as np
from numpy.typing import NDArray

from mergeopt_core.statistics import Interval, leads
from pipelines.report import words
from pipelines.report.analysis import Cell, MergeStanding, share_kept
from pipelines.report.compare import OVERALL, ComparisonRow, by_recipe, comparable, same_documents
from pipelines.report.panel import Panel

NO_MERGE = "No merge has been scored."
Scored = tuple[str, float, NDArray]
"""A name, its mean score and the replicates of that `[B]`."""


def judge(panel: Panel, cells: list[Cell], standings: dict[int, MergeStanding], winner: bool) -> list[str]:
    """Put a panel's numbers into sentences.

    Args:
        panel: the trials.
        cells: its leaderboard.
        standings: its merges against their base and experts.
        winner: begin with the best method; otherwise only the rest of the field, single merges, harm and skills.
    """
    merged = [c for c in cells if c.row.kind == "merge"]
    if not merged:
        lines = [NO_MERGE if winner else "", _skills(panel)]
    else:
        lines = winners(panel, merged) if winner else []
        lines += [_sizes(panel, merged), _best_merge(panel, standings), _harm(merged), _skills(panel)]
        lines.append(_kept(panel, merged[0].row.method))
    return [line for line in lines if line]


def _name(cell: Cell) -> str:
    return f"{cell.row.method} over {words.count(cell.row.experts, 'expert')}"


def _against(interval: Interval | None, rival: str) -> str:
    if interval is None:
        return f"was not compared with {rival}, which was not scored"
    sense, seen = words.direction(interval), words.gap(interval)
    if sense == 0 and not interval.known:
        return f"differs from {rival} by {seen}, without an interval"
    if sense == 0:
        return f"cannot be told from {rival} ({seen}, inside the noise)"
    return f"{'beats' if sense > 0 else 'falls short of'} {rival} by {seen}"


def winners(panel: Panel, merged: list[Cell]) -> list[str]:
    """The highest of the cells, of one panel or of several, and its lead over the others of its size."""
    several = len({cell.row.panel for cell in merged}) > 1
    best = merged[0]
    rivals = [
        (f"{c.row.method} of {c.row.panel}" if several else c.row.method, c.row.score.estimate, lead)
        for c, lead in _rivals(panel, best, merged)
    ]
    what = f"At {words.count(best.row.experts, 'expert')} its lead"
    lead = f"{what} {lead_over(rivals, panel.statistics.confidence)}." if rivals else ""
    return [_winner(best, len(merged), several), lead]


def _winner(cell: Cell, count: int, several: bool) -> str:
    row = cell.row
    best = "the best of its own experts" if row.merges == 1 else "the best of each merge's own experts"
    name = f"{_name(cell)} of {row.panel}" if several else _name(cell)
    by = f"{'pool, method' if several else 'method'} and number of experts"
    rank = f", the highest mean of {count} combinations of {by}" if count > 1 else ""
    sentence = f"{name} scores {words.score(row.score)}{rank}. "
    sentence += f"It {_against(row.to_base, 'the base')} and {_against(row.to_best, best)}."
    if row.constructive is not None:
        sure = f", {row.significant} beyond noise" if row.constructive.k else ""
        sentence += f" Constructive (above base and all own experts): {row.constructive.k}/{row.constructive.n}{sure}."
    return sentence


def _rivals(panel: Panel, winner: Cell, merged: list[Cell]) -> list[tuple[Cell, Interval]]:
    """The other cells of the winner's size, the highest first, with the winner's lead over each."""
    cells = [c for c in merged if c.row.experts == winner.row.experts]
    scores = [c.row.score.estimate for c in cells]
    _, found = leads(scores, np.array([c.replicates for c in cells]), panel.documents, panel.statistics.confidence)
    return list(zip(cells, found))[1:]


def lead_over(rivals: list[tuple[str, float, Interval]], confidence: float) -> str:
    """How far the best is ahead of others (name, score, lead), the highest first, and whether beyond noise."""
    name, score, lead = rivals[0]
    start = f"over the runner-up {name} ({words.number(score)}) is {words.gap(lead)}: "
    if lead.p is None:
        return start + "without per-document scores its noise is not known"
    level = _level(rivals, confidence)
    pairs = len(rivals) * (len(rivals) + 1) // 2
    corrected = f" (Holm-corrected over {pairs} pairs)" if pairs > 1 else ""
    if not level:
        return start + f"beyond noise{', as over every other' * (len(rivals) > 1)}{corrected}"
    if name not in level:
        return start + f"beyond noise; not told apart from it: {words.listed(level)}{corrected}"
    return start + f"inside the noise. Level with the best: {words.listed(level)}{corrected}"


def _level(rivals: list[tuple[str, float, Interval]], confidence: float) -> list[str]:
    """Those that the best one cannot be told from."""
    return [name for name, _, lead in rivals if lead.p is not None and lead.p >= 1 - confidence]


def _sizes(panel: Panel, merged: list[Cell]) -> str:
    """The best method at each other number of experts."""
    parts = []
    for size in sorted({c.row.experts for c in merged} - {merged[0].row.experts}):
        best = next(c for c in merged if c.row.experts == size)
        rivals = [(c.row.method, c.row.score.estimate, lead) for c, lead in _rivals(panel, best, merged)]
        level = _level(rivals, panel.statistics.confidence)
        note = f", level with {words.listed(level, 3)}" if level else ""
        parts.append(f"{words.count(size, 'expert')}: {best.row.method} {words.score(best.row.score)}{note}")
    return f"Best at other sizes: {'; '.join(parts)}." if parts else ""


def _best_merge(panel: Panel, standings: dict[int, MergeStanding]) -> str:
    if len(panel.merges) < 2:
        return ""
    best = max(panel.merges, key=lambda m: panel.scores[m])
    row = panel.rows[best]
    line = f"The best single merge is {row.method} over {words.listed(list(row.experts), 4)}: "
    line += words.score(panel.interval(panel.scores[best], panel.replicates[best]))
    line += f" (the highest of {len(panel.merges)}, so flattered by the choice)"
    if best in standings and standings[best].standing.constructive:
        sure = standings[best].p < 1 - panel.statistics.confidence
        line += "; it beats its base and experts " + ("beyond noise" if sure else "by no more than noise")
    return line + "."


def _harm(merged: list[Cell]) -> str:
    harmed = [c for c in reversed(merged) if words.direction(c.row.to_base) < 0]
    shown = [f"{_name(c)} ({words.signed(c.row.to_base.estimate)})" for c in harmed if c.row.to_base]
    return f"Below the base beyond noise: {words.listed(shown, 4)}." if shown else ""


def _skills(panel: Panel) -> str:
    if not panel.skills:
        return ""
    sure = [s for s in panel.skills if s.gain.low > 0]
    mean = float(np.mean([s.gain.estimate for s in panel.skills]))
    line = f"{len(sure)} of {len(panel.skills)} experts beat the base on their own skill beyond noise"
    return f"{line} (mean gain {words.signed(mean)})."


def _kept(panel: Panel, method: str) -> str:
    steps = ", ".join(f"{words.score(share, 2)} at {size}" for size, share in share_kept(panel, method))
    return f"Share of the experts' own-skill gain that {method} keeps: {steps} experts." if steps else ""


def comparison_verdicts(rows: list[ComparisonRow], confidence: float) -> list[str]:
    """One sentence for each pair of panels: where the other is higher, lower, or cannot be told apart."""
    lines = []
    for reference, other in dict.fromkeys((r.reference, r.other) for r in rows if r.main):
        parts = []
        sides: dict[int, list[str]] = {1: [], -1: [], 0: []}
        for r in (r for r in rows if (r.reference, r.other) == (reference, other)):
            sure = r.p_holm < 1 - confidence
            if r.what == OVERALL:
                noise = f"({'beyond' if sure else 'inside the'} noise)"
                parts.append(f"{words.gap(r.difference)} over all {r.matched} matched merges {noise}")
                continue
            where = f"{r.method} over {words.count(r.experts, 'expert')}" if r.what == "merges" else r.what
            side = words.direction(r.difference) if sure else 0
            sides[side].append(f"{where} ({words.signed(r.difference.estimate)})")
        parts += [f"higher in {words.listed(sides[1], 4)}"] if sides[1] else []
        parts += [f"lower in {words.listed(sides[-1], 4)}"] if sides[-1] else []
        count = sum(map(len, sides.values()))
        parts += [f"inside the noise in {len(sides[0])} of {count} comparisons (Holm-corrected)"] if sides[0] else []
        lines.append(f"{other} against {reference}: {'; '.join(parts)}.")
    return lines


def overall_verdicts(panels: list[Panel], cells: list[list[Cell]]) -> list[str]:
    """The best of all, the best training and the best merging: one set of sentences for pools that can be compared."""
    families: list[list[int]] = []
    for i, panel in enumerate(panels):
        for family in families:
            first = panels[family[0]]
            if comparable(first, panel) and same_documents(first, panel):
                family.append(i)
                break
        else:
            families.append([i])
    lines = []
    for family in families:
        own = [panels[i] for i in family]
        merged = [cell for i in family for cell in cells[i] if cell.row.kind == "merge"]
        found = [NO_MERGE]
        if merged:
            found = winners(own[0], sorted(merged, key=lambda c: -c.row.score.estimate))
            found += [_best_training(own), _best_merging(own)]
        prefix = f"{words.listed([p.title for p in own])}: " if len(families) > 1 else ""
        lines += [prefix + line for line in found if line]
    return lines


def _best_training(panels: list[Panel]) -> str:
    """The pool with the highest mean over the merges that all pools have."""
    recipes = [by_recipe(panel) for panel in panels]
    common = [recipe for recipe in recipes[0] if all(recipe in other for other in recipes)]
    if len(panels) < 2 or not common:
        return ""
    scored = [(panel.title, *_mean([(panel, [own[r] for r in common])])) for panel, own in zip(panels, recipes)]
    known = [panel.provenance.get("training") for panel in panels]
    apart = None not in known and len(set(known)) == len(known)
    line = _best(panels[0], "Training" if apart else "Pools", scored, f"the {len(common)} merges that every pool has")
    times = len({row.run for panel in panels for row in panel.rows if row.kind == "merge"})
    trained = "Each expert was trained once" if times == 1 else f"Experts were trained {times} times, none drawn anew"
    return f"{line} {trained}: the luck of a training is not in the interval."


def _best_merging(panels: list[Panel]) -> str:
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
    number = f"{len(common)} {'subset' if len(common) == 1 else 'subsets'}"
    line = _best(panels[0], "Merging", scored, f"the {number}{across} that every method merged")
    left = [name for name in merged if name not in compared]
    return line + (f" Not compared, as they merged fewer: {words.listed(left)}." if left else "")


def _mean(parts: list[tuple[Panel, list[int]]]) -> tuple[float, NDArray]:
    """Mean over merges of panels, each subset alike, with its replicates; subsets of each size are resampled."""
    cells = [(panel, own) for panel, rows in parts for own in panel.cells(rows).values()]
    counts = [len({*panel.subsets(own)}) for panel, own in cells]
    point, draws = 0.0, np.zeros(parts[0][0].statistics.resamples)
    for (panel, own), count in zip(cells, counts):
        share = count / sum(counts)
        point += share * float(panel.alike(own) @ panel.scores[own])
        draws += share * (panel.replicates[own] * panel.cluster(own)).sum(axis=0)
    return point, draws


def _best(panel: Panel, what: str, scored: list[Scored], over: str) -> str:
    """The best of those scored, and whether it leads."""
    names, points, draws = zip(*sorted(scored, key=lambda one: -one[1]))
    confidence = panel.statistics.confidence
    _, found = leads(points, np.array(draws), panel.documents, confidence)
    best = words.score(panel.interval(points[0], draws[0]))
    lead = lead_over(list(zip(names, points, found))[1:], confidence)
    return f"{what}: {names[0]} is highest, {best} over {over}. Its lead {lead}."
