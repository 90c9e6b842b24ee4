"""What can be known to be wrong with a study before any file is opened."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from conf.errors import UserError, nearest
from conf.schema import Config
from mergeopt_core.merging.mergekit_api import check_parameters, describe, names
from pipelines.collect import check_collect

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
