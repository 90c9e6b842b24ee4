"""A plan: what a study would cost and what is wrong with it, known from headers alone."""

from __future__ import annotations

import functools
import shutil
import statistics
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import torch

from conf.errors import UserError, raise_all
from conf.schema import Config, Executor
from pipelines.checkpoints.headers import CODES, itemsize
from pipelines.checkpoints.hub import RemoteCheckpoint
from pipelines.evaluate import check_suite
from pipelines.evaluate.reader import check_reader
from pipelines.finetune import check_finetuning
from pipelines.finetune.memory import bytes_a_weight
from pipelines.study.check import check_study
from pipelines.study.layout import Planned, StudyLayout, lay_out
from pipelines.study.sources import Access, ExpertRecipe, Lost, Source
from pipelines.study.trial import Trial, open_merge

LATEST = 500
"""Results of which the times are looked at."""

RESULT = 200_000
"""Bytes of one trial's result, about."""

Faults = dict[str, list[UserError]]
"""By the key of a merge's trial, what is wrong with it."""


@dataclass
class Plan:
    """What a study would run."""

    name: str
    layout: StudyLayout
    new: int = 0
    cached: int = 0
    waiting: int = 0
    """Trials whose bases or experts have to be made first, or whose parameters have to be chosen."""
    blocked: int = 0
    todo: list[Planned] = field(default_factory=list)
    """Models that are new or wait."""
    problems: list[UserError] = field(default_factory=list)
    """What would make a trial fail."""
    resources: dict[str, Any] = field(default_factory=dict)

    @property
    def candidates(self) -> int:
        """Models that selections choose among."""
        return sum(p.split is not None for p in self.layout.planned)

    @property
    def finals(self) -> int:
        """Models that selections choose, under every attack."""
        return sum(p.selected is not None for p in self.layout.planned)

    def check(self) -> None:
        """Raise the plan's problems, all at once."""
        raise_all(self.problems)

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
            "candidates": self.candidates,
            "finals": self.finals,
            "chosen": [choice.to_dict() for choice in self.layout.choices],
            "to_make": [unmade.what for unmade in self.layout.unmade],
            "problems": [{"where": p.where, "what": p.what, "do": p.do} for p in self.problems],
            "notes": self.layout.notes,
            **self.resources,
        }


def make_plan(config: Config, access: Access) -> Plan:
    """Lay the study out, check every trial from headers, count what is new and what the store holds."""
    check_study(config)
    layout = lay_out(config, access)
    faults = _merge_faults(layout.planned, access)
    plan = Plan(config.name or "study", layout)
    _count(plan, faults, access)
    plan.resources = resources(config, access, plan.todo, layout)
    everything = [*layout.impossible, *_suite_problems(layout, config), *_reader_problems(layout)]
    if short := short_of_disk(plan.resources):
        what = f"needs {short[1] / 1e9:.3g} GB of disk, {short[2] / 1e9:.3g} GB are free"
        do = "free some, or name folders on another disk (store=, HF_HOME)"
        everything.append(UserError(what, where=short[0], do=do))
    some = [*_lost_checkpoints(layout), *_counted([error for errors in faults.values() for error in errors])]
    plan.problems = everything + [error for _, error in sorted(some, key=lambda pair: -pair[0])]
    return plan


def _lost_checkpoints(layout: StudyLayout) -> list[tuple[int, UserError]]:
    """What cannot be had, with the number of models that it blocks: one line for all checkpoints of a pool for which
    there is the same to do."""
    alike: dict[tuple[str, str], list[Lost]] = {}
    for one in layout.lost:
        alike.setdefault((one.what.rpartition(" of ")[2], one.error.do), []).append(one)
    found = []
    for (pool, do), several in alike.items():
        first, names = several[0], [one.what.rpartition(" of ")[0] for one in several]
        what, where = first.error.what, first.what
        if len(several) > 1:
            what = f"{len(several)} checkpoints cannot be had; {names[0]}: {what}"
            where = f"{pool}: {', '.join(names)}"
        lost = [p for p in layout.planned if p.lost and p.pool == pool.partition(" (seed ")[0]]
        blocked = lost if "base" in names else [p for p in lost if {*names} & {p.label, *p.experts}]
        found.append((len(blocked), UserError(what, where=where, do=do)))
    return found


