"""What was found in the store, as tables and as JSON."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from rich.markup import escape
from rich.table import Table

from cli.plan_view import gigabytes
from pipelines.store.provenance import UNKNOWN, said

if TYPE_CHECKING:
    from pipelines.store.gc import Collection
    from pipelines.upkeep.verify import Check

COLOURS = {"ok": "green", "differs": "red", "missing": "red", "unknown": "yellow"}
SHOWN = 40
"""Lines of a table on the terminal; --json has all of them."""


def verify_table(checks: Sequence[Check], store: str) -> Iterator[Any]:
    """What is not as it should be, then the count of every state."""
    notable = [check for check in checks if check.state != "ok"]
    shown = notable[:SHOWN] if notable else list(checks[:SHOWN])
    table = Table(title=f"{len(checks)} entries of {store} checked", title_justify="left")
    for column in ("kind", "key", "what", "state", "found"):
        table.add_column(column, overflow="fold")
    for check in shown:
        state = f"[{COLOURS[check.state]}]{check.state}[/]"
        table.add_row(check.kind, check.key[:10], escape(check.what), state, escape(check.told))
    if shown:
        yield table
    counts = Counter(check.state for check in checks)
    yield ", ".join(f"{counts[state]} {state}" for state in COLOURS if counts[state]) or "nothing to check"


def results_table(lines: Sequence[dict[str, Any]], same: dict[str, Any]) -> Table:
    """Mean scores; columns in which the results differ, and below them what they have in common."""
    table = Table(
        title=f"{sum(line['models'] for line in lines)} models", title_justify="left", box=None, pad_edge=False
    )
    for name in lines[0] if lines else ():
        table.add_column(name.replace("_", " "), overflow="fold", no_wrap=name in ("models", "mean"))
    for line in lines:
        table.add_row(*(escape(_shown(name, value)) for name, value in line.items()))
    table.caption, table.caption_justify = escape(said(same)), "left"
    return table


def _shown(name: str, value: Any) -> str:
    if name == "mean":
        return "failed" if value is None else f"{value:.4f}"
    return UNKNOWN if value is None else str(value)


def gc_lines(found: Collection) -> Iterator[Any]:
    """What may go or went, by kind, and what to do next."""
    table = Table(title="removed" if found.deleted else "what no study refers to", title_justify="left")
    for column in ("kind", "key", "what", "size"):
        table.add_column(column, overflow="fold")
    for waste in found.waste[:SHOWN]:
        table.add_row(waste.kind, waste.key[:10], escape(waste.what), gigabytes(waste.size))
    if len(found.waste) > SHOWN:
        table.add_row("…", "", f"and {len(found.waste) - SHOWN} more", "")
    if found.waste:
        yield table
    counts = Counter(waste.kind for waste in found.waste)
    told = ", ".join(f"{n} {kind}" for kind, n in counts.items()) or "nothing"
    yield f"{told} ({gigabytes(found.size)}){' removed' if found.deleted else ' may go'}; {found.kept} entries stay"
    for record in found.forgotten:
        yield f"study {record.name} {'is forgotten' if found.deleted else 'would be forgotten'}"
    if found.busy:
        yield f"[yellow]{len(found.busy)} left: another process holds them[/]"
    if found.waste and not found.deleted:
        yield "[dim]nothing was removed; the same command with --delete removes it[/]"


def gc_dict(found: Collection) -> dict[str, Any]:
    """The same for machines."""
    return {
        "deleted": found.deleted,
        "kept": found.kept,
        "size": found.size,
        "waste": [{**vars(waste), "path": str(waste.path)} for waste in found.waste],
        "busy": [waste.key for waste in found.busy],
        "forgotten": [record.name for record in found.forgotten],
    }
