"""What the numbers say, in sentences that do not say more than the numbers."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from mergeopt_core.statistics import Interval, difference_p, holm
from pipelines.report import words
from pipelines.report.leaderboard import Cell, MergeStanding
from pipelines.report.panel import Panel
from pipelines.report.skills import InterferenceRow


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
    headline = [_winner(winner, len(merged)), _lead(panel, winner, merged)]
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


def _winner(cell: Cell, count: int) -> str:
    row = cell.row
    best = "the best of its own experts" if row.merges == 1 else "the best of each merge's own experts"
    rank = f", the highest of {count} method-and-size means" if count > 1 else ""
    sentence = f"{_name(cell)} scores {words.score(row.score)}{rank}. "
    sentence += f"It {_against(row.to_base, 'the base')} and {_against(row.to_best, best)}."
    if row.constructive is not None:
        sure = f", {row.significant} beyond noise" if row.constructive.k else ""
        sentence += f" Constructive (above base and all own experts): {row.constructive.k}/{row.constructive.n}{sure}."
    return sentence


def _rivals(panel: Panel, winner: Cell, merged: list[Cell]) -> list[tuple[Cell, Interval]]:
    """Other methods at the winner's size with the winner's lead over each; p-values Holm-corrected."""
    others = [c for c in merged if c.row.experts == winner.row.experts and c.row.method != winner.row.method]
    leads = []
    for other in others:
        lead = winner.row.score.estimate - other.row.score.estimate
        draws = winner.replicates - other.replicates
        p = difference_p(lead, draws, max(panel.documents, 1))
        leads.append(panel.interval(lead, draws) if np.isnan(p) else _with_p(panel.interval(lead, draws), p))
    known = [i for i, lead in enumerate(leads) if lead.p is not None]
    for i, p in zip(known, holm(np.array([leads[i].p for i in known]))):
        leads[i] = _with_p(leads[i], float(p))
    return list(zip(others, leads))


def _with_p(interval: Interval, p: float) -> Interval:
    return Interval(interval.estimate, interval.low, interval.high, p)


def _lead(panel: Panel, winner: Cell, merged: list[Cell]) -> str:
    rivals = _rivals(panel, winner, merged)
    if not rivals:
        return ""
    runner, lead = rivals[0]
    start = f"At {words.experts(winner.row.experts)} its lead over the runner-up {runner.row.method} "
    start += f"({words.number(runner.row.score.estimate)}) is {words.gap(lead)}: "
    if lead.p is None:
        return start + "without per-document scores its noise is not known."
    level_with = _level_with(panel, rivals)
    if not level_with:
        return start + f"beyond noise, as over every other method (Holm-corrected, {len(rivals)} compared)."
    if runner.row.method not in level_with:
        return start + f"beyond noise; not told apart from it: {words.listed(level_with)}."
    return start + f"inside the noise. Level with the winner: {words.listed(level_with)}."


def _sizes(panel: Panel, merged: list[Cell]) -> list[str]:
    """The best method at each other number of experts."""
    parts = []
    for size in sorted({c.row.experts for c in merged} - {merged[0].row.experts}):
        best = next(c for c in merged if c.row.experts == size)
        level = _level_with(panel, _rivals(panel, best, merged))
        note = f", level with {words.listed(level, 3)}" if level else ""
        parts.append(f"{words.experts(size)}: {best.row.method} {words.score(best.row.score)}{note}")
    return [f"Best at other sizes: {'; '.join(parts)}."] if parts else []


def _level_with(panel: Panel, rivals: list[tuple[Cell, Interval]]) -> list[str]:
    """Methods that the best one cannot be told from."""
    level = 1 - panel.statistics.confidence
    return [c.row.method for c, lead in rivals if lead.p is not None and lead.p >= level]


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
