"""Which experts a study merges together, in which orders, and what each subset is scored on.

Subsets and orders are drawn by seed, the same for every method; or the subsets are listed, each perhaps with its own
tasks or suite.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
import random
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from conf.errors import UserError, nearest
from conf.schema import Config, Pool, Sampler, Suite
from mergeopt_core.merging.info import MethodInfo
from mergeopt_core.merging.mergekit_api import describe
from pipelines.study.recipes import takes

WHERE = "sampler.subsets"
ENTRY = ("experts", "tasks", "suite")


@dataclass(frozen=True)
class Subset:
    """Experts of a pool, in the pool's order, and what their merges are scored on."""

    experts: tuple[str, ...]
    suite: Suite
    whole: Suite
    """The suite that ``suite`` has some tasks of, or all."""


def pool_subsets(pool: Pool, config: Config) -> list[Subset]:
    """The subsets of a pool: those listed that it has all experts of, or drawn ones.

    Raises UserError for tasks that the suite does not have.
    """
    experts, whole = [*pool.experts, *pool.tasks], pool.suite or config.suite
    if not config.sampler.subsets:
        return [Subset(subset, whole, whole) for subset in draw_subsets(experts, config.sampler)]
    found: list[Subset] = []
    for names, tasks, own in map(_entry, config.sampler.subsets):
        if not set(names) <= set(experts):
            continue
        subset = tuple(name for name in experts if name in names)
        made = Subset(subset, restricted(own or whole, tasks), own or whole)
        found += [made] if made not in found else []
    return found


def restricted(suite: Suite, tasks: Sequence[str] | None) -> Suite:
    """The suite with some of its tasks, under a name that says so; UserError for one that it does not have."""
    if tasks is None:
        return suite
    for task in tasks:
        if task not in suite.tasks:
            what = f"suite {suite.name} has no task {task!r}"
            raise UserError(what, where=WHERE, do=nearest(str(task), suite.tasks))
    kept = {name: task for name, task in suite.tasks.items() if name in tasks}
    if len(kept) == len(suite.tasks):
        return suite
    return dataclasses.replace(suite, name=f"{suite.name}: {', '.join(kept)}", tasks=kept)


def _entry(entry: Any) -> tuple[list[str], list[str] | None, Suite | None]:
    """Experts, tasks and suite of a listed subset; UserError for one that cannot be read."""
    entry = entry if isinstance(entry, Mapping) else {"experts": entry}
    for key in entry:
        if key not in ENTRY:
            raise UserError(f"a subset has no {key!r}", where=WHERE, do=nearest(str(key), ENTRY))
    experts, tasks, suite = (entry.get(key) for key in ENTRY)
    for key, value in (("experts", experts), ("tasks", tasks)):
        names = isinstance(value, (list, tuple)) and all(isinstance(name, str) for name in value)
        if not (names and value) and (key == "experts" or value is not None):
            do = "write [a, b] or {experts: [a, b], tasks: [t]}"
            raise UserError(f"{key} of a subset is {value!r}, no list of names", where=WHERE, do=do)
        if value is not None and len(set(value)) < len(value) and key == "experts":
            raise UserError(f"a subset names an expert twice: {', '.join(value)}", where=WHERE, do="name each once")
    if tasks is not None and suite is not None:
        raise UserError("a subset has tasks and a suite", where=WHERE, do="put the tasks into the suite")
    try:
        own = None if suite is None else OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(Suite), suite))
    except (OmegaConfBaseException, ValueError) as error:
        what = f"a subset's suite cannot be read: {str(error).splitlines()[0]}"
        raise UserError(what, where=WHERE, do="give it name and tasks as in conf/suite/") from None
    return experts, tasks, own  # type: ignore[return-value]


def check_subsets(config: Config) -> None:
    """UserError for listed subsets that no pool has, or that stand beside sizes."""
    if not config.sampler.subsets:
        return
    if config.sampler.sizes:
        do = "leave one of them out"
        raise UserError("sampler has both sizes and subsets", where="sampler", do=do)
    pools = {name: [*pool.experts, *pool.tasks] for name, pool in config.pools.items()}
    for experts, _, _ in map(_entry, config.sampler.subsets):
        if any(set(experts) <= set(known) for known in pools.values()):
            continue
        everyone = dict.fromkeys(itertools.chain.from_iterable(pools.values()))
        for expert in experts:
            if expert not in everyone:
                raise UserError(f"no pool has an expert {expert!r}", where=WHERE, do=nearest(expert, everyone))
        raise UserError(f"no pool has all of {', '.join(experts)}", where=WHERE, do="name experts of one pool")
    for pool in config.pools.values():
        pool_subsets(pool, config)


