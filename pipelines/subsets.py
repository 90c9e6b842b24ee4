"""Which subsets of a pool's experts a study merges, and in which orders: drawn by seed, the same for every method."""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Sequence

from conf.errors import UserError
from conf.schema import Config, Sampler
from mergeopt_core.merging.info import MethodInfo
from mergeopt_core.merging.mergekit_api import describe


def draw_subsets(experts: Sequence[str], sampler: Sampler) -> list[tuple[str, ...]]:
    """Subsets of each size in ``sampler.sizes``, each in the pool's order.

    All C(n, k) subsets where there are at most ``samples`` of them, otherwise ``samples`` distinct ones. Asking for
    more samples later keeps the ones drawn before, so that a study can be extended. Sizes above n are left out (see
    ``left_out``).
    """
    if any(size < 1 for size in sampler.sizes) or sampler.samples < 1:
        raise UserError(
            "subset sizes and samples are at least 1", where="sampler", do="mend sampler.sizes or sampler.samples"
        )
    sizes = sampler.sizes or [len(experts)]
    return [
        subset for size in dict.fromkeys(sizes) if size <= len(experts) for subset in _of_size(experts, size, sampler)
    ]


def _of_size(experts: Sequence[str], size: int, sampler: Sampler) -> list[tuple[str, ...]]:
    if math.comb(len(experts), size) <= sampler.samples:
        return list(itertools.combinations(experts, size))
    rng = random.Random(f"subsets:{sampler.seed}:{size}:{len(experts)}")
    drawn: dict[tuple[int, ...], None] = {}
    while len(drawn) < sampler.samples:
        drawn[tuple(sorted(rng.sample(range(len(experts)), size)))] = None
    return [tuple(experts[i] for i in chosen) for chosen in drawn]


def draw_orders(subset: tuple[str, ...], sampler: Sampler) -> list[tuple[str, ...]]:
    """Orders in which a method that depends on the order merges a subset: the pool's first, then seeded others.

    All k! orders where there are at most ``orders`` of them; asking for more later keeps the ones drawn before.
    """
    if sampler.orders < 1:
        raise UserError("there is at least one order", where="sampler.orders", do="mend sampler.orders")
    drawn = {subset: None}
    if math.factorial(len(subset)) <= sampler.orders:
        return list(itertools.permutations(subset))
    rng = random.Random(f"orders:{sampler.seed}:{subset}")
    while len(drawn) < sampler.orders:
        drawn[tuple(rng.sample(subset, len(subset)))] = None
    return list(drawn)


def takes(method: MethodInfo, experts: int) -> bool:
    """Whether a method merges so many experts."""
    return method.min_experts <= experts <= (method.max_experts or experts)


def left_out(config: Config) -> tuple[list[tuple[str, str, str]], list[str]]:
    """Sizes and methods that cannot run at all (where, what, what to do), and notes on those that run in part."""
    impossible, notes = [], []
    counts = {name: len(pool.experts) + len(pool.tasks) for name, pool in config.pools.items()}
    for size in dict.fromkeys(config.sampler.sizes):
        small = [f"{name} ({n})" for name, n in counts.items() if n < size]
        if len(small) == len(counts):
            do = f"choose sizes up to {max(counts.values())}"
            impossible.append(("sampler.sizes", f"no pool has {size} experts: {', '.join(small)}", do))
        elif small:
            notes.append(f"Left out: subsets of {size} experts in {', '.join(small)}, which has fewer experts.")
    drawn = {(n, size) for n in counts.values() for size in config.sampler.sizes or [n] if size <= n}
    sizes = sorted({size for _, size in drawn})
    for label, method in config.methods.items():
        info = describe(str(method.get("method")))
        unfit = [size for size in sizes if not takes(info, size)]
        most = (
            ""
            if info.max_experts == info.min_experts
            else f" to {info.max_experts}"
            if info.max_experts
            else " or more"
        )
        wrong = f"{label} merges {info.min_experts}{most} expert{'' if (info.max_experts or 2) == 1 else 's'}"
        if sizes and unfit == sizes:
            do = f"give sampler.sizes a size that it takes, or leave it out with ~methods.{label}"
            impossible.append((f"methods.{label}", f"{wrong}, and subsets are of {_listed(sizes)}", do))
        elif unfit:
            notes.append(f"Left out: {label} of {_listed(unfit)} experts, because {wrong}.")
    return impossible, notes


def _listed(sizes: Sequence[int]) -> str:
    return ", ".join(map(str, sizes))
