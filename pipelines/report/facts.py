"""What was scored, for the head of a page: bases, experts, tasks, methods, when, by what and at which cost."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Any

from pipelines.report import words
from pipelines.report.data import TrialRow

TOLD = {"fewshot": "Few-shot examples", "sample": "Documents", "engine": "Versions", "device": "Device"}
"""Columns of a result's provenance that stand on their own, and what they are called."""


def facts(rows: Sequence[TrialRow], command: str = "") -> list[tuple[str, list[str]]]:
    """Headings with their lines; those of which nothing is known are left out."""
    told: dict[str, list[str]] = {
        "Base": _by_pool(rows, "base"),
        "Experts": [f"{pool}: {words.listed(sorted(names), 16)}" for pool, names in _experts(rows).items()],
        "Training": _by_pool(rows, "training", kind="expert"),
        "Tasks": _tasks(rows),
        **{name: _values(rows, column) for column, name in TOLD.items()},
        "Methods": _methods(rows),
        "Scored": _dates(rows),
        "Cost": _cost(rows),
        "Command": [command] if command else [],
    }
    return [(name, lines) for name, lines in told.items() if lines]


def _values(rows: Iterable[TrialRow], column: str) -> list[str]:
    return list(dict.fromkeys(str(row.provenance[column]) for row in rows if row.provenance.get(column) is not None))


def _by_pool(rows: Sequence[TrialRow], column: str, kind: str = "") -> list[str]:
    """A value for each pool, or the one that all share."""
    pools = list(dict.fromkeys(row.pool for row in rows))
    found = {p: _values([r for r in rows if r.pool == p and kind in ("", r.kind)], column) for p in pools}
    lines = {pool: words.listed(values, 8) for pool, values in found.items() if values}
    if len(set(lines.values())) == 1:
        return [next(iter(lines.values()))]
    return [f"{pool}: {line}" for pool, line in lines.items()]


def _experts(rows: Sequence[TrialRow]) -> dict[str, set[str]]:
    found: dict[str, set[str]] = defaultdict(set)
    for row in rows:
        found[row.pool].update(row.experts)
    return {pool: names for pool, names in found.items() if names}


def _tasks(rows: Sequence[TrialRow]) -> list[str]:
    """Every task with its metric and number of documents."""
    found: dict[str, str] = {}
    for row in rows:
        for task in row.scores:
            metric = row.metrics.get(task)
            parts = [metric or "", words.count(row.n[task], "document") if row.n.get(task) else ""]
            found.setdefault(task, f"{task} ({', '.join(filter(None, parts))})" if any(parts) else task)
    return [", ".join(found.values())] if found else []


def _methods(rows: Sequence[TrialRow]) -> list[str]:
    """Every method with the values that its parameters took."""
    found: dict[str, dict[str, dict[str, None]]] = defaultdict(lambda: defaultdict(dict))
    for row in rows:
        if row.kind == "merge":
            own = found[row.method or "?"]
            for name, value in row.parameters.items():
                own[name][_text(value)] = None
    return [
        f"{method}: {', '.join(f'{name} {_range(list(values))}' for name, values in own.items()) or 'no parameters'}"
        for method, own in found.items()
    ]


def _text(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def _range(values: list[str]) -> str:
    return values[0] if len(values) == 1 else f"{{{words.listed(values, 12)}}}"


def _dates(rows: Sequence[TrialRow]) -> list[str]:
    made = sorted(row.made for row in rows if row.made)
    days = list(dict.fromkeys(time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(t)) for t in (made[:1] + made[-1:])))
    return [" to ".join(days)] if days else []


def _cost(rows: Sequence[TrialRow]) -> list[str]:
    """Seconds by stage over distinct trials."""
    total: dict[str, float] = defaultdict(float)
    for row in {row.key or id(row): row for row in rows}.values():
        for stage, seconds in row.seconds.items():
            total[stage] += seconds
    parts = [f"{stage} {_duration(seconds)}" for stage, seconds in total.items() if seconds >= 0.05]
    return [", ".join(parts)] if parts else []


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
