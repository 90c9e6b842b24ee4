"""What a report holds: its tables, with the columns that people are shown, and how they are written."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import pandas as pd

from conf.errors import markdown_text
from conf.schema import Statistics
from mergeopt_core.statistics import Interval
from pipelines.report import words
from pipelines.report.analysis import LeaderRow
from pipelines.report.compare import ComparisonRow
from pipelines.report.grids import Grid
from pipelines.report.series import Series

Column = tuple[str, Callable[[Any], Any]]
"""A heading, and what stands below it for a row."""


@dataclass
class Section:
    """What was made beside a report and is shown in it as it is."""

    title: str
    tables: dict[str, pd.DataFrame] = field(default_factory=dict)
    """By file, a path from the report's folder."""
    figures: dict[str, str] = field(default_factory=dict)
    """Titles by file without its ending."""
    notes: list[str] = field(default_factory=list)


@dataclass
class Report:
    """What a study found, and the files that tell it."""

    title: str
    out: Path
    statistics: Statistics
    leaderboard: list[LeaderRow] = field(default_factory=list)
    comparisons: list[ComparisonRow] = field(default_factory=list)
    trials: list[dict[str, Any]] = field(default_factory=list)
    verdicts: list[str] = field(default_factory=list)
    """Plain sentences: the winner of each pool and how sure that is, then how the pools compare."""
    details: dict[str, list[str]] = field(default_factory=dict)
    """Further sentences by pool."""
    scored: int = 0
    """Models that have a score on every task."""
    planned: int = 0
    """Models of the study; more than are scored where it was stopped, or a part of it failed."""
    settings: dict[str, dict[str, Any]] = field(default_factory=dict)
    """By pool, how its results came about: base, training, seeds, evaluation settings, machine."""
    left_out: list[str] = field(default_factory=list)
    """What was asked for and did not run or is told elsewhere, and why."""
    notes: list[str] = field(default_factory=list)
    """What a reader must know about how the numbers were made."""
    facts: list[tuple[str, list[str]]] = field(default_factory=list)
    """What was scored: headings with their lines."""
    samples: dict[str, str] = field(default_factory=dict)
    """By a trial's key, the file beside the page (a relative path) that holds its documents: its score links there."""
    grids: dict[str, Grid] = field(default_factory=dict)
    """Tables that the study declares, and those that every report has, by name."""
    declared: list[str] = field(default_factory=list)
    """Names of the tables that the study declares: the terminal shows these."""
    series: dict[str, Series] = field(default_factory=dict)
    """Data of the figures that it declares, by name."""
    sections: list[Section] = field(default_factory=list)
    """What else is shown, such as the geometry of each pool."""
    paths: dict[str, Path] = field(default_factory=dict)
    """Files by name: leaderboard.csv, report.html, tables/accuracy.tex, …"""

    @property
    def partial(self) -> str:
        """That results are missing, and how many; nothing where the study is complete."""
        if self.scored == self.planned:
            return ""
        return f"Partial: {self.scored} of {self.planned} trials have a result; the same command goes on."

    def to_dict(self) -> dict[str, Any]:
        """The report as plain JSON values; numbers that are not known are None."""
        views = {
            "grids": {name: grid.flat() for name, grid in self.grids.items()},
            "series": {name: series.frame.to_dict("records") for name, series in self.series.items()},
            "sections": [{**vars(s), "tables": {n: t.to_dict("records") for n, t in s.tables.items()}}
                         for s in self.sections],
        }  # fmt: skip
        return _json(asdict(replace(self, grids={}, series={}, sections=[])) | views | {"partial": bool(self.partial)})


