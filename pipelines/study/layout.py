"""A study laid out: which models of which pools are scored, before anything is spent.

A study is a pool (or several), a sampler of expert subsets, methods and a suite. ``lay_out`` turns the configuration
into ``Planned`` trials: their checkpoints where these exist, or the name of what has to be made first.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from conf.errors import UserError
from conf.schema import Config, Pool, Suite
from mergeopt_core.merging.mergekit_api import describe, drawn
from pipelines.evaluate import suite_fingerprint
from pipelines.merge.recipe import Recipe
from pipelines.store.store import model_title
from pipelines.study.columns import pool_columns
from pipelines.study.information import Expert, find_information, needed_kinds
from pipelines.study.methods import StudyMethod, order_matters, seed_matters, study_methods
from pipelines.study.recipes import make_recipe, takes
from pipelines.study.selection import Choice, best, selection_suite
from pipelines.study.sources import (
    Access,
    ExpertRecipe,
    Lost,
    Source,
    Unmade,
    find_base,
    find_checkpoint,
    find_expert,
    joint_recipe,
    pool_recipes,
    runs,
)
from pipelines.study.subsets import (
    Subset,
    draw_orders,
    left_out,
    narrowed,
    pool_subsets,
    scored_on,
)
from pipelines.study.trial import Trial

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
    """What it is shown on: the trial's suite, or some tasks of it."""
    trial: Trial | None = None
    lost: bool = False
    """Whether a checkpoint of it cannot be had."""
    folders: tuple[str, ...] = ()
    """Folders of the checkpoints that are read for it, as far as these exist."""
    split: str | None = None
    """Split that it is a candidate on; None for what is reported."""
    selected: str | None = None
    """Split on which it was, or will be, chosen among candidates; it has no trial until then."""
    drawn: Mapping[str, float] = field(default_factory=dict)
    """What the method draws once for the whole model, by name."""
    setting: str = ""
    """Label and values of a merge of a grid."""

    @property
    def title(self) -> str:
        """The model's name in tables."""
        return model_title("merge", self.experts, self.label) if self.kind == "merge" else self.label


@dataclass
class StudyLayout:
    """All models of a study, what must be made first, and what was left out."""

    planned: list[Planned] = field(default_factory=list)
    unmade: list[Unmade] = field(default_factory=list)
    trained: list[tuple[ExpertRecipe, Source]] = field(default_factory=list)
    """Of these the experts to be trained, with their base where it exists."""
    lost: list[Lost] = field(default_factory=list)
    """Checkpoints that cannot be had."""
    notes: list[str] = field(default_factory=list)
    """What is left out where a part still runs, and why."""
    impossible: list[UserError] = field(default_factory=list)
    """What was asked for and cannot run at all."""
    references: dict[str, str] = field(default_factory=dict)
    """Pools that are compared with a pool of their choice."""
    settings: dict[str, dict[str, Any]] = field(default_factory=dict)
    """By pool, how its experts are trained, as columns."""
    choices: list[Choice] = field(default_factory=list)
    """What selections came to, as far as all candidates have scores."""
    suites: list[tuple[Suite, dict[str, Any]]] = field(default_factory=list)
    """What models are scored on, with fingerprints."""

    @property
    def undecided(self) -> bool:
        """Whether selections wait for their candidates' scores."""
        return any(p.selected and p.trial is None and not p.lost for p in self.planned)

    @property
    def trials(self) -> list[Trial]:
        """The distinct trials, in order."""
        return list({p.trial.key: p.trial for p in self.planned if p.trial is not None}.values())


def attacked(suite: Suite, config: Config) -> list[Suite]:
    """A suite as it is, then under each further attack."""
    attacks = dict.fromkeys([suite.attack, *config.attacks])
    return [dataclasses.replace(suite, attack=attack) for attack in attacks]


def lay_out(config: Config, access: Access) -> StudyLayout:
    """The study's models in the order in which they run: bases and experts, then merges, pool by pool."""
    layout = StudyLayout(references={name: pool.reference for name, pool in config.pools.items() if pool.reference})
    layout.impossible, layout.notes = left_out(config)
    whole, config = config, narrowed(config)
    found: list[Any] = [c for p in config.pools.values() for c in (p.base, *p.experts.values())]
    access.look_ahead([(checkpoint.path, checkpoint.revision) for checkpoint in found])
    for name, pool in config.pools.items():
        layout.settings[name] = pool_columns(pool)
        known = [*whole.pools[name].experts, *whole.pools[name].tasks]
        for place, run in enumerate(runs(pool)):
            parts = _parts(f"{name} (seed {run.seed})" if pool.seeds else name, run, config, access, layout)
            _PoolLayout(name, place, run, parts, known, config, access, layout).add()
    return layout