def _counted(errors: Sequence[UserError]) -> list[tuple[int, UserError]]:
    """Each error once, with the number of times that it is there."""
    counts = Counter(map(str, errors))
    return [(counts[text], error) for text, error in {str(error): error for error in errors}.items()]


def _distinct(errors: Sequence[UserError]) -> list[UserError]:
    return [error for _, error in _counted(errors)]


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
        elif faults.get(planned.trial.key):
            plan.blocked += 1
        else:
            plan.new += 1
            plan.todo.append(planned)
        if planned.trial is not None:
            seen.add(planned.trial.key)


def _suite_problems(layout: StudyLayout, config: Config) -> list[UserError]:
    """What is wrong with the suites that models are scored on; each suite is looked at once."""
    found = [(suite, text) for suite, _ in layout.suites for text in check_suite(suite, config.datasets)]
    return _distinct([UserError(text, where=f"suite {suite.name}") for suite, text in found])


def _reader_problems(layout: StudyLayout) -> list[UserError]:
    """What checkpoints lack that a suite asks for; each is looked at once."""
    trials = [p.trial for p in layout.planned if p.trial is not None]
    readers = {(folder, id(t.suite)): (folder, t.suite) for t in trials for folder in (t.base.path, t.reader)}
    return _distinct([error for reader in readers.values() for error in check_reader(*reader)])


def _merge_faults(planned: list[Planned], access: Access) -> Faults:
    """Problems of each merge, decided from headers; a pool's checkpoints are opened once."""
    headers = functools.cache(access.headers)
    faults: Faults = {}
    checked: dict[Any, list[UserError]] = {}
    for p in planned:
        if p.trial is None or p.trial.merge is None:
            continue
        trial, recipe = p.trial, p.trial.merge
        key = (trial.base.path, recipe.experts, recipe.method)
        if key not in checked:
            try:
                found = open_merge(recipe, trial.base, trial.experts, trial.information, headers).problems()
                where = [f"{p.pool}: {problem.subject}" for problem in found]
                checked[key] = [UserError(q.what, where=w, do=q.do) for q, w in zip(found, where)]
            except UserError as error:
                checked[key] = [UserError(error.what, where=error.where or p.pool, do=error.do)]
        faults[trial.key] = checked[key]
    return faults


def to_fetch(planned: Sequence[Planned], access: Access) -> list[RemoteCheckpoint]:
    """The checkpoints whose weights are still on the hub, of models that have to be run."""
    folders = dict.fromkeys(folder for p in planned for folder in p.folders)
    return [remote for folder in folders if (remote := access.hub.unfetched(folder)) is not None]


def resources(config: Config, access: Access, todo: Sequence[Planned], layout: StudyLayout) -> dict[str, Any]:
    """Bytes, hours and dollars that running ``todo`` takes, and what is free.

    ``disk_needed`` holds the downloads too where the hub's cache is on the store's disk; ``fetch_free`` is what the
    cache's disk has.
    """
    remote, cache, root = to_fetch(todo, access), hub_cache(), access.store.root
    trials = [p.trial for p in layout.planned if p.trial]
    model = max((access.headers(path).size_bytes for path in {trial.base.path for trial in trials}), default=0)
    kept = {"none": 0, "best": len(config.pools), "all": sum(p.kind == "merge" for p in todo)}.get(config.keep, 0)
    fetch = sum(checkpoint.to_fetch for checkpoint in remote)
    same_disk = cache.stat().st_dev == root.stat().st_dev
    seconds = estimated_seconds([p.trial for p in todo if p.trial], access, config.suite.name)
    hours, price = None if seconds is None else len(todo) * seconds / 3600, config.executor.price
    trained = [access.headers(base.path).size_bytes for _, base in layout.trained]
    here, room = memory_of(config.executor)
    return {
        "to_fetch": [{"name": checkpoint.path, "bytes": checkpoint.to_fetch} for checkpoint in remote],
        "fetch_free": shutil.disk_usage(cache).free,
        "disk_free": shutil.disk_usage(root).free,
        "disk_needed": kept * model + len(todo) * RESULT + sum(trained) + (fetch if same_disk else 0),
        "memory_of": here,
        "memory_free": room,
        "memory_needed": max((memory(trial, access) for trial in trials), default=0),
        "training_memory": max((training_memory(*one, access) for one in layout.trained), default=0),
        "seconds_a_trial": seconds,
        "hours": None if hours is None else hours / (config.executor.workers or 1),
        "device_hours": hours,
        "dollars": None if hours is None or price is None else hours * price,
    }


