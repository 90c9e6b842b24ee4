"""A report on a terminal: the leaderboard as a table, the verdict as lines."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.markup import escape
from rich.table import Table
from rich.text import Text

from pipelines.report import words

if TYPE_CHECKING:
    from pipelines.report import Report
    from pipelines.report.leaderboard import LeaderRow

STYLES = {1: "green", -1: "red", 0: ""}


def leaderboard_table(report: Report, limit: int | None = None) -> Table:
    """The leaderboard; coloured where an interval lies on one side of zero.

    Args:
        report: what `write_report` returned.
        limit: merge lines shown a pool at most, default as many as fit a screen or two; the files have them all.
    """
    pools = len({row.panel for row in report.leaderboard})
    several = pools > 1
    limit = limit or max(6, 40 // max(1, pools))
    table = Table(title=escape(report.title), title_justify="left", header_style="bold", box=None, pad_edge=False)
    for name in ["pool"] * several + ["method"]:
        table.add_column(name, no_wrap=True)
    for name in ("experts", "merges", "score", "Δ base", "Δ best expert", "constructive"):
        table.add_column(name, justify="right", no_wrap=True)
    shown: dict[str, int] = {}
    last = None
    for row in report.leaderboard:
        if row.kind == "merge":
            shown[row.panel] = shown.get(row.panel, 0) + 1
            if shown[row.panel] > limit:
                continue
        if last not in (None, row.panel):
            table.add_section()
        cells = ([Text(row.panel if row.panel != last else "")] if several else []) + _cells(row)
        table.add_row(*cells, style="" if row.kind == "merge" else "dim")
        last = row.panel
    hidden = sum(max(0, n - limit) for n in shown.values())
    if hidden:
        table.caption = f"{hidden} more lines in leaderboard.csv"
    return table


def _cells(row: LeaderRow) -> list[Text]:
    merged = row.kind == "merge"
    count = words.UNKNOWN if row.constructive is None else f"{row.constructive.k}/{row.constructive.n}"
    return [
        Text(row.method),
        Text(str(row.experts) if merged else ""),
        Text(str(row.merges) if merged else ""),
        Text(words.score(row.score)),
        Text(words.gap(row.to_base) if row.kind != "base" else "", style=STYLES[words.direction(row.to_base)]),
        Text(words.gap(row.to_best) if merged else "", style=STYLES[words.direction(row.to_best)]),
        Text(count if merged else ""),
    ]


def verdict_lines(report: Report) -> list[Text]:
    """The verdict, the first sentence bold; of one pool the details too; and where the page is."""
    lines = [Text(line, style="bold" if i == 0 else "") for i, line in enumerate(report.verdicts)]
    if len(report.details) == 1:
        lines += [Text(line) for line in next(iter(report.details.values()))]
    if "report.html" in report.paths:
        lines.append(Text(f"Report: {report.paths['report.html']}", style="dim"))
    return lines
