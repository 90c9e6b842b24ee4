"""A study laid out: which models of which pools are scored, before anything is spent.

A study is a pool (or several), a sampler of expert subsets, methods and a suite. ``lay_out`` turns the configuration
into ``Planned`` trials: their checkpoints where these exist, or the name of what has to be made first.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from conf.errors import UserError, nearest
from conf.schema import Config, Pool
from mergeopt_core.merging.mergekit_api import check_parameters, describe, names
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
from pipelines.subsets import draw_subsets
from pipelines.trial import Trial


@dataclass(frozen=True)
class Planned:
    """One model of a study and, where its weights exist, the trial that scores it."""

    pool: str
    kind: str
    label: str
    """base, the expert's name, or the method's name in the study."""
    experts: tuple[str, ...]
    parameters: dict[str, Any]
    trial: Trial | None
    waits_for: tuple[str, ...] = ()


@dataclass
class Layout:
    """All models of a study, what must be made first, and what was left out."""

    planned: list[Planned] = field(default_factory=list)
    unmade: list[Unmade] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def trials(self) -> list[Trial]:
        """The distinct trials, in order."""
        return list({p.trial.key: p.trial for p in self.planned if p.trial is not None}.values())


def access_of(config: Config) -> Access:
    """How this configuration reaches checkpoints, data sets and the store."""
    from pipelines.store import Store

    return Access(Store(config.store), config.datasets, config.online)


def check_study(config: Config) -> None:
    """What can be known of a study before any file is opened."""
    if not config.pools:
        raise UserError("there is no study to run", where="pools is empty", do="choose one, such as +experiment=quickstart")
    if not config.methods and not (config.sampler.base or config.sampler.singles):
        raise UserError("the study scores nothing", where="methods", do="add a method: +method@methods.ties=ties")
    for name, pool in config.pools.items():
        both = set(pool.experts) & set(pool.tasks)
        if both:
            raise UserError(f"pool {name} names {sorted(both)[0]!r} among experts and tasks", where=f"pools.{name}", do="rename one")
        if not pool.experts and not pool.tasks:
            raise UserError(f"pool {name} has no experts", where=f"pools.{name}", do="give it experts or tasks")
    for label, method in config.methods.items():
        check_method(method, where=f"methods.{label}")


def check_method(method: Mapping[str, Any], where: str = "method", experts: int | None = None) -> tuple[str, dict[str, Any]]:
    """A method's registered name and its complete parameters; UserError for a name or value that does not exist."""
    parameters = dict(method)
    name = parameters.pop("method", None)
    if name not in names():
        raise UserError(f"no merge method is called {name!r}", where=f"{where}.method", do=nearest(str(name), names()))
    least = describe(name).min_experts
    try:
        return name, check_parameters(name, parameters, experts or max(least, 2))
    except (ValueError, TypeError) as error:
        raise UserError(str(error), where=where, do=f"see `mergebench methods {name}`") from None


def make_pools(config: Config, access: Access, progress: Progress = SILENT) -> None:
    """Make every base and expert of the study that the store does not hold yet."""
    for pool in config.pools.values():
        base = make_base(pool.base, access, progress)
        for recipe in pool_recipes(pool).values():
            make_expert(recipe, base, access, progress)


def lay_out(config: Config, access: Access) -> Layout:
    """The study's models in the order in which they run: bases and experts, then merges, pool by pool."""
    layout = Layout()
    fingerprint = suite_fingerprint(config.suite, config.datasets)
    for name, pool in config.pools.items():
        _lay_out_pool(name, pool, config, access, fingerprint, layout)
    return layout


def _lay_out_pool(
    name: str, pool: Pool, config: Config, access: Access, fingerprint: dict[str, Any], layout: Layout
) -> None:
    base = find_base(pool.base, access)
    experts: dict[str, Source | Unmade] = {label: find_checkpoint(found, access) for label, found in pool.experts.items()}
    experts |= {label: find_expert(recipe, base, access) for label, recipe in pool_recipes(pool).items()}
    layout.unmade += [s for s in (base, *experts.values()) if isinstance(s, Unmade) and s not in layout.unmade]

    def plan(kind: str, label: str, chosen: tuple[str, ...], recipe: Recipe | None, parameters: dict[str, Any]) -> Planned:
        parts = [base, *(experts[e] for e in chosen)]
        missing = tuple(part.what for part in parts if isinstance(part, Unmade))
        if missing:
            return Planned(name, kind, label, chosen, parameters, None, missing)
        sources = [part for part in parts if isinstance(part, Source)]
        if recipe is not None:
            recipe = dataclasses.replace(recipe, base=sources[0].path, experts=tuple(s.path for s in sources[1:]))
        random = recipe is not None and describe(recipe.method).random
        trial = Trial(kind, sources[0], tuple(sources[1:]), config.suite, fingerprint, recipe, random, chosen)
        return Planned(name, kind, label, chosen, parameters, trial)

    if config.sampler.base:
        layout.planned.append(plan("base", "base", (), None, {}))
    if config.sampler.singles:
        layout.planned += [plan("expert", label, (label,), None, {}) for label in experts]
    subsets = draw_subsets(list(experts), config.sampler)
    for label, method in config.methods.items():
        fits = [s for s in subsets if _fits(str(method.get("method")), len(s))]
        if len(fits) < len(subsets):
            layout.notes.append(f"{label} does not take every subset size: {len(subsets) - len(fits)} of {len(subsets)} left out")
        for subset in fits:
            registered, parameters = check_method(method, f"methods.{label}", len(subset))
            recipe = Recipe("", (), registered, parameters, config.seed, config.dtype, config.vocab, config.strict)
            layout.planned.append(plan("merge", label, subset, recipe, parameters))


def _fits(method: str, experts: int) -> bool:
    info = describe(method)
    return info.min_experts <= experts and (info.max_experts is None or experts <= info.max_experts)
