"""A report on a terminal: scores by method and number of experts as one table, the verdict as lines."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from rich.markup import escape
from rich.table import Table
from rich.text import Text

from pipelines.report import words
from pipelines.report.page import settings_lines

if TYPE_CHECKING:
    from pipelines.report import Interval, Report
    from pipelines.report.analysis import LeaderRow

STYLES = {1: "green", -1: "red", 0: ""}
SENTENCES_A_POOL = 2
"""The last sentences on each pool, on its experts and on what merging keeps of them; the page has all."""


def standings_table(report: Report) -> Table:
    """Mean score by method (rows, best first) and number of experts merged (columns), pool by pool.

    Green and red: the paired interval of the difference to the base lies above or below zero.
    """
    sizes = sorted({row.experts for row in report.leaderboard if row.kind == "merge"})
    table = Table(title=escape(report.title), title_justify="left", header_style="bold", box=None, pad_edge=False)
    table.add_column("method", overflow="fold")
    for size in sizes:
        table.add_column(f"of {size}", justify="right", no_wrap=True)
    if sizes:
        table.add_column("constr.", justify="right", no_wrap=True)
    pools = list(dict.fromkeys(row.panel for row in report.leaderboard))
    for place, pool in enumerate(pools):
        rows = [row for row in report.leaderboard if row.panel == pool]
        if len(pools) > 1:
            table.add_row(Text(("\n" if place else "") + pool, style="bold"))
        for row in rows:
            if row.kind != "merge":
                table.add_row(Text(row.method), _score(row), style="dim")
        for method in _by_score([row for row in rows if row.kind == "merge"]):
            table.add_row(Text(method[0].method), *_across(method, sizes), _constructive(method))
    table.caption = _caption(report)
    table.caption_justify = "left"
    return table


def interference_parts(report: Report) -> Iterator[Text | Table]:
    """Share of the experts' own-skill gain that merging keeps, by method and number of experts, of the best pool."""
    if not report.interference:
        return
    known = {row.panel for row in report.interference}
    best = max((row for row in report.leaderboard if row.kind == "merge" and row.panel in known), key=_estimate).panel
    rows = [row for row in report.interference if row.panel == best]
    sizes = sorted({row.experts for row in rows})
    pool = f" ({best}; the page has every pool)" if len(known) > 1 else ""
    yield Text(f"share of the experts' gain on their own skill that merging keeps{pool}", style="italic")
    table = Table(header_style="bold", box=None, pad_edge=False)
    table.add_column("method", overflow="fold")
    for size in sizes:
        table.add_column(f"of {size}", justify="right", no_wrap=True)
    kept = {(row.method, row.experts): row.kept for row in rows}
    for method in sorted({row.method for row in rows}, key=lambda m: -kept.get((m, sizes[-1]), rows[0].kept).estimate):
        found = [kept.get((method, size)) for size in sizes]
        table.add_row(Text(method), *(Text(_short(k, words.number) if k else "") for k in found))
    yield table


def _estimate(row: LeaderRow) -> float:
    return row.score.estimate


def _by_score(merges: list[LeaderRow]) -> list[list[LeaderRow]]:
    """The rows of each method, methods with the highest mean over their sizes first."""
    methods: dict[str, list[LeaderRow]] = {}
    for row in merges:
        methods.setdefault(row.method, []).append(row)
    return sorted(methods.values(), key=lambda rows: -sum(r.score.estimate for r in rows) / len(rows))


def _across(method: list[LeaderRow], sizes: list[int]) -> list[Text]:
    by_size = {row.experts: row for row in method}
    return [_score(by_size[size]) if size in by_size else Text("") for size in sizes]


def _score(row: LeaderRow) -> Text:
    style = STYLES[words.direction(row.to_base)] if row.kind == "merge" else ""
    return Text(_short(row.score, words.number), style=style)


def _constructive(method: list[LeaderRow]) -> Text:
    tallies = [row.constructive for row in method if row.constructive is not None]
    return Text(f"{sum(t.k for t in tallies)}/{sum(t.n for t in tallies)}" if tallies else words.UNKNOWN)


def _short(interval: Interval, write: Callable[[float], str]) -> str:
    half = (interval.high - interval.low) / 2
    return write(interval.estimate) + (f" ±{half:.3f}".replace("0.", ".") if interval.known else "")


def _caption(report: Report) -> str:
    sure = f"{report.statistics.confidence:.0%}"
    parts = [
        f"score ± half its {sure} interval, mean over the merges of that many experts",
        "green, red: above, below the base beyond noise",
        "constr.: merges above the base and all of their own experts",
    ]
    return escape("; ".join(parts) + "\n" + "\n".join(settings_lines(report)))


def verdict_lines(report: Report) -> list[Text]:
    """The verdict, its first sentence bold; what was left out; each pool's experts; and where the page is."""
    lines = [Text("• " + line, style="bold" if i == 0 else "") for i, line in enumerate(report.verdicts)]
    lines += [Text("• " + note, style="yellow") for note in report.left_out]
    for pool, sentences in report.details.items():
        lead = f"{pool}: " if len(report.details) > 1 else ""
        lines += [Text("• " + lead + line) for line in sentences[-SENTENCES_A_POOL:]]
    if "report.html" in report.paths:
        lines.append(Text(f"Report: {report.paths['report.html']}", style="dim"))
    return lines
