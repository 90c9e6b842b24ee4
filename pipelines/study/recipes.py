"""Which merges a study asks for: methods with complete parameters, of which experts, in which orders.

Subsets and orders are drawn by seed, the same for every method.
"""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from conf.errors import UserError, nearest
from conf.schema import Config, Sampler
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


def draw_subsets(experts: Sequence[str], sampler: Sampler) -> list[tuple[str, ...]]:
    """Subsets of each size in ``sampler.sizes``, each in the pool's order.

    All C(n, k) subsets where there are at most ``samples`` of them, otherwise ``samples`` distinct ones. Asking for
    more samples later keeps the ones drawn before, so that a study can be extended. Sizes above n are left out (see
    ``left_out``).
    """
    if any(size < 1 for size in sampler.sizes) or sampler.samples < 1:
        what, do = "subset sizes and samples are at least 1", "mend sampler.sizes or sampler.samples"
        raise UserError(what, where="sampler", do=do)
    subsets: list[tuple[str, ...]] = []
    for size in dict.fromkeys(sampler.sizes or [len(experts)]):
        if math.comb(len(experts), size) <= sampler.samples:
            subsets += itertools.combinations(experts, size)
            continue
        rng = random.Random(f"subsets:{sampler.seed}:{size}:{len(experts)}")
        drawn: dict[tuple[int, ...], None] = {}
        while len(drawn) < sampler.samples:
            drawn[tuple(sorted(rng.sample(range(len(experts)), size)))] = None
        subsets += [tuple(experts[i] for i in chosen) for chosen in drawn]
    return subsets


def draw_orders(subset: tuple[str, ...], sampler: Sampler) -> list[tuple[str, ...]]:
    """Orders in which a method that depends on the order merges a subset: the pool's first, then seeded others.

    All k! orders where there are at most ``orders`` of them; asking for more later keeps the ones drawn before.
    """
    if sampler.orders < 1:
        raise UserError("there is at least one order", where="sampler.orders", do="mend sampler.orders")
    if math.factorial(len(subset)) <= sampler.orders:
        return list(itertools.permutations(subset))
    rng, drawn = random.Random(f"orders:{sampler.seed}:{subset}"), {subset: None}
    while len(drawn) < sampler.orders:
        drawn[tuple(rng.sample(subset, len(subset)))] = None
    return list(drawn)


def left_out(config: Config) -> tuple[list[UserError], list[str]]:
    """Sizes and methods that cannot run at all, and notes on those that run in part."""
    impossible, notes = [], []
    counts = {name: len(pool.experts) + len(pool.tasks) for name, pool in config.pools.items()}
    for size in dict.fromkeys(config.sampler.sizes):
        small = [f"{name} ({n})" for name, n in counts.items() if n < size]
        if len(small) == len(counts):
            what, do = f"no pool has {size} experts: {', '.join(small)}", f"choose sizes up to {max(counts.values())}"
            impossible.append(UserError(what, where="sampler.sizes", do=do))
        elif small:
            notes.append(f"Left out: subsets of {size} experts in {', '.join(small)}, which has fewer experts.")
    sizes = sorted({size for n in counts.values() for size in config.sampler.sizes or [n] if size <= n})
    for label, chosen in config.methods.items():
        info = describe(str(chosen.get("method")))
        unfit = [size for size in sizes if not takes(info, size)]
        listed, wrong = ", ".join(map(str, unfit)), f"{label} merges {_count(info)}"
        if sizes and unfit == sizes:
            do = f"give sampler.sizes a size that it takes, or leave it out with ~methods.{label}"
            impossible.append(UserError(f"{wrong}, and subsets are of {listed}", where=f"methods.{label}", do=do))
        elif unfit:
            notes.append(f"Left out: {label} of {listed} experts, because {wrong}.")
    return impossible, notes


def _count(info: MethodInfo) -> str:
    most = f" to {info.max_experts}" if info.max_experts else " or more"
    more = "" if info.max_experts == info.min_experts else most
    return f"{info.min_experts}{more} expert{'' if info.max_experts == 1 else 's'}"
