"""What can be known to be wrong with a study before any file is opened."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from conf.errors import UserError, nearest, raise_all
from conf.schema import Config
from mergeopt_core.merging.mergekit_api import describe, names
from pipelines.finetune.optimizers import check_training
from pipelines.report.views import check_views
from pipelines.study.columns import view_columns
from pipelines.study.information import check_collect
from pipelines.study.methods import WORDS, study_method
from pipelines.study.recipes import check_method, takes
from pipelines.study.selection import check_selection
from pipelines.study.sources import pool_recipes
from pipelines.study.subsets import check_pairs, check_subsets, narrowed, pool_subsets

KEEP = ("none", "best", "all")
"""Which merged checkpoints a study leaves on disk."""


def check_study(config: Config) -> None:
    """UserError for what can be known to be wrong with a study before any file is opened."""
    if not config.pools:
        do = "choose one, such as +experiment=quickstart"
        raise UserError("there is no study to run", where="pools is empty", do=do)
    if not config.methods and not (config.sampler.base or config.sampler.singles):
        raise UserError("the study scores nothing", where="methods", do="add a method: +method@methods.ties=ties")
    for name, pool in config.pools.items():
        where = f"pools.{name}"
        if both := sorted(set(pool.experts) & set(pool.tasks)):
            raise UserError(f"pool {name} names {both[0]!r} among experts and tasks", where=where, do="rename one")
        if pool.seeds and pool.experts:
            what = f"pool {name} has experts that were found, which are of one training each"
            raise UserError(what, where=f"{where}.seeds", do="leave seeds out, or give the pool tasks alone")
        if not pool.experts and not pool.tasks:
            raise UserError(f"pool {name} has no experts", where=where, do="give it experts or tasks")
        for recipe in pool_recipes(pool).values():
            check_training(recipe.training, str(recipe.finetuning.get("method", "plain")))
        if pool.reference is not None and pool.reference not in config.pools:
            do = nearest(pool.reference, config.pools)
            raise UserError(f"no pool is called {pool.reference!r}", where=f"{where}.reference", do=do)
    if config.keep not in KEEP:
        raise UserError(f"keep={config.keep} is no choice", where="keep", do=nearest(config.keep, KEEP))
    check_collect(config.collect)
    check_subsets(config)
    if config.sampler.draws < 1:
        raise UserError("a random method merges at least once", where="sampler.draws", do="give it 1 or more")
    config = narrowed(config)
    subsets = [subset for pool in config.pools.values() for subset in pool_subsets(pool, config)]
    sizes = dict.fromkeys(len(subset.experts) for subset in subsets)
    suites = {repr(subset.suite): subset.suite for subset in subsets}.values()
    for label, method in config.methods.items():
        _check_method(label, method, list(sizes))
        for suite in suites if method.get("select") else ():
            check_selection(suite, method["select"], f"methods.{label}.select")
    for name, pool in config.pools.items():
        check_pairs(config.report.landscape, [*pool.experts, *pool.tasks], f"report.landscape, in pools.{name}")
    raise_all(check_views(config.report, view_columns(config)))


def _check_method(label: str, method: Mapping[str, Any], sizes: list[int]) -> None:
    """UserError for a method whose words, or any of whose merges, cannot be."""
    where, name = f"methods.{label}", method.get("method")
    if name in names():
        parameters = [p.name for p in describe(str(name)).parameters]
        for key in method:
            if key not in ("method", *WORDS, *parameters):
                do = nearest(str(key), [*parameters, *WORDS])
                raise UserError(f"merge method {name} has no parameter {key!r}", where=where, do=do)
    for variant in study_method(label, method).variants:
        fitting = [size for size in sizes if name in names() and takes(describe(str(name)), size)]
        for size in fitting or (None,):
            check_method(variant, where, size)
