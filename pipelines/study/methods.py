"""What a study says of a merge method beside its parameters: values that are tried, draws, and what chooses among them.

``grid`` lists values by parameter; every combination is a merge of its own, exactly as if it were written out.
``draws`` counts the seeds of a method that draws random numbers; ``select`` names the split on which the best of grid
and draws is chosen.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from conf.errors import UserError
from mergeopt_core.merging.mergekit_api import depends, describe
from pipelines.merge.recipe import Recipe
from pipelines.store.store import content_key

WORDS = ("grid", "draws", "select")
"""Keys of a study's method that are no parameters."""

Axis = tuple[str, ...]
"""A parameter, or a parameter and a name within it (an expert, a parameter of a base method)."""


@dataclass(frozen=True)
class StudyMethod:
    """A method of a study, its grid written out."""

    label: str
    variants: tuple[dict[str, Any], ...]
    """Configurations (``method`` and parameters), the grid's last parameter moving fastest."""
    axes: tuple[Axis, ...] = ()
    """What the grid moves."""
    draws: int | None = None
    """Seeds of its own; None: as many as the sampler says, shared with the other methods."""
    select: str | None = None
    """Split on which the best of variants and draws is chosen; None: all are scored."""

    @property
    def where(self) -> str:
        """Where the configuration says it."""
        return f"methods.{self.label}"

    def seed(self, seed: int, subset: tuple[str, ...], draw: int) -> int:
        """Seed of a draw; of ``draws`` of its own it depends on method and subset too, and on no value of the grid."""
        if self.draws is None:
            return seed + draw
        return int(content_key(["draw", seed, self.label, subset, draw])[:8], 16)

    def values(self, variant: Mapping[str, Any]) -> dict[str, Any]:
        """What the grid gave a variant, by the axes' names."""
        found = {}
        for axis in self.axes:
            value: Any = variant
            for name in axis:
                value = value[name]
            found[".".join(axis)] = value
        return found

    def setting(self, values: Mapping[str, Any]) -> str:
        """Label and values of one of the grid's merges; empty where there is no grid."""
        told = " ".join(f"{'.'.join(axis)}={values['.'.join(axis)]}" for axis in self.axes)
        return f"{self.label} {told}" if told else ""


def study_method(label: str, config: Mapping[str, Any]) -> StudyMethod:
    """A study's method with its grid written out; UserError for a grid, draws or selection that means nothing."""
    where, plain = f"methods.{label}", {key: value for key, value in config.items() if key not in WORDS}
    draws, select, grid = config.get("draws"), config.get("select"), config.get("grid") or {}
    if draws is not None and (isinstance(draws, bool) or not isinstance(draws, int) or draws < 1):
        raise UserError(f"draws is {draws!r}", where=where, do="give it a whole number, 1 or more")
    if select is not None and not (isinstance(select, str) and select):
        raise UserError(f"select is {select!r}", where=where, do="name a split: select: validation")
    if not isinstance(grid, Mapping):
        raise UserError(f"grid is {grid!r}", where=where, do="list values by parameter: grid: {lambda: [0.1, 0.3]}")
    axes = _axes(grid, f"{where}.grid")
    variants = []
    for values in itertools.product(*axes.values()):
        variant = plain
        for axis, value in zip(axes, values):
            variant = _with(variant, axis, value, f"{where}.grid")
        variants.append(variant)
    return StudyMethod(label, tuple(variants), tuple(axes), draws, select)


def study_methods(methods: Mapping[str, Mapping[str, Any]]) -> list[StudyMethod]:
    """All methods of a study."""
    return [study_method(label, config) for label, config in methods.items()]


def _axes(grid: Mapping[Any, Any], where: str, above: Axis = ()) -> dict[Axis, list[Any]]:
    """Each axis of a grid with its distinct values; a nested mapping, or a dot, names something within a parameter."""
    axes: dict[Axis, list[Any]] = {}
    for key, values in grid.items():
        axis = (*above, *str(key).split(".", 1)) if not above else (*above, str(key))
        if isinstance(values, Mapping):
            axes |= _axes(values, where, axis)
        elif not isinstance(values, (list, tuple)) or not values:
            wrong = "has no values" if isinstance(values, (list, tuple)) else f"is {values!r}, and no list"
            raise UserError(f"{'.'.join(axis)} {wrong}", where=where, do="list the values that are tried: [0.1, 0.3]")
        else:
            axes[axis] = [value for place, value in enumerate(values) if value not in values[:place]]
    return axes


def _with(config: Mapping[str, Any], axis: Axis, value: Any, where: str) -> dict[str, Any]:
    """A configuration with one value in the place of another."""
    head, *rest = axis
    if rest:
        inner = config.get(head) or {}
        if not isinstance(inner, Mapping):
            what = f"{head} is {inner!r}, and the grid moves {'.'.join(rest)} within it"
            raise UserError(what, where=where, do=f"give {head} a mapping, or leave it out")
        value = _with(inner, tuple(rest), value, where)
    return {**config, head: value}


def order_matters(variant: Mapping[str, Any], recipe: Recipe, experts: int) -> bool:
    """Whether other orders of the experts give other models: by the method, or by values that go by position."""
    lists = [variant.get(p.name) for p in describe(recipe.method).parameters if p.per_expert]
    by_position = any(isinstance(v, (list, tuple)) and any(one != v[0] for one in v) for v in lists)
    return by_position or depends(recipe.method, recipe.parameters, experts)[0]


def seed_matters(recipe: Recipe, experts: int) -> bool:
    """Whether other seeds give other models."""
    return depends(recipe.method, recipe.parameters, experts)[1]
