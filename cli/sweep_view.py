"""How a study went, as lines and tables on the terminal and as JSON."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from rich.table import Table

from cli.plan_view import clock
from cli.report_view import interference_parts, standings_table, verdict_lines

if TYPE_CHECKING:
    from pipelines.report import Report
    from pipelines.study.sweep import Sweep


def report_parts(report: Report) -> Iterator[Any]:
    """A report's table and verdict."""
    yield standings_table(report)
    yield from interference_parts(report)
    yield from verdict_lines(report)


def sweep_lines(sweep: Sweep, alone: bool = True) -> Iterator[Any]:
    """The report (of a study that stands alone), then what ran, what failed, and where everything is."""
    if sweep.report is None:
        yield "[yellow]no result of this study is in the store yet[/]"
    elif alone:
        yield from report_parts(sweep.report)
    else:
        yield f"[bold]{sweep.name}[/]: {sweep.folder}"
    yield _spent(sweep)
    if sweep.outcome.failures:
        yield _failures(sweep)
    if sweep.outcome.interrupted:
        yield "[yellow]interrupted: what was finished is kept; the same command goes on[/]"


def _spent(sweep: Sweep) -> str:
    plan, seconds = sweep.plan, sweep.seconds
    parts = [f"{plan.cached} trials cached, {sweep.outcome.done} run"]
    if sweep.report is not None and sweep.report.partial:
        parts.append(f"partial: {sweep.report.scored} of {sweep.report.planned} trials have a result")
    if sweep.outcome.elsewhere:
        parts.append(f"{sweep.outcome.elsewhere} finished by another process")
    if seconds.get("make"):
        parts.append(f"bases and experts {clock(seconds['make'])}")
    if sweep.outcome.done:
        busy = seconds.get("merge", 0) + seconds.get("evaluate", 0)
        other = max(0.0, 1 - busy / max(seconds["trials"], 1e-9))
        parts.append(
            f"trials {clock(seconds['trials'])} (merging {clock(seconds.get('merge', 0))}, "
            f"evaluating {clock(seconds.get('evaluate', 0))}, other {other:.0%})"
        )
    if "report" in seconds:
        parts.append(f"report {clock(seconds['report'])}")
    return "[dim]" + "; ".join(parts) + "[/]"


def _failures(sweep: Sweep) -> Table:
    table = Table(title="[red]trials without a result[/]; the same command tries them again", title_justify="left")
    table.add_column("trial")
    table.add_column("reason", overflow="fold")
    for failure in sweep.outcome.failures:
        recipe = failure.trial.merge
        name = f"{recipe.method} of {len(recipe.experts)}" if recipe else failure.trial.kind
        table.add_row(f"{name} {failure.trial.key[:10]}", failure.reason)
    return table


def sweep_dict(sweep: Sweep) -> dict[str, Any]:
    """How a study went, for machines."""
    return {
        "study": sweep.name,
        "folder": str(sweep.folder),
        "complete": sweep.complete,
        "cached": sweep.plan.cached,
        "run": sweep.outcome.done,
        "failed": [{"key": f.trial.key, "reason": f.reason} for f in sweep.outcome.failures],
        "seconds": sweep.seconds,
        "report": sweep.report.to_dict() if sweep.report else None,
    }
