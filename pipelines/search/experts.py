"""Which of a pool's experts a search merges: those named, or the best at each task that tells them apart."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from conf.errors import UserError, nearest
from conf.schema import Checkpoint, Config, Pool


def chosen_experts(config: Config) -> tuple[Pool, list[str]]:
    """The pool (one of their own for experts that are given by path) and the names of its merged experts, in order."""
    if len(config.pools) > 1:
        what = f"a search takes one pool, not {len(config.pools)}"
        raise UserError(what, where="pools", do="leave the others out: ~pools.NAME")
    if config.pools:
        (pool,) = config.pools.values()
        if pool.seeds:
            what = "a search merges experts of one training seed"
            raise UserError(what, where="pools.*.seeds", do="give seed in place of seeds")
        known = [*pool.experts, *pool.tasks]
        for name in config.experts:
            if name not in known:
                raise UserError(f"the pool has no expert {name!r}", where="experts", do=nearest(name, known))
        return pool, list(config.experts) or known
    if not config.experts:
        do = "choose a pool, +pool@pools.tiny=tiny, or name experts: experts=[a,b]"
        raise UserError("there is nothing to merge", where="experts", do=do)
    names = [Path(path).name for path in config.experts]
    names = names if len(set(names)) == len(names) else list(config.experts)
    found = {name: Checkpoint(path=path) for name, path in zip(names, config.experts)}
    return Pool(base=config.base, experts=found), names


def category_experts(scores: Mapping[str, Mapping[str, float]], threshold: float) -> list[str]:
    """The experts that are best at a task which tells them apart from what another task does, in the given order.

    With ρ_ij Pearson's correlation over experts of their scores on tasks i and j, such tasks are
    {i: |ρ_ij| < ``threshold`` for some j}; equal experts: the first. ``scores`` are by expert and task. UserError
    where fewer than two experts are left. SoCE, Maiti et al. 2025, https://arxiv.org/abs/2511.13254.
    """
    names, tasks = list(scores), list(next(iter(scores.values())))
    table = np.array([[scores[name][task] for task in tasks] for name in names])  # [experts, tasks]
    with np.errstate(invalid="ignore", divide="ignore"):
        correlation = np.atleast_2d(np.corrcoef(table, rowvar=False))
    apart = (np.abs(correlation) < threshold).any(axis=1)
    best = {names[int(place)] for place, kept in zip(table.argmax(axis=0), apart) if kept}
    if len(best) < 2:
        what = f"{next(iter(best))} is best at every such task" if best else "the tasks rank all experts alike"
        do = f"raise the threshold (below 1), or leave it out: search.category_experts={threshold:g}"
        raise UserError(f"there are no category experts: {what}", where="search.category_experts", do=do)
    return [name for name in names if name in best]
