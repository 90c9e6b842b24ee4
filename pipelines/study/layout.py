"""A study laid out: which models of which pools are scored, before anything is spent.

A study is a pool (or several), a sampler of expert subsets, methods and a suite. ``lay_out`` turns the configuration
into ``Planned`` trials: their checkpoints where these exist, or the name of what has to be made first.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from conf.errors import UserError, nearest
from conf.schema import Config, Pool, Suite
from mergeopt_core.merging.mergekit_api import check_parameters, describe, names
from pipelines.evaluate import suite_fingerprint
from pipelines.merge.recipe import Recipe
from pipelines.progress import SILENT, Progress
from pipelines.study.information import (
    Subject,
    check_collect,
    find_statistic,
    make_statistics,
    needed_kinds,
    pool_subjects,
)
from pipelines.study.sources import (
    Access,
    Lost,
    Source,
    Unmade,
    find_base,
    find_checkpoint,
    find_expert,
    make_base,
    make_expert,
    pool_recipes,
)
from pipelines.study.trial import Trial, draw_orders, draw_subsets, left_out, takes

Part = Source | Unmade | Lost
"""A checkpoint: there (or on the hub), to be made, or not to be had."""

Collected = dict[str, Source | Unmade | None]
"""A statistic by expert: there, to be made, or unknown."""


@dataclass(frozen=True)
class Planned:
    """One model of a study and, where its weights exist, the trial that scores it."""

    pool: str
    kind: str
    label: str
    """base, the expert's name, or the method's name in the study."""
    experts: tuple[str, ...]
    parameters: Mapping[str, Any]
    suite: Suite
    trial: Trial | None
    waits_for: tuple[str, ...] = ()
    lost: bool = False
    """Whether a checkpoint of it cannot be had."""
    folders: tuple[str, ...] = ()
    """Folders of the checkpoints that are read for it, as far as these exist."""


@dataclass
class Layout:
    """All models of a study, what must be made first, and what was left out."""

    planned: list[Planned] = field(default_factory=list)
    unmade: list[Unmade] = field(default_factory=list)
    lost: list[Lost] = field(default_factory=list)
    """Checkpoints that cannot be had."""
    notes: list[str] = field(default_factory=list)
    """What is left out where a part still runs, and why."""
    impossible: list[tuple[str, str, str]] = field(default_factory=list)
    """What was asked for and cannot run at all: where, what, what to do."""
    references: dict[str, str] = field(default_factory=dict)
    """Pools that are compared with a pool of their choice."""

    @property
    def trials(self) -> list[Trial]:
        """The distinct trials, in order."""
        return list({p.trial.key: p.trial for p in self.planned if p.trial is not None}.values())


def access_of(config: Config) -> Access:
    """How this configuration reaches checkpoints, data sets and the store."""
    from pipelines.store.store import Store

    return Access(Store(config.store), config.datasets, config.online, config.allow_pickle)


def suites(config: Config, pool: Pool) -> list[Suite]:
    """What a pool is scored on: its own suite or the study's, then the same suite under each further attack."""
    suite = pool.suite or config.suite
    attacks = dict.fromkeys([suite.attack, *config.attacks])
    return [dataclasses.replace(suite, attack=attack) for attack in attacks]


def make_pools(config: Config, access: Access, progress: Progress = SILENT) -> None:
    """Make every base and expert of the study that the store does not hold yet."""
    bases = {name: make_base(pool.base, access, progress) for name, pool in config.pools.items()}
    recipes = [(name, recipe) for name, pool in config.pools.items() for recipe in pool_recipes(pool).values()]
    unmade = [(name, r) for name, r in recipes if isinstance(find_expert(r, bases[name], access), Unmade)]
    if unmade:
        with progress.step("experts", len(unmade)) as step:
            for name, recipe in unmade:
                make_expert(recipe, bases[name], access, progress, config.executor)
                step.advance(1, expert=f"{recipe.name} of {name}")
    if kinds := needed_kinds(config.methods):
        subjects = [(bases[name], s) for name, pool in config.pools.items() for s in pool_subjects(pool, access)]
        access.fetch(progress, [subject.expert.path for _, subject in subjects])
        make_statistics(subjects, kinds, access, config, progress)


def lay_out(config: Config, access: Access) -> Layout:
    """The study's models in the order in which they run: bases and experts, then merges, pool by pool."""
    _look_ahead(config, access)
    layout = Layout(references={name: pool.reference for name, pool in config.pools.items() if pool.reference})
    layout.impossible, layout.notes = left_out(config)
    for name, pool in config.pools.items():
        scored = [(suite, suite_fingerprint(suite, config.datasets)) for suite in suites(config, pool)]
        base, experts = _sources(name, pool, access, layout)
        collected = _statistics(name, pool, experts, config, access, layout)
        for model in _models(list(experts), config):
            layout.planned += [_planned(name, model, base, experts, collected, *suite) for suite in scored]
    return layout


