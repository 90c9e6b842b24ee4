"""A study laid out: which models of which pools are scored, before anything is spent.

A study is a pool (or several), a sampler of expert subsets, methods and a suite. ``lay_out`` turns the configuration
into ``Planned`` trials: their checkpoints where these exist, or the name of what has to be made first.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from conf.errors import UserError, nearest
from conf.schema import Config, Pool, Suite
from mergeopt_core.merging.mergekit_api import describe, names
from pipelines.evaluate import suite_fingerprint
from pipelines.merge.recipe import Recipe
from pipelines.store.store import model_title
from pipelines.study.information import Expert, check_collect, find_information, needed_kinds
from pipelines.study.recipes import check_method, draw_orders, draw_subsets, left_out, make_recipe, takes
from pipelines.study.sources import (
    Access,
    Lost,
    Source,
    Unmade,
    find_base,
    find_checkpoint,
    find_expert,
    pool_recipes,
    runs,
)
from pipelines.study.trial import Trial

KEEP = ("none", "best", "all")
"""Which merged checkpoints a study leaves on disk."""

Part = Source | Unmade | Lost
"""A checkpoint: there (or on the hub), to be made, or not to be had."""


@dataclass(frozen=True)
class Planned:
    """One model of a study and, where its weights exist, the trial that scores it."""

    pool: str
    kind: str
    label: str
    """base, the expert's name, or the method's name in the study."""
    experts: tuple[str, ...]
    run: int
    """Place of the experts' training seed among the pool's."""
    parameters: Mapping[str, Any]
    suite: Suite
    trial: Trial | None = None
    lost: bool = False
    """Whether a checkpoint of it cannot be had."""
    folders: tuple[str, ...] = ()
    """Folders of the checkpoints that are read for it, as far as these exist."""

    @property
    def title(self) -> str:
        """The model's name in tables."""
        return model_title("merge", self.experts, self.label) if self.kind == "merge" else self.label


@dataclass
class StudyLayout:
    """All models of a study, what must be made first, and what was left out."""

    planned: list[Planned] = field(default_factory=list)
    unmade: list[Unmade] = field(default_factory=list)
    lost: list[Lost] = field(default_factory=list)
    """Checkpoints that cannot be had."""
    notes: list[str] = field(default_factory=list)
    """What is left out where a part still runs, and why."""
    impossible: list[UserError] = field(default_factory=list)
    """What was asked for and cannot run at all."""
    references: dict[str, str] = field(default_factory=dict)
    """Pools that are compared with a pool of their choice."""

    @property
    def trials(self) -> list[Trial]:
        """The distinct trials, in order."""
        return list({p.trial.key: p.trial for p in self.planned if p.trial is not None}.values())


def check_study(config: Config) -> None:
    """UserError for what can be known to be wrong with a study before any file is opened."""
    if not config.pools:
        do = "choose one, such as +experiment=quickstart"
        raise UserError("there is no study to run", where="pools is empty", do=do)
    if not config.methods and not (config.sampler.base or config.sampler.singles):
        raise UserError("the study scores nothing", where="methods", do="add a method: +method@methods.ties=ties")
    for name, pool in config.pools.items():
        where = f"pools.{name}"
        if both := sorted(set(pool.experts) & set(pool.tasks)):
            raise UserError(f"pool {name} names {both[0]!r} among experts and tasks", where=where, do="rename one")
        if pool.seeds and pool.experts:
            what = f"pool {name} has experts that were found, which are of one training each"
            raise UserError(what, where=f"{where}.seeds", do="leave seeds out, or give the pool tasks alone")
        if not pool.experts and not pool.tasks:
            raise UserError(f"pool {name} has no experts", where=where, do="give it experts or tasks")
        if pool.reference is not None and pool.reference not in config.pools:
            do = nearest(pool.reference, config.pools)
            raise UserError(f"no pool is called {pool.reference!r}", where=f"{where}.reference", do=do)
    if config.keep not in KEEP:
        raise UserError(f"keep={config.keep} is no choice", where="keep", do=nearest(config.keep, KEEP))
    check_collect(config.collect)
    if config.sampler.draws < 1:
        raise UserError("a random method merges at least once", where="sampler.draws", do="give it 1 or more")
    sizes = config.sampler.sizes or [len(pool.experts) + len(pool.tasks) for pool in config.pools.values()]
    for label, method in config.methods.items():
        known = method.get("method") in names()
        fitting = [size for size in sizes if known and takes(describe(str(method["method"])), size)]
        for size in fitting or (None,):
            check_method(method, f"methods.{label}", size)


def suites(config: Config, pool: Pool) -> list[Suite]:
    """What a pool is scored on: its own suite or the study's, then the same suite under each further attack."""
    suite = pool.suite or config.suite
    attacks = dict.fromkeys([suite.attack, *config.attacks])
    return [dataclasses.replace(suite, attack=attack) for attack in attacks]


