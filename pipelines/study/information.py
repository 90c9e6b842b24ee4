"""Information of experts that some merge methods need: collected on a task, kept in the store, found by trials.

An entry of kind ``statistics`` holds the diagonal Fisher information (``fisher``) or the inputs' Gram matrices
(``gram``) of one expert on one task. Its key is over the expert's weights, the data and the settings, so that a plan
knows it before it is collected.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from conf.errors import UserError, nearest
from conf.schema import Collect, Pool, Task
from mergeopt_core.merging.mergekit_api import describe
from pipelines.checkpoints.checkpoint import OpenCheckpoint
from pipelines.checkpoints.headers import Place, TensorInfo, read_safetensors_header
from pipelines.store.store import Entry, content_key
from pipelines.study.sources import (
    Access,
    Source,
    Unmade,
    fields_without,
    find_base,
    find_checkpoint,
    find_expert,
    pool_recipes,
)

KINDS = ("fisher", "gram")
LABELS = ("sampled", "data")
FILE = "statistics.safetensors"
VERSION = 1
"""Part of every key: raised when the same settings would give other numbers."""


class Information(OpenCheckpoint):
    """Collected information as a checkpoint of its own: one tensor per parameter, by the parameter's name."""

    def __init__(self, source: Source):
        super().__init__(source.path, Path(source.path), [Path(source.path) / FILE])
        self._aliases = Entry("statistics", self.folder.name, self.folder).describe().get("aliases", {})

    @cached_property
    def _entries(self) -> dict[str, tuple[TensorInfo, Place]]:
        own = read_safetensors_header(self.files[0])
        return {**own, **{name: own[owner] for name, owner in self._aliases.items()}}


@dataclass(frozen=True)
class Expert:
    """An expert and the task that it was trained on; None where only the store may know one."""

    name: str
    source: Source
    task: Task | None = None


def check_collect(collect: Collect) -> None:
    """UserError for settings that mean nothing."""
    for kind in collect.kinds:
        if kind not in KINDS:
            raise UserError(f"no statistic is called {kind!r}", where="collect.kinds", do=nearest(kind, KINDS))
    if collect.labels not in LABELS:
        what = f"no labels are called {collect.labels!r}"
        raise UserError(what, where="collect.labels", do=nearest(collect.labels, LABELS))
    if collect.examples < 1:
        raise UserError("a statistic takes an example or more", where="collect.examples", do="give it 1 or more")


def needed_kinds(methods: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """The kinds of information that a study's methods need."""
    kinds = [describe(str(method.get("method"))).statistics for method in methods.values()]
    return [kind for kind in dict.fromkeys(kinds) if kind]


def pool_experts(pool: Pool, access: Access) -> list[Expert]:
    """A pool's experts with the tasks that they were trained on, once all of them are made."""
    base = find_base(pool.base, access)
    experts = [Expert(label, find_checkpoint(found, access)) for label, found in pool.experts.items()]
    for label, recipe in pool_recipes(pool).items():
        source = find_expert(recipe, base, access)
        assert isinstance(source, Source), f"{source.what} is not made yet"
        experts.append(Expert(label, source, recipe.task))
    return experts


def information_key(kind: str, expert: Expert, access: Access, collect: Collect) -> str:
    """Content key: the expert's weights, its data and the settings that change the numbers."""
    assert expert.task is not None
    return content_key(
        {
            "version": VERSION,
            "statistic": kind,
            "expert": expert.source.fingerprint,
            "data": access.data_fingerprint(expert.task),
            "task": fields_without(expert.task, "name", "path", "skill", "images", "epochs", "finetuning"),
            "examples": collect.examples,
            "labels": collect.labels if kind == "fisher" else None,
            "seed": collect.seed,
        }
    )


def find_information(kind: str, expert: Expert, access: Access, collect: Collect) -> Source | Unmade | None:
    """The information of an expert where the store holds it, or what has to be collected.

    An expert whose task is not known takes the one in the store, whatever task and settings that was collected with;
    None where there is none. Raises UserError where there are several.
    """
    if expert.task is not None:
        key = information_key(kind, expert, access, collect)
        if not access.store.has("statistics", key, whole=True):
            return Unmade(f"{kind} statistics of {expert.name}", key)
        return Source(str(access.store.folder("statistics", key)), key)
    wanted = (kind, expert.source.fingerprint)
    stored = dict(access.store.read_all("statistics"))
    own = {e: about for e, about in stored.items() if (about["statistic"], about["expert"]["fingerprint"]) == wanted}
    chosen = [entry for entry, about in own.items() if collect.task in (None, about["task"])]
    if len(chosen) > 1:
        tasks = ", ".join(f"{a['task']} ({a['examples']} examples, {entry.key[:8]})" for entry, a in own.items())
        what = f"the store holds several {kind} statistics of {expert.name}: on {tasks}"
        do = "choose with collect.task=NAME, or remove some from the store"
        raise UserError(what, where="collect.task", do=do)
    sound = [entry for entry in chosen if access.store.has("statistics", entry.key, whole=True)]
    return Source(str(sound[0].folder), sound[0].key) if sound else None


def need_information(method: str, experts: Sequence[Expert], access: Access, collect: Collect) -> tuple[Source, ...]:
    """What a method needs of each expert, in their order; empty for a method that needs nothing.

    Raises UserError, naming the command that collects it, for what the store lacks.
    """
    kind, found = describe(method).statistics, []
    for expert in experts if kind else ():
        source = find_information(str(kind), expert, access, collect)
        if not isinstance(source, Source):
            what = f"{method} needs statistics of {expert.name} that the store does not hold"
            do = f"collect them: mergebench statistics experts=[{expert.source.path}] task=…"
            raise UserError(what, where="method", do=do)
        found.append(source)
    return tuple(found)
