"""Data statistics of experts that some merge methods need: collected on a task, kept in the store, found by trials.

An entry of kind ``statistics`` holds one statistic (``fisher`` or ``gram``) of one expert on one task. Its key is over
the expert's weights, the data and the settings, so that a plan knows it before it is collected.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from conf.errors import UserError, nearest
from conf.schema import Collect, Config, Pool, Task
from pipelines.checkpoints.checkpoint import OpenCheckpoint
from pipelines.checkpoints.headers import Place, TensorInfo, read_safetensors_header
from pipelines.progress import SILENT, Progress
from pipelines.store.store import Entry, content_key
from pipelines.study.sources import (
    Access,
    Source,
    Unmade,
    find_base,
    find_checkpoint,
    find_expert,
    pool_recipes,
)

if TYPE_CHECKING:
    from pipelines.study.worker import Worker


KINDS = ("fisher", "gram")
LABELS = ("sampled", "data")
FILE = "statistics.safetensors"
VERSION = 1
"""Part of every key: raised when the same settings would give other numbers."""


class Collected(OpenCheckpoint):
    """A statistic as a checkpoint of its own: one tensor a parameter, by the parameter's name."""

    def __init__(self, folder: str):
        super().__init__(folder, Path(folder), [Path(folder) / FILE])
        self._aliases = Entry("statistics", self.folder.name, self.folder).describe().get("aliases", {})

    @cached_property
    def _entries(self) -> dict[str, tuple[TensorInfo, Place]]:
        own = read_safetensors_header(self.files[0])
        return {**own, **{name: own[owner] for name, owner in self._aliases.items()}}


def open_statistics(source: Source) -> Collected:
    """Open a collected statistic; tensors are mapped when they are asked for."""
    return Collected(source.path)


@dataclass(frozen=True)
class Subject:
    """An expert, and what it is looked at on: its task, or None where only the store may know one."""

    name: str
    expert: Source
    task: Task | None = None


def check_collect(collect: Collect) -> None:
    """UserError for settings that mean nothing."""
    for kind in collect.kinds:
        if kind not in KINDS:
            raise UserError(f"no statistic is called {kind!r}", where="collect.kinds", do=nearest(kind, KINDS))
    if collect.labels not in LABELS:
        raise UserError(
            f"no labels are called {collect.labels!r}", where="collect.labels", do=nearest(collect.labels, LABELS)
        )
    if collect.examples < 1:
        raise UserError("a statistic takes an example or more", where="collect.examples", do="give it 1 or more")


def find_statistic(kind: str, subject: Subject, access: Access, collect: Collect) -> Source | Unmade | None:
    """The statistic of an expert where the store holds it, or what has to be collected.

    An expert whose task is not known takes the one in the store, whatever task and settings that was collected with;
    None where there is none. Raises UserError where there are several.
    """
    if subject.task is not None:
        key = _key(kind, subject.expert, subject.task, access, collect)
        found = access.store.has("statistics", key)
        return _source(key, access) if found else Unmade(f"{kind} statistics of {subject.name}", key)
    entries = {e.key: e.describe() for e in access.store.entries("statistics")}
    own = {
        k: a
        for k, a in entries.items()
        if (a["statistic"], a["expert"]["fingerprint"]) == (kind, subject.expert.fingerprint)
    }
    chosen = [key for key, about in own.items() if collect.task in (None, about["task"])]
    if len(chosen) > 1:
        tasks = ", ".join(f"{about['task']} ({about['examples']} examples, {key[:8]})" for key, about in own.items())
        do = "choose with collect.task=NAME, or remove some from the store"
        raise UserError(
            f"the store holds several {kind} statistics of {subject.name}: on {tasks}", where="collect.task", do=do
        )
    return _source(chosen[0], access) if chosen else None


def statistics_for(
    method: str, subjects: Sequence[Subject], access: Access, collect: Collect
) -> list[Source | Unmade | None]:
    """What a method needs of each expert, in their order; empty for a method that needs nothing."""
    from mergeopt_core.merging.mergekit_api import describe

    kind = describe(method).statistics
    return [find_statistic(kind, subject, access, collect) for subject in subjects] if kind else []