def memory_of(executor: Executor) -> tuple[str, int]:
    """Where models are merged and scored, and the bytes that are free there."""
    if executor.device != "cpu" and torch.cuda.is_available():
        return torch.cuda.get_device_name(), torch.cuda.mem_get_info()[0]
    return "", psutil.virtual_memory().available


def short_of_disk(needs: dict[str, Any]) -> tuple[str, int, int] | None:
    """Which disk is too small, with bytes needed and free, if one is."""
    fetch = sum(checkpoint["bytes"] for checkpoint in needs["to_fetch"])
    if needs["disk_needed"] > needs["disk_free"]:
        return "the store", needs["disk_needed"], needs["disk_free"]
    if fetch > needs["fetch_free"]:
        return "the hub's cache", fetch, needs["fetch_free"]
    return None


def memory(trial: Trial, access: Access) -> int:
    """Bytes of the live model in the suite's dtype and of the largest tensor's float32 working set.

    With K experts merged that is the base's, the experts' and the merged tensor: 4·(K + 2) bytes per element.
    """
    header = access.headers(trial.base.path).header
    width = itemsize(trial.suite.dtype) if trial.suite.dtype in CODES else 4
    largest = max((info.count for info in header.values()), default=0)
    work = 4 * largest * (len(trial.experts) + 2) if trial.merge else 0
    return sum(info.count for info in header.values()) * width + work


def training_memory(recipe: ExpertRecipe, base: Source, access: Access) -> int:
    """Bytes that training an expert holds on its device, activations and adapters aside."""
    weights = sum(info.count for info in access.headers(base.path).header.values())
    method = check_finetuning(recipe.finetuning)
    return weights * sum(bytes_a_weight(method, recipe.optimizer, recipe.training).values())


def estimated_seconds(trials: Sequence[Trial], access: Access, suite: str) -> float | None:
    """Mean seconds that trials will take, by the latest ones of the suite; None where nothing was measured.

    A trial takes the median of those of its base and method; else of its base; else of all.
    """
    known: dict[tuple[str, ...], list[float]] = {}
    for entry in access.store.entries("results")[-LATEST:]:
        about = access.store.read(entry)
        if about is not None and about.get("suite") == suite:
            kind = _kind(about["base"]["fingerprint"], (about.get("recipe") or {}).get("method"))
            for place in (kind, kind[:1], ()):
                known.setdefault(place, []).append(sum(about.get("seconds", {}).values()))
    if not known:
        return None
    kinds = [_kind(trial.base.fingerprint, trial.merge.method if trial.merge else None) for trial in trials]
    found = [next(known[place] for place in (kind, kind[:1], ()) if place in known) for kind in kinds or [()]]
    return statistics.fmean(statistics.median_high(seconds) for seconds in found)


def _kind(base: str, method: str | None) -> tuple[str, ...]:
    """Trials that take about the same time: of one base and method, or single models of it."""
    return base, method or ""


def hub_cache() -> Path:
    """The folder that the hub client keeps snapshots in, or the nearest folder above it that exists."""
    from huggingface_hub import constants

    folder = Path(constants.HF_HUB_CACHE).expanduser().absolute()
    return next(place for place in (folder, *folder.parents) if place.exists())
