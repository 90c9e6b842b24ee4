"""Merge methods by name, their parameters checked and completed, and the recipes that they make."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from conf.errors import UserError, nearest
from conf.schema import Config
from mergeopt_core.merging.info import MethodInfo
from mergeopt_core.merging.mergekit_api import check_parameters, describe, names
from pipelines.merge.recipe import Recipe


def all_methods() -> list[MethodInfo]:
    """Every registered merge method, mergekit's and ours, by name."""
    return [describe(name) for name in sorted(names())]


def method(name: Any, where: str = "") -> MethodInfo:
    """One merge method; UserError with the nearest names when there is none."""
    if name not in names():
        raise UserError(f"no merge method is called {name!r}", where=where, do=nearest(str(name), names()))
    return describe(name)


def takes(info: MethodInfo, experts: int) -> bool:
    """Whether a method merges so many experts."""
    return info.min_experts <= experts <= (info.max_experts or experts)


def check_method(
    config: Mapping[str, Any],
    where: str = "method",
    experts: int | Sequence[str] | None = None,
    known: Sequence[str] = (),
) -> tuple[str, dict[str, Any]]:
    """A method's registered name and its complete parameters; UserError for a name or value that does not exist.

    Where ``experts`` names them, a mapping from expert (or the last part of its path) to value becomes a list in their
    order; it may also name further ``known`` experts.
    """
    parameters = dict(config)
    info = method(parameters.pop("method", None), f"{where}.method")
    try:
        if not isinstance(experts, int | None):
            for parameter in info.parameters:
                if parameter.per_expert and isinstance(parameters.get(parameter.name), Mapping):
                    parameters[parameter.name] = _in_order(parameter.name, parameters[parameter.name], experts, known)
            experts = len(experts)
        usual = min(max(info.min_experts, 2), info.max_experts or 2)
        return info.name, check_parameters(info.name, parameters, experts or usual)
    except (ValueError, TypeError) as error:
        raise UserError(str(error), where=where, do=f"see `mergebench methods {info.name}`") from None


def _in_order(parameter: str, values: Mapping[str, Any], experts: Sequence[str], known: Sequence[str]) -> list[Any]:
    """The values of a mapping in the experts' order; ValueError for an expert or a value that has no counterpart."""
    keys = {expert: next((k for k in (expert, Path(expert).name) if k in values), None) for expert in experts}
    for expert, key in keys.items():
        if key is None:
            raise ValueError(f"{parameter} gives no value for expert {expert}")
    for key in values:
        if key not in keys.values() and key not in known:
            raise ValueError(f"{parameter} gives a value for {key}, which is no expert: {nearest(key, experts)}")
    return [values[str(keys[expert])] for expert in experts]


def make_recipe(
    config: Config, method: Mapping[str, Any], experts: Sequence[str], where: str = "method", known: Sequence[str] = ()
) -> Recipe:
    """The recipe of a method and named experts with the configuration's settings, before it is known where they are."""
    name, parameters = check_method(method, where, experts, known)
    return Recipe("", (), name, parameters, config.seed, config.dtype, config.vocab, config.strict)
