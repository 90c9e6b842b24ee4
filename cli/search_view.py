"""What a search found, on the terminal."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from rich.markup import escape
from rich.table import Table

if TYPE_CHECKING:
    from pipelines.search.result import Candidate, Interval, SearchResult

COLUMNS = 3
"""More values than these share one column."""


def search_lines(found: SearchResult, top: int) -> Iterator[Any]:
    """The best configurations, then how the chosen one compares with the defaults, then what failed."""
    shown = found.top(top)
    if shown:
        yield _table(found, shown)
    if found.label:
        yield f"[bold red]{found.label}[/]"
    yield from _verdict(found)
    for key, reason in found.failed.items():
        yield f"[red]{key[:10]} has no score[/]: {escape(reason)}"
    if found.interrupted:
        yield "[yellow]interrupted: what was scored is kept; the same command goes on[/]"
    yield f"[dim]{found.tried} configurations in {found.folder}[/]"


def _table(found: SearchResult, shown: list[Candidate]) -> Table:
    title = f"{found.method} of {', '.join(found.experts)}: {found.sampler} search on {found.tuned_on}"
    table = Table(title=title, title_justify="left")
    names = list(shown[0].values)
    table.add_column("", no_wrap=True)
    if len(names) > COLUMNS:
        table.add_column("values", overflow="fold")
    for name in names if len(names) <= COLUMNS else ():
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column(found.tuned_on, justify="right", no_wrap=True)
    table.add_column(found.reported_on + (" (tuned on it)" if found.label else ""), justify="right", no_wrap=True)
    for place, candidate in enumerate(shown):
        mark = "best" if place == 0 else ""
        mark = " ".join(filter(None, [mark, "default" if candidate.default else ""])) or str(place + 1)
        values = [_value(candidate.values[name]) for name in names]
        if len(names) > COLUMNS:
            values = [", ".join(f"{name} {value}" for name, value in zip(names, values))]
        table.add_row(mark, *values, _validation(candidate), _interval(candidate.test))
    table.caption = f"score ± half its {found.confidence:.0%} bootstrap interval over documents"
    return table


def _verdict(found: SearchResult) -> Iterator[str]:
    best, gap = found.best, found.difference
    if best is None or gap is None or best.test is None:
        return
    if best.default:
        yield f"no configuration is better than the default on {found.tuned_on}"
        return
    sure = "beyond noise" if gap.excludes_zero else "within noise"
    p = "" if gap.p is None or math.isnan(gap.p) else f", p = {gap.p:.2g}"
    yield f"on {found.reported_on}, chosen minus default, paired: {gap.estimate:+.4f} {_ends(gap)}{p}: {sure}"
    if not found.label:
        many = f"the highest of {len(found.candidates)} and so too high"
        yield f"[dim]the chosen one's score on {found.tuned_on} is {many}; its score on {found.reported_on} is not[/]"


def _validation(candidate: Candidate) -> str:
    return _interval(candidate.validation) if candidate.validation else f"{candidate.score:.4f}"


def _interval(interval: Interval | None) -> str:
    """An estimate and half of its interval."""
    if interval is None:
        return ""
    half = f"{(interval.high - interval.low) / 2:.3f}".replace("0.", ".")
    return f"{interval.estimate:.4f}" + (f" ±{half}" if interval.known else "")


def _ends(interval: Interval) -> str:
    return escape(f"[{interval.low:.3f}, {interval.high:.3f}]") if interval.known else ""


def _value(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value).lower() if isinstance(value, bool) else str(value)