def need_statistics(method: str, subjects: Sequence[Subject], access: Access, collect: Collect) -> tuple[Source, ...]:
    """What a method needs of each expert; UserError naming the command that collects what the store lacks."""
    found = statistics_for(method, subjects, access, collect)
    for subject, source in zip(subjects, found):
        if not isinstance(source, Source):
            do = f"collect them: mergebench statistics experts=[{subject.expert.path}] task=…"
            raise UserError(
                f"{method} needs statistics of {subject.name} that the store does not hold", where="method", do=do
            )
    return tuple(source for source in found if isinstance(source, Source))


def needed_kinds(methods: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """The statistics that a study's methods need."""
    from mergeopt_core.merging.mergekit_api import describe

    kinds = [describe(str(method.get("method"))).statistics for method in methods.values()]
    return [kind for kind in dict.fromkeys(kinds) if kind]


def pool_subjects(pool: Pool, access: Access) -> list[Subject]:
    """A pool's experts with the tasks that they were trained on, once all of them are made."""
    base = find_base(pool.base, access)
    found = [Subject(label, find_checkpoint(checkpoint, access)) for label, checkpoint in pool.experts.items()]
    for label, recipe in pool_recipes(pool).items():
        expert = find_expert(recipe, base, access)
        assert isinstance(expert, Source), f"{expert.what} is not made yet"
        found.append(Subject(label, expert, recipe.task))
    return found


def make_statistics(
    subjects: Sequence[tuple[Source, Subject]],
    kinds: Sequence[str],
    access: Access,
    config: Config,
    progress: Progress = SILENT,
) -> list[Entry]:
    """Collect what the store lacks of the pairs of base and subject; returns all entries, in order.

    A subject without a task is left out. Raises UserError for a task without data and for numbers that are not finite.
    """
    collect, made = config.collect, []
    todo = [(base, s, kind) for base, s in subjects for kind in kinds if s.task is not None]
    missing = sum(isinstance(find_statistic(kind, s, access, collect), Unmade) for _, s, kind in todo)
    worker: Worker | None = None
    with progress.step("statistics", missing) as step:
        for base, subject, kind in todo:
            found = find_statistic(kind, subject, access, collect)
            if isinstance(found, Unmade) and found.key is not None:
                worker = _collect_once(kind, base, subject, found.key, worker, access, config)
                step.advance(1, expert=subject.name, statistic=kind)
            key = found.key if isinstance(found, Unmade) else found.fingerprint if found else None
            assert key is not None
            made.append(access.store.entry("statistics", key))
    return made


def _collect_once(
    kind: str, base: Source, subject: Subject, key: str, worker: Worker | None, access: Access, config: Config
) -> Worker:
    """Collect a statistic unless another process did meanwhile; returns the worker that is kept for the next one."""
    from pipelines.study.collect import collect_statistic
    from pipelines.study.worker import Worker

    worker = worker or Worker(access, config.executor)
    with access.store.claim("statistics", key):
        if not access.store.has("statistics", key):
            collect_statistic(kind, base, subject, key, worker, config.collect)
    return worker


def _key(kind: str, expert: Source, task: Task, access: Access, collect: Collect) -> str:
    from pipelines.finetune import task_fingerprint

    told = {
        k: v for k, v in dataclasses.asdict(task).items() if k not in ("name", "path", "skill", "epochs", "finetuning")
    }
    return content_key(
        {
            "version": VERSION,
            "statistic": kind,
            "expert": expert.fingerprint,
            "data": task_fingerprint(task, access.datasets, access.online),
            "task": told,
            "examples": collect.examples,
            "labels": collect.labels if kind == "fisher" else None,
            "seed": collect.seed,
        }
    )


def _source(key: str, access: Access) -> Source:
    return Source(str(access.store.folder("statistics", key)), key)
