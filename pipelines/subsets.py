"""Which subsets of a pool's experts a study merges, and in which orders: drawn by seed, the same for every method."""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Sequence

from conf.errors import UserError
from conf.schema import Sampler


def draw_subsets(experts: Sequence[str], sampler: Sampler) -> list[tuple[str, ...]]:
    """Subsets of each size in ``sampler.sizes``, each in the pool's order.

    All C(n, k) subsets where there are at most ``samples`` of them, otherwise ``samples`` distinct ones. Asking for
    more samples later keeps the ones drawn before, so that a study can be extended. Sizes above n are left out.
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
