"""A study laid out: which models of which pools are scored, before anything is spent.

A study is a pool (or several), a sampler of expert subsets, methods and a suite. ``lay_out`` turns the configuration
into ``Planned`` trials: their checkpoints where these exist, or the name of what has to be made first.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from conf.errors import UserError, nearest
from conf.schema import Config, Pool, Suite
from mergeopt_core.merging.mergekit_api import check_parameters, describe, names
from pipelines.collect import Subject, check_collect, find_statistic, make_statistics, needed_kinds, pool_subjects
from pipelines.evaluate import suite_fingerprint
from pipelines.merge.recipe import Recipe
from pipelines.progress import SILENT, Progress
from pipelines.sources import (
    Access,
    Source,
    Unmade,
    find_base,
    find_checkpoint,
    find_expert,
    make_base,
    make_expert,
    pool_recipes,
)
from pipelines.subsets import draw_orders, draw_subsets
from pipelines.trial import Trial

KEEP = ("none", "best", "all")
"""Which merged checkpoints a study leaves on disk."""

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
    trial: Trial | None
    waits_for: tuple[str, ...] = ()


@dataclass
class Layout:
    """All models of a study, what must be made first, and what was left out."""

    planned: list[Planned] = field(default_factory=list)
    unmade: list[Unmade] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    references: dict[str, str] = field(default_factory=dict)
    """Pools that are compared with a pool of their choice."""

    @property
    def trials(self) -> list[Trial]:
        """The distinct trials, in order."""
        return list({p.trial.key: p.trial for p in self.planned if p.trial is not None}.values())


def access_of(config: Config) -> Access:
    """How this configuration reaches checkpoints, data sets and the store."""
    from pipelines.store import Store

    return Access(Store(config.store), config.datasets, config.online, config.allow_pickle)


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
    for label, method in config.methods.items():
        check_method(method, where=f"methods.{label}")


def suites(config: Config, pool: Pool) -> list[Suite]:
    """What a pool is scored on: its own suite or the study's, then the same suite under each further attack."""
    suite = pool.suite or config.suite
    attacks = dict.fromkeys([suite.attack, *config.attacks])
    return [dataclasses.replace(suite, attack=attack) for attack in attacks]


def check_method(
    method: Mapping[str, Any], where: str = "method", experts: int | None = None
) -> tuple[str, dict[str, Any]]:
    """A method's registered name and its complete parameters; UserError for a name or value that does not exist."""
    parameters = dict(method)
    name = parameters.pop("method", None)
    if name not in names():
        raise UserError(f"no merge method is called {name!r}", where=f"{where}.method", do=nearest(str(name), names()))
    info = describe(name)
    try:
        usual = min(max(info.min_experts, 2), info.max_experts or 2)
        return name, check_parameters(name, parameters, experts or usual)
    except (ValueError, TypeError) as error:
        raise UserError(str(error), where=where, do=f"see `mergebench methods {name}`") from None


def make_pools(config: Config, access: Access, progress: Progress = SILENT) -> None:
    """Make every base and expert of the study that the store does not hold yet."""
    bases = {name: make_base(pool.base, access, progress) for name, pool in config.pools.items()}
    recipes = [(name, recipe) for name, pool in config.pools.items() for recipe in pool_recipes(pool).values()]
    unmade = [(name, r) for name, r in recipes if isinstance(find_expert(r, bases[name], access), Unmade)]
    if unmade:
        with progress.step("experts", len(unmade)) as step:
            for name, recipe in unmade:
                make_expert(recipe, bases[name], access, progress)
                step.advance(1, expert=f"{recipe.name} of {name}")
    if kinds := needed_kinds(config.methods):
        subjects = [(bases[name], s) for name, pool in config.pools.items() for s in pool_subjects(pool, access)]
        make_statistics(subjects, kinds, access, config, progress)


def lay_out(config: Config, access: Access) -> Layout:
    """The study's models in the order in which they run: bases and experts, then merges, pool by pool."""
    layout = Layout(references={name: pool.reference for name, pool in config.pools.items() if pool.reference})
    for name, pool in config.pools.items():
        scored = [(suite, suite_fingerprint(suite, config.datasets)) for suite in suites(config, pool)]
        base, experts = _sources(name, pool, access, layout)
        collected = _statistics(name, pool, experts, config, access, layout)
        for model in _models(list(experts), config, layout):
            layout.planned += [_planned(name, model, base, experts, collected, *suite) for suite in scored]
    return layout


