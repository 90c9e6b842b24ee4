"""A plan as tables."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from rich.table import Table

if TYPE_CHECKING:
    from pipelines.study.plan import Plan


def plan_tables(plan: Plan) -> Iterator[Any]:
    """What would run, what it needs, and what is wrong."""
    table = Table(title=f"plan of {plan.name}", title_justify="left", show_header=False)
    table.add_column(style="bold")
    table.add_column()
    for name, value in _rows(plan):
        table.add_row(name, value)
    yield table
    yield from (f"[dim]{note}[/]" for note in plan.layout.notes)
    if plan.problems:
        wrong = Table(title="[red]what is wrong[/]", title_justify="left")
        for column in ("where", "what", "what to do"):
            wrong.add_column(column, overflow="fold")
        for problem in plan.problems:
            wrong.add_row(problem.where, problem.what, problem.do)
        yield wrong


def _rows(plan: Plan) -> Iterator[tuple[str, str]]:
    yield "models", str(len(plan.layout.planned))
    yield "new trials", str(plan.new)
    yield "cached trials", str(plan.cached)
    if plan.waiting:
        made = [unmade.what for unmade in plan.layout.unmade]
        shown = ", ".join(made[:6]) + (f" and {len(made) - 6} more" if len(made) > 6 else "")
        yield "waiting trials", f"{plan.waiting} (to be made first: {shown})"
    if plan.blocked:
        yield "[red]blocked trials[/]", str(plan.blocked)
    needs = plan.resources
    if fetch := needs["to_fetch"]:
        size, free = sum(checkpoint["bytes"] for checkpoint in fetch), gigabytes(needs["fetch_free"])
        checkpoints = "checkpoint" if len(fetch) == 1 else "checkpoints"
        yield "to fetch", f"{len(fetch)} {checkpoints}, {gigabytes(size)} ({free} free in the hub's cache)"
    yield "disk", f"{gigabytes(needs['disk_needed'])} needed, {gigabytes(needs['disk_free'])} free"
    yield "memory", f"{gigabytes(needs['memory_needed'])} needed, {gigabytes(needs['memory_free'])} free"
    hours = needs["hours"]
    yield "time", "not measured yet on this suite" if hours is None else f"about {clock(hours * 3600)}"


def gigabytes(count: float) -> str:
    """A number of bytes in the unit that suits it."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} TB"


def clock(seconds: float) -> str:
    """A duration as people say it."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    if seconds < 5400:
        return f"{seconds / 60:.1f} min"
    return f"{seconds / 3600:.1f} h"
