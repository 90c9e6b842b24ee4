"""Tables as CSV for machines and Markdown for people."""

from __future__ import annotations

import csv
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from mergeopt_core.statistics import Interval
from pipelines.report import words
from pipelines.report.analysis import ExpertRow, InterferenceRow, LeaderRow
from pipelines.report.compare import OVERALL, ComparisonRow, RobustnessRow

Column = tuple[str, Callable[[Any], str]]
"""A heading, and what stands below it for a row."""


def _of(merges: int, planned: int) -> str:
    return str(merges) if merges == planned else f"{merges} of {planned}"


LEADERBOARD: list[Column] = [
    ("pool", lambda r: r.panel),
    ("method", lambda r: r.method),
    ("experts", lambda r: str(r.experts) if r.kind == "merge" else words.UNKNOWN),
    ("merges", lambda r: _of(r.merges, r.planned) if r.kind == "merge" else words.UNKNOWN),
    ("score", lambda r: words.score(r.score)),
    ("Δ base", lambda r: words.gap(r.to_base)),
    ("Δ best expert", lambda r: words.gap(r.to_best)),
    ("above base", lambda r: words.UNKNOWN if r.above_base is None else f"{r.above_base.k}/{r.above_base.n}"),
    ("constructive", lambda r: words.tally(r.constructive)),
    ("beyond noise", lambda r: words.UNKNOWN if r.significant is None else str(r.significant)),
]
EXPERTS: list[Column] = [
    ("pool", lambda r: r.panel),
    ("expert", lambda r: r.expert),
    ("own skill", lambda r: words.score(r.own)),
    ("base on it", lambda r: words.score(r.base)),
    ("Δ", lambda r: words.gap(r.gain)),
    ("whole suite", lambda r: words.score(r.suite)),
]
INTERFERENCE: list[Column] = [
    ("pool", lambda r: r.panel),
    ("method", lambda r: r.method),
    ("experts", lambda r: str(r.experts)),
    ("merges", lambda r: str(r.merges)),
    ("share of own-skill gain kept", lambda r: words.score(r.kept, 2)),
    ("mean of single shares", lambda r: words.number(r.kept_each, 2)),
]
COMPARISONS: list[Column] = [
    ("reference", lambda r: r.reference),
    ("other", lambda r: r.other),
    ("what", lambda r: r.what),
    ("method", lambda r: r.method or words.UNKNOWN),
    ("experts", lambda r: str(r.experts or words.UNKNOWN)),
    ("matched", lambda r: str(r.matched)),
    ("reference score", lambda r: words.number(r.reference_score)),
    ("other score", lambda r: words.number(r.other_score)),
    ("difference", lambda r: words.gap(r.difference)),
    ("p (Holm)", lambda r: words.p_value(r.p_holm)),
]
ROBUSTNESS: list[Column] = [
    ("pool", lambda r: r.panel),
    ("attack", lambda r: r.attack),
    ("method", lambda r: r.method),
    ("experts", lambda r: str(r.experts)),
    ("models", lambda r: str(r.matched)),
    ("clean", lambda r: words.number(r.clean)),
    ("attacked", lambda r: words.number(r.attacked)),
    ("PDR", lambda r: words.score(r.pdr)),
]
__all__ = ["OVERALL", "columns", "flat", "markdown", "write_csv"]
DIFFERENCES = {"to_base", "to_best", "gain", "difference"}
"""Fields that have a p-value."""
COLUMNS: dict[type, list[Column]] = {
    LeaderRow: LEADERBOARD,
    ExpertRow: EXPERTS,
    InterferenceRow: INTERFERENCE,
    ComparisonRow: COMPARISONS,
    RobustnessRow: ROBUSTNESS,
}


def columns(rows: Sequence[Any]) -> list[Column]:
    """The columns that people are shown for rows of this kind; the pool only where there are several."""
    if not rows:
        return []
    found = COLUMNS[type(rows[0])]
    if found[0][0] == "pool" and len({r.panel for r in rows}) == 1:
        found = found[1:]
    return found


def markdown(rows: Sequence[Any]) -> str:
    """The rows as a Markdown table."""
    shown = columns(rows)
    lines = ["| " + " | ".join(name for name, _ in shown) + " |", "|" + "---|" * len(shown)]
    for row in rows:
        lines.append("| " + " | ".join(cell(row).replace("|", "\\|") for _, cell in shown) + " |")
    return "\n".join(lines) + "\n"


def flat(row: Any) -> dict[str, Any]:
    """A row as plain columns: an interval is its estimate, `_low`, `_high` and `_p`, a tally `_k`, `_n` and bounds."""
    values: dict[str, Any] = {}
    for item in fields(row):
        value, name = getattr(row, item.name), item.name
        if "Interval" in str(item.type):
            interval = value or Interval(math.nan, math.nan, math.nan)
            values |= {name: interval.estimate, f"{name}_low": interval.low, f"{name}_high": interval.high}
            values |= {f"{name}_p": interval.p} if name in DIFFERENCES else {}
        elif "Tally" in str(item.type):
            share = value.share if value else Interval(math.nan, math.nan, math.nan)
            values |= {f"{name}_k": value and value.k, f"{name}_n": value and value.n}
            values |= {f"{name}_low": share.low, f"{name}_high": share.high}
        else:
            values[name] = value
    return values


def write_csv(path: Path, rows: Iterable[dict[str, Any]]) -> Path:
    """Write the rows; columns in the order in which they first appear, empty where a value is not known."""
    rows = list(rows)
    names = list(dict.fromkeys(name for row in rows for name in row))
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(names)
        writer.writerows([_plain(row.get(name)) for name in names] for row in rows)
    return path


def _plain(value: Any) -> Any:
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    if isinstance(value, bool):
        return int(value)
    return f"{value:.6g}" if isinstance(value, float) else value