@dataclass(frozen=True)
class _Model:
    """A model of a pool, before it is known where its weights are."""

    kind: str
    label: str
    experts: tuple[str, ...] = ()
    recipe: Recipe | None = None


def _look_ahead(config: Config, access: Access) -> None:
    """Ask the hub for all checkpoints of the study side by side."""
    bases = [(pool.base.path, pool.base.revision) for pool in config.pools.values()]
    experts = [(e.path, e.revision) for pool in config.pools.values() for e in pool.experts.values()]
    access.look_ahead([*bases, *experts])


def _sources(name: str, pool: Pool, access: Access, layout: Layout) -> tuple[Part, dict[str, Part]]:
    """The pool's base and experts; what is not made yet or cannot be had is noted in the layout."""
    base = _or_lost(f"base of {name}", lambda: find_base(pool.base, access))
    experts: dict[str, Part] = {
        label: _or_lost(f"{label} of {name}", partial(find_checkpoint, found, access))
        for label, found in pool.experts.items()
    }
    for label, recipe in pool_recipes(pool).items():
        if isinstance(base, Lost):
            experts[label] = base
        else:
            experts[label] = _or_lost(f"{label} of {name}", partial(find_expert, recipe, base, access))
    if isinstance(base, Unmade) and base not in layout.unmade:
        layout.unmade.append(base)
    layout.unmade += [Unmade(f"{e.what} of {name}", e.key) for e in experts.values() if isinstance(e, Unmade)]
    layout.lost += [part for part in dict.fromkeys((base, *experts.values())) if isinstance(part, Lost)]
    return base, experts


def _or_lost(what: str, find: Callable[[], Source | Unmade]) -> Part:
    try:
        return find()
    except UserError as error:
        return Lost(what, error)


def _statistics(
    name: str, pool: Pool, experts: Mapping[str, Part], config: Config, access: Access, layout: Layout
) -> dict[str, Collected]:
    """By kind, what the study's methods need of each expert's data; None where it is not known how to make it."""
    tasks = {label: recipe.task for label, recipe in pool_recipes(pool).items()}
    found: dict[str, Collected] = {}
    for kind in needed_kinds(config.methods):
        found[kind] = {}
        for label, expert in experts.items():
            if isinstance(expert, Lost):
                found[kind][label] = None
                continue
            what = Unmade(f"{kind} statistics of {label}", None)
            subject = Subject(label, expert, tasks.get(label)) if isinstance(expert, Source) else None
            found[kind][label] = find_statistic(kind, subject, access, config.collect) if subject else what
        unmade = [part for part in found[kind].values() if isinstance(part, Unmade)]
        layout.unmade += [Unmade(f"{part.what} of {name}", part.key) for part in unmade]
    return found


def _models(experts: list[str], config: Config) -> Iterator[_Model]:
    """Base, experts and merges of a pool: every method on the same subsets, in orders and draws where these matter."""
    if config.sampler.base:
        yield _Model("base", "base")
    if config.sampler.singles:
        yield from (_Model("expert", label, (label,)) for label in experts)
    subsets = draw_subsets(experts, config.sampler)
    for label, method in config.methods.items():
        info = describe(str(method.get("method")))
        fits = [s for s in subsets if takes(info, len(s))]
        for subset in fits:
            registered, parameters = check_method(method, f"methods.{label}", subset, experts)
            for order in draw_orders(subset, config.sampler) if info.ordered else [subset]:
                for draw in range(config.sampler.draws if info.random else 1):
                    seed = config.seed + draw
                    recipe = Recipe("", (), registered, parameters, seed, config.dtype, config.vocab, config.strict)
                    yield _Model("merge", label, order, recipe)