def _json(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(k): _json(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_json(v) for v in value]
    if isinstance(value, Path):
        return str(value)
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _merge(r: LeaderRow, text: str) -> str:
    return text if r.kind == "merge" else words.UNKNOWN


def _known(value: Any, text: Callable[[Any], str] = str) -> str:
    return words.UNKNOWN if value is None else text(value)


COLUMNS: dict[type, list[Column]] = {
    LeaderRow: [
        ("pool", lambda r: r.panel),
        ("method", lambda r: r.method),
        ("experts", lambda r: _merge(r, str(r.experts))),
        ("merges", lambda r: _merge(r, f"{r.merges}" + f" of {r.planned}" * (r.merges != r.planned))),
        ("score", lambda r: words.score(r.score)),
        ("Δ base", lambda r: words.gap(r.to_base)),
        ("Δ best expert", lambda r: words.gap(r.to_best)),
        ("above base", lambda r: _known(r.above_base, lambda t: f"{t.k}/{t.n}")),
        ("constructive", lambda r: words.tally(r.constructive)),
        ("beyond noise", lambda r: _known(r.significant)),
    ],
    ComparisonRow: [
        ("reference", lambda r: r.reference),
        ("other", lambda r: r.other),
        ("what", lambda r: r.what),
        ("method", lambda r: r.method or words.UNKNOWN),
        ("experts", lambda r: r.experts or words.UNKNOWN),
        ("matched", lambda r: r.matched),
        ("reference score", lambda r: words.number(r.reference_score)),
        ("other score", lambda r: words.number(r.other_score)),
        ("difference", lambda r: words.gap(r.difference)),
        ("p (Holm)", lambda r: words.p_value(r.p_holm)),
    ],
}
DIFFERENCES = {"Δ base": "to_base", "Δ best expert": "to_best", "difference": "difference"}
"""Headings of differences and their fields, which have a p-value."""


def columns(rows: Sequence[Any]) -> list[Column]:
    """The columns that people are shown for rows of this kind; the pool only where there are several."""
    found = COLUMNS[type(rows[0])]
    if found[0][0] == "pool" and len({r.panel for r in rows}) == 1:
        found = found[1:]
    return found


def markdown(rows: Sequence[Any]) -> str:
    """The rows as a Markdown table."""
    shown = columns(rows)
    lines = [[name for name, _ in shown], *([markdown_text(cell(row)) for _, cell in shown] for row in rows)]
    head, *body = ("| " + " | ".join(line) + " |" for line in lines)
    return "\n".join([head, "|" + "---|" * len(shown), *body]) + "\n"


def flat(row: Any) -> dict[str, Any]:
    """A row as plain columns: an interval is its estimate, `_low`, `_high` and `_p`, a tally `_k`, `_n` and bounds."""
    values: dict[str, Any] = {}
    unknown = Interval(math.nan, math.nan, math.nan)
    for item in fields(row):
        value, name = getattr(row, item.name), item.name
        if "Interval" in str(item.type):
            interval = value or unknown
            values |= {name: interval.estimate, f"{name}_low": interval.low, f"{name}_high": interval.high}
            values |= {f"{name}_p": interval.p} if name in DIFFERENCES.values() else {}
        elif "Tally" in str(item.type):
            share = value.share if value else unknown
            values |= {f"{name}_k": value and value.k, f"{name}_n": value and value.n}
            values |= {f"{name}_low": share.low, f"{name}_high": share.high}
        else:
            values[name] = value
    return values


def write_csv(path: Path, rows: Sequence[dict[str, Any]]) -> Path:
    """Write the rows; columns in the order in which they first appear, empty where a value is not known."""
    return write_frame(path, pd.DataFrame(rows, dtype=object))


def write_frame(path: Path, frame: pd.DataFrame) -> Path:
    """Write a frame as CSV with six significant digits, empty where a value is not known."""
    frame.map(_plain).to_csv(path, index=False, lineterminator="\n", encoding="utf-8")
    return path


def _plain(value: Any) -> str:
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    return f"{value:.6g}" if isinstance(value, (float, bool)) else str(value)


def write_parquet(path: Path, frame: pd.DataFrame) -> Path:
    """Write a tidy table; columns of several kinds of values become text."""
    mixed = [name for name in frame if frame[name].dtype == object
             and len({str if isinstance(v, str) else type(v) for v in frame[name] if not pd.isna(v)}) > 1]  # fmt: skip
    told = {str(name): frame[name].map(str, na_action="ignore") for name in mixed}
    frame.assign(**told).to_parquet(path, index=False)
    return path
