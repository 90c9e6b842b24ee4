"""A plan: what a study would cost and what is wrong with it, known from headers alone."""

from __future__ import annotations

import shutil
from dataclasses import dataclass, field
from typing import Any

import psutil

from conf.errors import UserError
from conf.schema import Config, Suite
from pipelines.collect import open_statistics
from pipelines.evaluate import check_suite
from pipelines.merge.stream import Merge
from pipelines.sources import Access
from pipelines.study import Layout, Planned, check_study, lay_out, suites


@dataclass(frozen=True)
class Problem:
    """Something that would make a trial fail."""

    where: str
    what: str
    do: str = ""


@dataclass
class Plan:
    """What a study would run."""

    name: str
    layout: Layout
    new: int = 0
    cached: int = 0
    waiting: int = 0
    """Trials whose bases or experts have to be made first."""
    blocked: int = 0
    problems: list[Problem] = field(default_factory=list)
    resources: dict[str, Any] = field(default_factory=dict)

    def check(self) -> None:
        """Raise the plan's problems, all at once."""
        if self.problems:
            lines = [f"{p.where}: {p.what}" + (f"; {p.do}" if p.do else "") for p in self.problems]
            more = f" (and {len(lines) - 1} more, see `mergebench plan`)" if len(lines) > 1 else ""
            raise UserError(lines[0] + more)

    def to_dict(self) -> dict[str, Any]:
        """The plan as JSON tells it."""
        return {
            "study": self.name,
            "models": len(self.layout.planned),
            "new": self.new,
            "cached": self.cached,
            "waiting": self.waiting,
            "blocked": self.blocked,
            "to_make": [unmade.what for unmade in self.layout.unmade],
            "problems": [vars(problem) for problem in self.problems],
            "notes": self.layout.notes,
            **self.resources,
        }


def make_plan(config: Config, access: Access) -> Plan:
    """Lay the study out, check every trial from headers, count what is new and what the store holds."""
    check_study(config)
    layout = lay_out(config, access)
    plan = Plan(config.name or "study", layout)
    plan.problems += _suite_problems(config)
    faults = _merge_faults(layout.planned, access)
    seen: set[str] = set()
    for planned in layout.planned:
        if planned.trial is None:
            plan.waiting += 1
        elif planned.trial.key in seen:
            continue
        elif access.store.has("results", planned.trial.key, complete=True):
            plan.cached += 1
        elif faults.get((planned.pool, planned.label, planned.experts)):
            plan.blocked += 1
        else:
            plan.new += 1
        if planned.trial is not None:
            seen.add(planned.trial.key)
    plan.problems += list(dict.fromkeys(problem for found in faults.values() for problem in found))
    plan.resources = _resources(config, access, plan)
    return plan


def _suite_problems(config: Config) -> list[Problem]:
    """What is wrong with the suites that the pools are scored on; each suite is looked at once."""
    distinct: list[Suite] = []
    for pool in config.pools.values():
        distinct += [suite for suite in suites(config, pool) if suite not in distinct]
    found = [Problem(f"suite {suite.name}", text) for suite in distinct for text in check_suite(suite, config.datasets)]
    return list(dict.fromkeys(found))


def _merge_faults(planned: list[Planned], access: Access) -> dict[tuple[str, str, tuple[str, ...]], list[Problem]]:
    """Problems of each merge, decided from headers; a pool's checkpoints are opened once."""
    opened: dict[str, Any] = {}

    def header(path: str) -> Any:
        if path not in opened:
            opened[path] = access.open(path)
        return opened[path]

    faults, checked = {}, {}
    for p in planned:
        if p.trial is None or p.trial.merge is None:
            continue
        trial, recipe = p.trial, p.trial.merge
        key = (trial.base.path, tuple(s.path for s in trial.experts), recipe.method)
        if key not in checked:
            merge = Merge(
                recipe,
                header(trial.base.path),
                [header(s.path) for s in trial.experts],
                [s.fingerprint for s in trial.experts],
                statistics=[open_statistics(s) for s in trial.statistics] or None,
            )
            checked[key] = [Problem(f"{p.pool}: {q.who} {q.tensor}".strip(), q.what, q.do) for q in merge.problems()]
        faults[(p.pool, p.label, p.experts)] = checked[key]
    return faults


def _resources(config: Config, access: Access, plan: Plan) -> dict[str, Any]:
    """Disk and memory there are, what the study needs, and hours from speeds measured before."""
    seconds = _measured_seconds(access, config.suite.name)
    todo = plan.new + plan.waiting
    sizes = [
        access.open(path).size_bytes for path in sorted({p.trial.base.path for p in plan.layout.planned if p.trial})
    ]
    model = max(sizes, default=0)
    keep = {"none": 0, "best": 1, "all": todo}.get(config.keep, 0)
    return {
        "disk_free": shutil.disk_usage(access.store.root).free,
        "disk_needed": keep * model + todo * 200_000,
        "memory_free": psutil.virtual_memory().available,
        "memory_needed": 3 * model,
        "seconds_a_trial": seconds,
        "hours": None if seconds is None else todo * seconds / 3600,
    }


def _measured_seconds(access: Access, suite: str) -> float | None:
    """Median seconds of the latest trials of a suite, or None where nothing was measured."""
    times = []
    for entry in access.store.entries("results")[-200:]:
        about = entry.describe()
        if about.get("suite") == suite and about.get("trial") == "merge":
            times.append(sum(about.get("seconds", {}).values()))
    return sorted(times)[len(times) // 2] if times else None