def check_pairs(pairs: Sequence[Sequence[str]], known: Iterable[str], where: str) -> None:
    """UserError for what is no pair of two of the experts known."""
    known = list(known)
    for pair in pairs:
        if len(pair) != 2 or pair[0] == pair[1]:
            raise UserError(f"{list(pair)} is no pair", where=where, do="write [[a, b], [b, c]]")
        for name in pair:
            if name not in known:
                raise UserError(f"there is no expert {name!r}", where=where, do=nearest(name, known))


def narrowed(config: Config) -> Config:
    """The configuration without the experts, and pools, that no listed subset is of."""
    if not config.sampler.subsets:
        return config
    pools = {}
    for pool_name, pool in config.pools.items():
        members = {expert for subset in pool_subsets(pool, config) for expert in subset.experts}
        if members:
            experts = {name: expert for name, expert in pool.experts.items() if name in members}
            tasks = {name: task for name, task in pool.tasks.items() if name in members}
            rest = {name: task for name, task in pool.tasks.items() if name not in members}
            pools[pool_name] = dataclasses.replace(pool, experts=experts, tasks=tasks, peers={**pool.peers, **rest})
    return dataclasses.replace(config, pools=pools)


def scored_on(subsets: Sequence[Subset], expert: str | None) -> Iterator[tuple[Suite, Suite]]:
    """For the base (None) or an expert: each suite that its subsets are scored on, and the one that it runs on itself.

    That is all tasks that are wanted of one suite at once, so that none is scored twice.
    """
    own = [subset for subset in subsets if expert is None or expert in subset.experts]
    distinct: list[Subset] = []
    for subset in own:
        if not any((subset.suite, subset.whole) == (d.suite, d.whole) for d in distinct):
            distinct.append(subset)
    for subset in distinct:
        wanted = [task for other in distinct if other.whole == subset.whole for task in other.suite.tasks]
        yield subset.suite, restricted(subset.whole, wanted)


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
    impossible, notes = _sizes_left_out(config)
    counts = {name: len(pool.experts) + len(pool.tasks) for name, pool in config.pools.items()}
    if config.sampler.subsets:
        sizes = sorted({len(_entry(entry)[0]) for entry in config.sampler.subsets})
        notes += _subsets_left_out(config)
    else:
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


def _sizes_left_out(config: Config) -> tuple[list[UserError], list[str]]:
    impossible, notes = [], []
    counts = {name: len(pool.experts) + len(pool.tasks) for name, pool in config.pools.items()}
    for size in dict.fromkeys(config.sampler.sizes):
        small = [f"{name} ({n})" for name, n in counts.items() if n < size]
        if len(small) == len(counts):
            what, do = f"no pool has {size} experts: {', '.join(small)}", f"choose sizes up to {max(counts.values())}"
            impossible.append(UserError(what, where="sampler.sizes", do=do))
        elif small:
            notes.append(f"Left out: subsets of {size} experts in {', '.join(small)}, which has fewer experts.")
    return impossible, notes


def _subsets_left_out(config: Config) -> list[str]:
    """Notes on the listed subsets that a pool lacks and another one has."""
    notes = []
    for name, pool in config.pools.items():
        missing = [
            " + ".join(e) for e, _, _ in map(_entry, config.sampler.subsets) if not {*e} <= {*pool.experts, *pool.tasks}
        ]
        if missing:
            notes.append(f"Left out: {', '.join(missing)} in {name}, which lacks some of these experts.")
    return notes


def _count(info: MethodInfo) -> str:
    most = f" to {info.max_experts}" if info.max_experts else " or more"
    more = "" if info.max_experts == info.min_experts else most
    return f"{info.min_experts}{more} expert{'' if info.max_experts == 1 else 's'}"
