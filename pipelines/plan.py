"""A plan: what a study would cost and what is wrong with it, known from headers alone."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from conf.errors import UserError, raise_all
from conf.schema import Config, Suite
from pipelines.checks import check_study
from pipelines.collect import open_statistics
from pipelines.evaluate import check_suite
from pipelines.merge.stream import open_merge
from pipelines.resources import resources, short_of_disk, to_fetch
from pipelines.sources import Access
from pipelines.study import Layout, Planned, lay_out, suites


@dataclass(frozen=True)
class Problem:
    """Something that would make a trial fail."""

    where: str
    what: str
    do: str = ""


Faults = dict[tuple[str, str, tuple[str, ...]], list[Problem]]
"""By pool, label and experts of a merge, what is wrong with it."""


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
    todo: list[Planned] = field(default_factory=list)
    """Models that are new or wait."""
    problems: list[Problem] = field(default_factory=list)
    resources: dict[str, Any] = field(default_factory=dict)

    def check(self) -> None:
        """Raise the plan's problems, all at once."""
        raise_all([UserError(p.what, where=p.where, do=p.do) for p in self.problems])

    def folders(self, access: Access) -> list[str]:
        """Snapshot folders that lack the weights which the study needs."""
        return [str(remote.folder) for remote in to_fetch(self.todo, access)]

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
    plan.problems += [Problem(*told) for told in layout.impossible]
    plan.problems += _suite_problems(config)
    plan.problems += [Problem(lost.what, lost.error.what, lost.error.do) for lost in layout.lost]
    faults = _merge_faults(layout.planned, access)
    plan.problems += list(dict.fromkeys(problem for found in faults.values() for problem in found))
    _count(plan, faults, access)
    plan.resources = resources(config, access, plan.todo, layout.planned)
    if short := short_of_disk(plan.resources):
        what = f"needs {short[1] / 1e9:.3g} GB of disk, {short[2] / 1e9:.3g} GB are free"
        plan.problems.append(Problem(short[0], what, "free some, or name folders on another disk (store=, HF_HOME)"))
    return plan


def _count(plan: Plan, faults: Faults, access: Access) -> None:
    """Sort the models into cached, blocked, waiting and new ones; the same trial counts once."""
    seen: set[str] = set()
    for planned in plan.layout.planned:
        if planned.lost:
            plan.blocked += 1
        elif planned.trial is None:
            plan.waiting += 1
            plan.todo.append(planned)
        elif planned.trial.key in seen:
            continue
        elif access.store.has("results", planned.trial.key, complete=True):
            plan.cached += 1
        elif faults.get((planned.pool, planned.label, planned.experts)):
            plan.blocked += 1
        else:
            plan.new += 1
            plan.todo.append(planned)
        if planned.trial is not None:
            seen.add(planned.trial.key)


def _suite_problems(config: Config) -> list[Problem]:
    """What is wrong with the suites that the pools are scored on; each suite is looked at once."""
    distinct: list[Suite] = []
    for pool in config.pools.values():
        distinct += [suite for suite in suites(config, pool) if suite not in distinct]
    found = [Problem(f"suite {suite.name}", text) for suite in distinct for text in check_suite(suite, config.datasets)]
    return list(dict.fromkeys(found))


def _merge_faults(planned: list[Planned], access: Access) -> Faults:
    """Problems of each merge, decided from headers; a pool's checkpoints are opened once."""
    opened: dict[str, Any] = {}

    def header(path: str) -> Any:
        if path not in opened:
            opened[path] = access.headers(path)
        return opened[path]

    faults, checked = {}, {}
    for p in planned:
        if p.trial is None or p.trial.merge is None:
            continue
        trial, recipe = p.trial, p.trial.merge
        key = (trial.base.path, tuple(s.path for s in trial.experts), recipe.method)
        if key not in checked:
            try:
                statistics = [open_statistics(s) for s in trial.statistics]
                found = open_merge(recipe, trial.base, trial.experts, header, statistics).problems()
                checked[key] = [Problem(f"{p.pool}: {q.who} {q.tensor}".strip(), q.what, q.do) for q in found]
            except UserError as error:
                checked[key] = [Problem(error.where or p.pool, error.what, error.do)]
        faults[(p.pool, p.label, p.experts)] = checked[key]
    return faults
