"""What the numbers say, in sentences that do not say more than the numbers."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from mergeopt_core.statistics import Interval, leads
from pipelines.report import words
from pipelines.report.analysis import Cell, InterferenceRow, MergeStanding
from pipelines.report.panel import Panel


@dataclass
class Verdict:
    """What is to be said of one panel."""

    panel: str
    headline: list[str]
    """The winner, and how sure that is."""
    details: list[str]
    """The rest of the field, single merges, harm, skills."""


def judge(panel: Panel, cells: list[Cell], standings: dict[int, MergeStanding], kept: list[InterferenceRow]) -> Verdict:
    """Put a panel's numbers into sentences.

    Args:
        panel: the trials.
        cells: its leaderboard.
        standings: its merges against their base and experts.
        kept: shares of own-skill gain kept.
    """
    merged = [c for c in cells if c.row.kind == "merge"]
    if not merged:
        return Verdict(panel.title, ["No merge has been scored."], [line for line in [_skills(panel)] if line])
    winner = merged[0]
    headline = winners(panel, merged)
    details = [*_sizes(panel, merged), _best_merge(panel, standings), _harm(merged), _skills(panel)]
    details.append(_kept(kept, winner.row.method))
    return Verdict(panel.title, [line for line in headline if line], [line for line in details if line])


def _name(cell: Cell) -> str:
    return f"{cell.row.method} over {words.experts(cell.row.experts)}"


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
    winner = merged[0]
    return [_winner(winner, len(merged), several), _lead(panel, winner, merged, several)]


def _winner(cell: Cell, count: int, several: bool) -> str:
    row = cell.row
    best = "the best of its own experts" if row.merges == 1 else "the best of each merge's own experts"
    name = f"{_name(cell)} of {row.panel}" if several else _name(cell)
    rank = f", the highest of {count} {'pool, ' * several}method-and-size means" if count > 1 else ""
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


def _lead(panel: Panel, winner: Cell, merged: list[Cell], several: bool) -> str:
    rivals = [
        (f"{c.row.method} of {c.row.panel}" if several else c.row.method, c.row.score.estimate, lead)
        for c, lead in _rivals(panel, winner, merged)
    ]
    if not rivals:
        return ""
    what = f"At {words.experts(winner.row.experts)} its lead"
    return f"{what} {lead_over(rivals, panel.statistics.confidence)}."


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


def _sizes(panel: Panel, merged: list[Cell]) -> list[str]:
    """The best method at each other number of experts."""
    parts = []
    for size in sorted({c.row.experts for c in merged} - {merged[0].row.experts}):
        best = next(c for c in merged if c.row.experts == size)
        rivals = [(c.row.method, c.row.score.estimate, lead) for c, lead in _rivals(panel, best, merged)]
        level = _level(rivals, panel.statistics.confidence)
        note = f", level with {words.listed(level, 3)}" if level else ""
        parts.append(f"{words.experts(size)}: {best.row.method} {words.score(best.row.score)}{note}")
    return [f"Best at other sizes: {'; '.join(parts)}."] if parts else []


def _best_merge(panel: Panel, standings: dict[int, MergeStanding]) -> str:
    if len(panel.merges) < 2:
        return ""
    best = max(panel.merges, key=lambda m: panel.scores[m])
    row, standing = panel.rows[best], standings[best]
    made_of = words.listed(list(row.experts), 4)
    line = f"The best single merge is {row.method} over {made_of}: "
    line += words.score(panel.interval(panel.scores[best], panel.replicates[best]))
    line += f" (the highest of {len(panel.merges)}, so flattered by the choice)"
    if standing.standing is not None and standing.standing.constructive:
        sure = standing.p < 1 - panel.statistics.confidence
        line += "; it beats its base and experts " + ("beyond noise" if sure else "by no more than noise")
    return line + "."


def _harm(merged: list[Cell]) -> str:
    harmed = [c for c in merged if words.direction(c.row.to_base) < 0]
    if not harmed:
        return ""
    shown = [f"{_name(c)} ({words.signed(c.row.to_base.estimate)})" for c in reversed(harmed) if c.row.to_base]
    return f"Below the base beyond noise: {words.listed(shown, 4)}."


def _skills(panel: Panel) -> str:
    if not panel.skills:
        return ""
    sure = [s for s in panel.skills if s.gain.low > 0]
    mean = float(np.mean([s.gain.estimate for s in panel.skills]))
    line = f"{len(sure)} of {len(panel.skills)} experts beat the base on their own skill beyond noise"
    return f"{line} (mean gain {words.signed(mean)})."


def _kept(kept: list[InterferenceRow], method: str) -> str:
    rows = sorted((r for r in kept if r.method == method), key=lambda r: r.experts)
    if not rows:
        return ""
    steps = ", ".join(f"{words.score(r.kept, 2)} at {r.experts}" for r in rows)
    return f"Share of the experts' own-skill gain that {method} keeps: {steps} experts."