def _planned(
    pool: str,
    model: _Model,
    base: Part,
    experts: Mapping[str, Part],
    collected: Mapping[str, Collected],
    suite: Suite,
    fingerprint: dict[str, Any],
) -> Planned:
    """The trial of a model on a suite, or what it waits for."""
    recipe = model.recipe
    kind = describe(recipe.method).statistics if recipe else None
    parts = [base, *(experts[e] for e in model.experts)]
    needed = [collected[kind][e] for e in model.experts] if kind else []
    parameters = dict(recipe.parameters) if recipe else {}
    missing = tuple(part.what for part in (*parts, *needed) if isinstance(part, Unmade))
    lost = any(isinstance(part, Lost) for part in parts)
    sources = [part for part in parts if isinstance(part, Source)]
    folders = tuple(source.path for source in sources)
    if missing or lost:
        return Planned(pool, model.kind, model.label, model.experts, parameters, suite, None, missing, lost, folders)
    statistics = () if None in needed else tuple(part for part in needed if isinstance(part, Source))
    if recipe is not None:
        recipe = dataclasses.replace(recipe, base=sources[0].path, experts=tuple(s.path for s in sources[1:]))
    random = recipe is not None and describe(recipe.method).random
    trial = Trial(
        model.kind, sources[0], tuple(sources[1:]), suite, fingerprint, recipe, random, model.experts, statistics
    )
    return Planned(pool, model.kind, model.label, model.experts, parameters, suite, trial, folders=folders)


KEEP = ("none", "best", "all")
"""Which merged checkpoints a study leaves on disk."""


def check_study(config: Config) -> None:
    """What can be known of a study before any file is opened."""
    if not config.pools:
        raise UserError(
            "there is no study to run", where="pools is empty", do="choose one, such as +experiment=quickstart"
        )
    if not config.methods and not (config.sampler.base or config.sampler.singles):
        raise UserError("the study scores nothing", where="methods", do="add a method: +method@methods.ties=ties")
    for name, pool in config.pools.items():
        both = set(pool.experts) & set(pool.tasks)
        if both:
            raise UserError(
                f"pool {name} names {sorted(both)[0]!r} among experts and tasks", where=f"pools.{name}", do="rename one"
            )
        if not pool.experts and not pool.tasks:
            raise UserError(f"pool {name} has no experts", where=f"pools.{name}", do="give it experts or tasks")
        if pool.reference is not None and pool.reference not in config.pools:
            where = f"pools.{name}.reference"
            raise UserError(
                f"no pool is called {pool.reference!r}", where=where, do=nearest(pool.reference, config.pools)
            )
    if config.keep not in KEEP:
        raise UserError(f"keep={config.keep} is no choice", where="keep", do=nearest(config.keep, KEEP))
    check_collect(config.collect)
    if config.sampler.draws < 1:
        raise UserError("a random method merges at least once", where="sampler.draws", do="give it 1 or more")
    sizes = config.sampler.sizes or [len(pool.experts) + len(pool.tasks) for pool in config.pools.values()]
    for label, method in config.methods.items():
        for size in _fitting(method, sizes):
            check_method(method, where=f"methods.{label}", experts=size)


def _fitting(method: Mapping[str, Any], sizes: Iterable[int]) -> Sequence[int | None]:
    """The numbers of experts that a method takes; [None] where there is none, or no such method."""
    if method.get("method") not in names():
        return [None]
    info = describe(str(method["method"]))
    return [size for size in sizes if info.min_experts <= size <= (info.max_experts or size)] or [None]


def check_method(
    method: Mapping[str, Any],
    where: str = "method",
    experts: int | Sequence[str] | None = None,
    known: Sequence[str] = (),
) -> tuple[str, dict[str, Any]]:
    """A method's registered name and its complete parameters; UserError for a name or value that does not exist.

    Where ``experts`` names them, a mapping from expert (or the last part of its path) to value becomes a list in their
    order; it may also name further ``known`` experts.
    """
    parameters = dict(method)
    name = parameters.pop("method", None)
    if name not in names():
        raise UserError(f"no merge method is called {name!r}", where=f"{where}.method", do=nearest(str(name), names()))
    info = describe(name)
    try:
        if not isinstance(experts, int | None):
            for parameter in info.parameters:
                if parameter.per_expert and isinstance(parameters.get(parameter.name), Mapping):
                    parameters[parameter.name] = _in_order(parameter.name, parameters[parameter.name], experts, known)
            experts = len(experts)
        usual = min(max(info.min_experts, 2), info.max_experts or 2)
        return name, check_parameters(name, parameters, experts or usual)
    except (ValueError, TypeError) as error:
        raise UserError(str(error), where=where, do=f"see `mergebench methods {name}`") from None


def _in_order(parameter: str, values: Mapping[str, Any], experts: Sequence[str], known: Sequence[str]) -> list[Any]:
    """The values of a mapping in the experts' order; ValueError for an expert or a value that has no other half."""
    keys = {expert: next((k for k in (expert, Path(expert).name) if k in values), None) for expert in experts}
    for expert, key in keys.items():
        if key is None:
            raise ValueError(f"{parameter} gives no value for expert {expert}")
    for key in values:
        if key not in keys.values() and key not in known:
            raise ValueError(f"{parameter} gives a value for {key}, which is no expert: {nearest(key, experts)}")
    return [values[str(keys[expert])] for expert in experts]
