"""A report on a terminal: the leaderboard as a table, the verdict as lines."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from typing import TYPE_CHECKING

from rich.markup import escape
from rich.table import Table
from rich.text import Text

from pipelines.report import words

if TYPE_CHECKING:
    from pipelines.report import Interval, Report
    from pipelines.report.leaderboard import LeaderRow

STYLES = {1: "green", -1: "red", 0: ""}
WIDE = 132
"""Columns from which on intervals are written out."""


def leaderboard_table(report: Report, limit: int | None = None, width: int | None = None) -> Table:
    """The leaderboard; coloured where an interval lies on one side of zero.

    Args:
        report: what `write_report` returned.
        limit: merge lines shown a pool at most, default as many as fit a screen or two; the files have them all.
        width: columns there are, default the terminal's; below 132 an interval is shown as ± half its width.
    """
    pools = list(dict.fromkeys(row.panel for row in report.leaderboard))
    limit = limit or max(6, 40 // max(1, len(pools)))
    wide = (width or shutil.get_terminal_size().columns) >= WIDE
    table = Table(title=escape(report.title), title_justify="left", header_style="bold", box=None, pad_edge=False)
    table.add_column("method", overflow="fold")
    for name in ("experts", "merges") if wide else ("of", "n"):
        table.add_column(name, justify="right", no_wrap=True)
    for name in ("score", "Δ base", "Δ best expert" if wide else "Δ best", "constructive" if wide else "constr."):
        table.add_column(name, justify="right", no_wrap=True)
    hidden = 0
    for place, pool in enumerate(pools):
        rows = [row for row in report.leaderboard if row.panel == pool]
        if len(pools) > 1:
            table.add_row(Text(("\n" if place else "") + pool, style="bold"))
        references = [row for row in rows if row.kind != "merge"]
        merges = [row for row in rows if row.kind == "merge"]
        hidden += max(0, len(merges) - limit)
        for row in references + merges[:limit]:
            table.add_row(*_cells(row, wide), style="" if row.kind == "merge" else "dim")
    table.caption = _caption(report, wide, hidden)
    table.caption_justify = "left"
    return table


def _caption(report: Report, wide: bool, hidden: int) -> str:
    parts = [] if wide else [f"±: half the {report.statistics.confidence:.0%} interval; of: experts merged; n: merges"]
    parts += [f"{hidden} more lines in leaderboard.csv"] if hidden else []
    return "; ".join(parts)


def _cells(row: LeaderRow, wide: bool) -> list[Text]:
    merged = row.kind == "merge"
    count = words.UNKNOWN if row.constructive is None else f"{row.constructive.k}/{row.constructive.n}"
    return [
        Text(row.method),
        Text(str(row.experts) if merged else ""),
        Text(str(row.merges) if merged else ""),
        Text(words.score(row.score) if wide else _short(row.score, words.number)),
        _difference(row.to_base, wide) if row.kind != "base" else Text(""),
        _difference(row.to_best, wide) if merged else Text(""),
        Text(count if merged else ""),
    ]


def _difference(interval: Interval | None, wide: bool) -> Text:
    text = words.gap(interval) if wide or interval is None else _short(interval, words.signed)
    return Text(text, style=STYLES[words.direction(interval)])


def _short(interval: Interval, write: Callable[[float], str]) -> str:
    half = (interval.high - interval.low) / 2
    return write(interval.estimate) + (f" ±{half:.3f}".replace("0.", ".") if interval.known else "")


def verdict_lines(report: Report) -> list[Text]:
    """The verdict, the first sentence bold; of one pool the details too; and where the page is."""
    lines = [Text(line, style="bold" if i == 0 else "") for i, line in enumerate(report.verdicts)]
    if len(report.details) == 1:
        lines += [Text(line) for line in next(iter(report.details.values()))]
    if "report.html" in report.paths:
        lines.append(Text(f"Report: {report.paths['report.html']}", style="dim"))
    return lines