@dataclass(frozen=True)
class _Parts:
    """What a pool's models are made of; information by kind and expert, None where it is not known how to make it."""

    base: Part
    joint: Part | None
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
    mixed = joint_recipe(pool) if config.references.joint else None
    joint: Part | None = None
    if mixed is not None:
        found_joint = partial(find_expert, mixed, base, access)  # type: ignore[arg-type]
        joint = base if isinstance(base, Lost) else _or_lost(f"joint training of {name}", found_joint)
    if isinstance(base, Unmade) and base not in layout.unmade:
        layout.unmade.append(base)
    information: dict[str, dict[str, Part | None]] = {kind: {} for kind in needed_kinds(config.methods)}
    for kind, found_of in information.items():
        for label, expert in experts.items():
            task = recipes[label].task if label in recipes else None
            found_of[label] = _information(kind, label, expert, task, config, access)
    made = [joint, *experts.values(), *(part for found_of in information.values() for part in found_of.values())]
    if isinstance(base, Source):
        trained = [(recipes[label], part) for label, part in experts.items() if label in recipes]
        trained += [(mixed, joint)] if mixed and joint else []
        layout.trained += [(recipe, base) for recipe, part in trained if isinstance(part, Unmade)]
    layout.unmade += [Unmade(f"{part.what} of {name}", part.key) for part in made if isinstance(part, Unmade)]
    layout.lost += [part for part in dict.fromkeys((base, *experts.values())) if isinstance(part, Lost)]
    return _Parts(base, joint, experts, information)


def _or_lost(what: str, find: Callable[[], Source | Unmade]) -> Part:
    try:
        return find()
    except UserError as error:
        return Lost(what, error)


def _information(kind: str, label: str, expert: Part, task: Any, config: Config, access: Access) -> Part | None:
    if isinstance(expert, Source):
        return find_information(kind, Expert(label, expert, task), access, config.collect)
    return Unmade(f"{kind} statistics of {label}", None) if isinstance(expert, Unmade) else None


@dataclass(frozen=True)
class _Model:
    """A model before it is known where its weights are."""

    kind: str
    label: str
    experts: tuple[str, ...] = ()
    recipe: Recipe | None = None
    values: Mapping[str, Any] = field(default_factory=dict)
    """Of a merge, what its study's method gives a choice of."""

    @property
    def drawn(self) -> dict[str, float]:
        """What the merge draws once for the whole model."""
        r = self.recipe
        return drawn(r.method, r.parameters, len(self.experts), r.seed) if r else {}