@dataclass(frozen=True)
class _Model:
    """A model of a pool, before it is known where its weights are."""

    kind: str
    label: str
    experts: tuple[str, ...] = ()
    recipe: Recipe | None = None


def _sources(
    name: str, pool: Pool, access: Access, layout: Layout
) -> tuple[Source | Unmade, dict[str, Source | Unmade]]:
    """The pool's base and experts; what is not made yet is noted in the layout."""
    base = find_base(pool.base, access)
    experts: dict[str, Source | Unmade] = {
        label: find_checkpoint(found, access) for label, found in pool.experts.items()
    }
    experts |= {label: find_expert(recipe, base, access) for label, recipe in pool_recipes(pool).items()}
    if isinstance(base, Unmade) and base not in layout.unmade:
        layout.unmade.append(base)
    layout.unmade += [Unmade(f"{e.what} of {name}", e.key) for e in experts.values() if isinstance(e, Unmade)]
    return base, experts


def _statistics(
    name: str, pool: Pool, experts: Mapping[str, Source | Unmade], config: Config, access: Access, layout: Layout
) -> dict[str, Collected]:
    """By kind, what the study's methods need of each expert's data; None where it is not known how to make it."""
    tasks = {label: recipe.task for label, recipe in pool_recipes(pool).items()}
    found: dict[str, Collected] = {}
    for kind in needed_kinds(config.methods):
        found[kind] = {}
        for label, expert in experts.items():
            what = Unmade(f"{kind} statistics of {label}", None)
            subject = Subject(label, expert, tasks.get(label)) if isinstance(expert, Source) else None
            found[kind][label] = find_statistic(kind, subject, access, config.collect) if subject else what
        unmade = [part for part in found[kind].values() if isinstance(part, Unmade)]
        layout.unmade += [Unmade(f"{part.what} of {name}", part.key) for part in unmade]
    return found


def _models(experts: list[str], config: Config, layout: Layout) -> Iterator[_Model]:
    """Base, experts and merges of a pool: every method on the same subsets, in orders and draws where these matter."""
    if config.sampler.base:
        yield _Model("base", "base")
    if config.sampler.singles:
        yield from (_Model("expert", label, (label,)) for label in experts)
    subsets = draw_subsets(experts, config.sampler)
    for label, method in config.methods.items():
        info = describe(str(method.get("method")))
        fits = [s for s in subsets if info.min_experts <= len(s) <= (info.max_experts or len(s))]
        note = f"{label} does not take every subset size: {len(subsets) - len(fits)} of {len(subsets)} left out"
        if len(fits) < len(subsets) and note not in layout.notes:
            layout.notes.append(note)
        for subset in fits:
            registered, parameters = check_method(method, f"methods.{label}", len(subset))
            for order in draw_orders(subset, config.sampler) if info.ordered else [subset]:
                for draw in range(config.sampler.draws if info.random else 1):
                    seed = config.seed + draw
                    recipe = Recipe("", (), registered, parameters, seed, config.dtype, config.vocab, config.strict)
                    yield _Model("merge", label, order, recipe)


def _planned(
    pool: str,
    model: _Model,
    base: Source | Unmade,
    experts: Mapping[str, Source | Unmade],
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
    if missing:
        return Planned(pool, model.kind, model.label, model.experts, parameters, None, missing)
    sources = [part for part in parts if isinstance(part, Source)]
    statistics = () if None in needed else tuple(part for part in needed if isinstance(part, Source))
    if recipe is not None:
        recipe = dataclasses.replace(recipe, base=sources[0].path, experts=tuple(s.path for s in sources[1:]))
    random = recipe is not None and describe(recipe.method).random
    trial = Trial(
        model.kind, sources[0], tuple(sources[1:]), suite, fingerprint, recipe, random, model.experts, statistics
    )
    return Planned(pool, model.kind, model.label, model.experts, parameters, trial)