def lay_out(config: Config, access: Access) -> StudyLayout:
    """The study's models in the order in which they run: bases and experts, then merges, pool by pool."""
    found: list[Any] = [c for p in config.pools.values() for c in (p.base, *p.experts.values())]
    access.look_ahead([(checkpoint.path, checkpoint.revision) for checkpoint in found])
    layout = StudyLayout(references={name: pool.reference for name, pool in config.pools.items() if pool.reference})
    layout.impossible, layout.notes = left_out(config)
    for name, pool in config.pools.items():
        scored = [(suite, suite_fingerprint(suite, config.datasets)) for suite in suites(config, pool)]
        for place, run in enumerate(runs(pool)):
            parts = _parts(f"{name} (seed {run.seed})" if pool.seeds else name, run, config, access, layout)
            for model in _models(list(parts.experts), config):
                if model[0] != "base" or place == 0:  # there is one base
                    layout.planned += [_planned(name, place, *model, parts, *suite) for suite in scored]
    return layout


@dataclass(frozen=True)
class _Parts:
    """What a pool's models are made of; information by kind and expert, None where it is not known how to make it."""

    base: Part
    experts: dict[str, Part]
    information: dict[str, dict[str, Part | None]]


def _parts(name: str, pool: Pool, config: Config, access: Access, layout: StudyLayout) -> _Parts:
    """The pool's checkpoints and information; what is not made yet or cannot be had is noted in the layout."""
    base = _or_lost(f"base of {name}", partial(find_base, pool.base, access))
    experts, recipes = {}, pool_recipes(pool)
    for label, found in pool.experts.items():
        experts[label] = _or_lost(f"{label} of {name}", partial(find_checkpoint, found, access))
    for label, recipe in recipes.items():
        found_expert = partial(find_expert, recipe, base, access)  # type: ignore[arg-type]
        experts[label] = base if isinstance(base, Lost) else _or_lost(f"{label} of {name}", found_expert)
    if isinstance(base, Unmade) and base not in layout.unmade:
        layout.unmade.append(base)
    information: dict[str, dict[str, Part | None]] = {kind: {} for kind in needed_kinds(config.methods)}
    for kind, found_of in information.items():
        for label, expert in experts.items():
            task = recipes[label].task if label in recipes else None
            found_of[label] = _information(kind, label, expert, task, config, access)
    made = [*experts.values(), *(part for found_of in information.values() for part in found_of.values())]
    layout.unmade += [Unmade(f"{part.what} of {name}", part.key) for part in made if isinstance(part, Unmade)]
    layout.lost += [part for part in dict.fromkeys((base, *experts.values())) if isinstance(part, Lost)]
    return _Parts(base, experts, information)


def _or_lost(what: str, find: Callable[[], Source | Unmade]) -> Part:
    try:
        return find()
    except UserError as error:
        return Lost(what, error)


def _information(kind: str, label: str, expert: Part, task: Any, config: Config, access: Access) -> Part | None:
    if isinstance(expert, Source):
        return find_information(kind, Expert(label, expert, task), access, config.collect)
    return Unmade(f"{kind} statistics of {label}", None) if isinstance(expert, Unmade) else None


Model = tuple[str, str, tuple[str, ...], Recipe | None]
"""Kind, label, experts and recipe of a model, before it is known where its weights are."""


def _models(experts: list[str], config: Config) -> Iterator[Model]:
    """Base, experts and merges of a pool: every method on the same subsets, in orders and draws where these matter."""
    if config.sampler.base:
        yield "base", "base", (), None
    if config.sampler.singles:
        yield from (("expert", label, (label,), None) for label in experts)
    subsets = draw_subsets(experts, config.sampler)
    for label, method in config.methods.items():
        info = describe(str(method.get("method")))
        for subset in (s for s in subsets if takes(info, len(s))):
            for order in draw_orders(subset, config.sampler) if info.ordered else [subset]:
                recipe = make_recipe(config, method, order, f"methods.{label}", experts)
                for draw in range(config.sampler.draws if info.random else 1):
                    yield "merge", label, order, dataclasses.replace(recipe, seed=recipe.seed + draw)


def _planned(
    pool: str,
    run: int,
    kind: str,
    label: str,
    experts: tuple[str, ...],
    recipe: Recipe | None,
    parts: _Parts,
    suite: Suite,
    fingerprint: dict[str, Any],
) -> Planned:
    """A model on a suite, with its trial where nothing that it is made of is missing."""
    information = parts.information[needed] if recipe and (needed := describe(recipe.method).statistics) else None
    used = [parts.base, *(parts.experts[e] for e in experts)]
    extra = [information[e] for e in experts] if information else []
    sources = [part for part in used if isinstance(part, Source)]
    planned = Planned(
        pool,
        kind,
        label,
        experts,
        run,
        dict(recipe.parameters) if recipe else {},
        suite,
        lost=any(isinstance(part, Lost) for part in used),
        folders=tuple(source.path for source in sources),
    )
    if len(sources) < len(used) or any(isinstance(part, Unmade) for part in extra):
        return planned
    known = () if None in extra else tuple(part for part in extra if isinstance(part, Source))
    trial = Trial(kind, sources[0], tuple(sources[1:]), suite, fingerprint, recipe, experts, known)
    return dataclasses.replace(planned, trial=trial)