class _PoolLayout:
    """Adds the models of one pool, of one training seed, to a study's layout."""

    def __init__(
        self,
        name: str,
        run: int,
        pool: Pool,
        parts: _Parts,
        known: list[str],
        config: Config,
        access: Access,
        layout: StudyLayout,
    ) -> None:
        self.name, self.run, self.pool, self.parts, self.known = name, run, pool, parts, known
        self.config, self.access, self.layout = config, access, layout
        self.subsets = pool_subsets(pool, config)

    def add(self) -> None:
        """Base and experts, then every method on the same subsets."""
        sampler = self.config.sampler
        if sampler.base and self.run == 0:  # there is one base
            self._single(_Model("base", "base"), None)
        if self.parts.joint:
            self._single(_Model("joint", "joint"), None)
        for label in self.parts.experts if sampler.singles else ():
            self._single(_Model("expert", label, (label,)), label)
        for method in study_methods(self.config.methods):
            info = describe(str(method.variants[0]["method"]))
            for subset in self.subsets:
                if takes(info, len(subset.experts)):
                    self._merges(method, subset)

    def _single(self, model: _Model, expert: str | None) -> None:
        whole = self.pool.suite or self.config.suite
        listed = self.config.sampler.subsets
        for shown, run in scored_on(self.subsets, expert) if listed else [(whole, whole)]:
            for one, other in zip(attacked(shown, self.config), attacked(run, self.config)):
                self.layout.planned.append(dataclasses.replace(self._plan(model, other), suite=one))

    def _merges(self, method: StudyMethod, subset: Subset) -> None:
        scored = attacked(subset.suite, self.config)
        orders = draw_orders(subset.experts, self.config.sampler)
        for place, order in enumerate(orders):
            models = self._models(method, subset.experts, order, first=place == 0)
            if method.select is None:
                self.layout.planned += [
                    dataclasses.replace(self._plan(model, suite), setting=method.setting(model.values))
                    for model in models
                    for suite in scored
                ]
            elif models:
                self._selected(method, models, subset.suite, scored)

    def _models(
        self, method: StudyMethod, subset: tuple[str, ...], order: tuple[str, ...], first: bool
    ) -> list[_Model]:
        """The merges of a subset in one order, each model once: draws, and the grid within each draw."""
        k, models = len(order), []
        recipes = [(v, make_recipe(self.config, v, order, method.where, self.known)) for v in method.variants]
        recipes = [(v, recipe) for v, recipe in recipes if first or order_matters(v, recipe, k)]
        for draw in range(method.draws or self.config.sampler.draws):
            for variant, recipe in recipes:
                values, random = method.values(variant), seed_matters(recipe, k)
                if random:
                    recipe = dataclasses.replace(recipe, seed=method.seed(recipe.seed, subset, draw))
                    values |= {"draw": draw}
                if random or draw == 0:
                    models.append(_Model("merge", method.label, order, recipe, values))
        return models

    def _selected(self, method: StudyMethod, models: list[_Model], suite: Suite, scored: list[Suite]) -> None:
        """Candidates on the split that the method names, and the best of them on what is reported."""
        split = str(method.select)
        tried = selection_suite(suite, split)
        candidates = [dataclasses.replace(self._plan(model, tried), split=split) for model in models]
        self.layout.planned += candidates
        found = best([candidate.trial for candidate in candidates], self.access.store)
        for one in scored:
            if found is None:
                waiting = dataclasses.replace(candidates[0], suite=one, trial=None, parameters={}, drawn={}, split=None)
            else:
                waiting = self._plan(models[found[0]], one)
            self.layout.planned.append(dataclasses.replace(waiting, selected=split))
        if found is not None:
            (place, score, lost), count = found, len(models)
            chosen, trial = models[place], candidates[place].trial
            values, key = {**chosen.values, **chosen.drawn}, trial.key if trial else ""
            choice = Choice(self.name, self.run, method.label, chosen.experts, split, values, score, count, key)
            self.layout.choices.append(choice)
            if lost:
                what = f"{lost} of {count} candidates of {method.label} ({' + '.join(chosen.experts)}, {self.name})"
                self.layout.notes.append(f"Left out of a choice: {what}, because a task has no score.")

    def _plan(self, model: _Model, suite: Suite) -> Planned:
        return _planned(self.name, self.run, model, self.parts, suite, self._fingerprint(suite))

    def _fingerprint(self, suite: Suite) -> dict[str, Any]:
        """The suite's fingerprint, taken once in a study."""
        for known, fingerprint in self.layout.suites:
            if known == suite:
                return fingerprint
        self.layout.suites.append((suite, suite_fingerprint(suite, self.config.datasets)))
        return self.layout.suites[-1][1]


def _planned(pool: str, run: int, model: _Model, parts: _Parts, suite: Suite, fingerprint: dict[str, Any]) -> Planned:
    """A model on a suite, with its trial where nothing that it is made of is missing."""
    kind, experts, recipe = model.kind, model.experts, model.recipe
    information = parts.information[needed] if recipe and (needed := describe(recipe.method).statistics) else None
    used = [
        parts.base,
        *([parts.joint] if kind == "joint" and parts.joint else []),
        *(parts.experts[e] for e in experts),
    ]
    extra = [information[e] for e in experts] if information else []
    sources = [part for part in used if isinstance(part, Source)]
    planned = Planned(
        pool,
        kind,
        model.label,
        experts,
        run,
        dict(recipe.parameters) if recipe else {},
        suite,
        lost=any(isinstance(part, Lost) for part in used),
        folders=tuple(source.path for source in sources),
        drawn=model.drawn,
    )
    if len(sources) < len(used) or any(isinstance(part, Unmade) for part in extra):
        return planned
    known = () if None in extra else tuple(part for part in extra if isinstance(part, Source))
    kind, names = ("expert", ("joint",)) if kind == "joint" else (kind, experts)
    trial = Trial(kind, sources[0], tuple(sources[1:]), suite, fingerprint, recipe, names, known)
    return dataclasses.replace(planned, trial=trial)
