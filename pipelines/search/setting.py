"""What a search is about: the experts that are merged, the splits that are tuned on and reported, the trials."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from conf.errors import UserError, nearest
from conf.schema import Checkpoint, Config, Pool, Suite
from mergeopt_core.merging.mergekit_api import describe
from pipelines.checks import check_method
from pipelines.collect import Subject, need_statistics, open_statistics, pool_subjects
from pipelines.evaluate import check_suite, suite_fingerprint
from pipelines.evaluate.definitions import OWN_TASKS, leaves
from pipelines.evaluate.index import task_index
from pipelines.merge.recipe import Recipe
from pipelines.merge.stream import Merge
from pipelines.progress import SILENT, Progress
from pipelines.sources import Access, Source, find_checkpoint, make_base
from pipelines.study import access_of, make_pools
from pipelines.trial import Trial

SPLITS = ("train", "validation", "test")
"""Splits of a built-in skill."""


@dataclass(frozen=True)
class Setting:
    """Everything of a search but the parameters that it tries."""

    config: Config
    access: Access
    base: Source
    subjects: tuple[Subject, ...]
    statistics: tuple[Source, ...]
    tuning: Suite
    reporting: Suite

    def trial(self, method: Mapping[str, Any], suite: Suite) -> Trial:
        """The trial of one configuration of the method on one of the two suites."""
        config = self.config
        name, parameters = check_method(method, experts=[subject.name for subject in self.subjects])
        experts = tuple(subject.expert for subject in self.subjects)
        recipe = Recipe(
            self.base.path, tuple(e.path for e in experts), name, parameters, config.seed, config.dtype, config.vocab,
            config.strict,
        )  # fmt: skip
        fingerprint = suite_fingerprint(suite, config.datasets)
        names = tuple(subject.name for subject in self.subjects)
        random = describe(name).random
        return Trial("merge", self.base, experts, suite, fingerprint, recipe, random, names, self.statistics)


def expert_names(config: Config) -> list[str]:
    """Names of the merged experts, in order; UserError where there are none, or no such ones in the pool."""
    pool = _pool(config)
    if pool is None:
        if not config.experts:
            do = "choose a pool, +pool@pools.tiny=tiny, or name experts: experts=[a,b]"
            raise UserError("there is nothing to merge", where="experts", do=do)
        short = [Path(path).name for path in config.experts]
        return short if len(set(short)) == len(short) else list(config.experts)
    known = [*pool.experts, *pool.tasks]
    for name in config.experts:
        if name not in known:
            raise UserError(f"the pool has no expert {name!r}", where="experts", do=nearest(name, known))
    return list(config.experts) or known


def tuning_suites(config: Config) -> tuple[Suite, Suite]:
    """The suite on the split that is tuned on, and on the one that is reported.

    Raises UserError for a suite that is wrong, and where both splits are the same one and ``search.force`` is off.
    """
    pool, search = _pool(config), config.search
    suite = (pool.suite if pool else None) or config.suite
    if any(task.skill for task in suite.tasks.values()):
        for name, split in (("split", search.split), ("report", search.report)):
            if split not in SPLITS:
                what = f"a built-in skill has no split {split!r}"
                raise UserError(what, where=f"search.{name}", do=nearest(split, SPLITS))
    made = tuple(_on_split(suite, split) for split in (search.split, search.report))
    for one in made:
        if problems := check_suite(one, config.datasets, config.online):
            raise UserError(problems[0], where=f"suite {suite.name}", do="mend the suite")
    same = same_split(config)
    if same and not search.force:
        what = f"{same[0]} would be tuned on the split that is reported"
        do = "choose another search.split or search.report, such as search.split=train, or set search.force=true"
        raise UserError(what, where=f"search.split={search.split}, search.report={search.report}", do=do)
    return made[0], made[1]


def same_split(config: Config) -> list[str]:
    """Tasks of the suite whose documents would be tuned on and reported."""
    pool, search = _pool(config), config.search
    suite = (pool.suite if pool else None) or config.suite
    if search.split == search.report:
        return list(suite.tasks)
    index, same = task_index(OWN_TASKS, suite.include_path), []
    for name, spec in suite.tasks.items():
        found = leaves(spec.task or name, index) if spec.skill is None and (spec.task or name) in index else []
        if any(leaf.split(search.split) == leaf.split(search.report) for leaf in found):
            same.append(name)
    return same


def make_setting(config: Config, suites: tuple[Suite, Suite], progress: Progress = SILENT) -> Setting:
    """Open what is merged, made first where it is missing; UserError for experts that do not fit the base."""
    access = access_of(config)
    chosen, pool = expert_names(config), _pool(config)
    if pool is None:
        found = [find_checkpoint(Checkpoint(path=path), access) for path in config.experts]
        base = make_base(config.base, access, progress)
        subjects = [Subject(name, expert) for name, expert in zip(chosen, found)]
    else:
        make_pools(dataclasses.replace(config, methods={"search": config.method}), access, progress)
        base = make_base(pool.base, access, progress)
        own = {subject.name: subject for subject in pool_subjects(pool, access)}
        subjects = [own[name] for name in chosen]
    access.fetch(progress, [subject.expert.path for subject in subjects])
    statistics = need_statistics(str(config.method.get("method")), subjects, access, config.collect)
    setting = Setting(config, access, base, tuple(subjects), statistics, *suites)
    _check_merge(setting)
    return setting


def _check_merge(setting: Setting) -> None:
    """Raise what headers show to be wrong with the merge."""
    trial, access = setting.trial(setting.config.method, setting.tuning), setting.access
    assert trial.merge is not None
    merge = Merge(
        trial.merge,
        access.open(trial.base.path),
        [access.open(source.path) for source in trial.experts],
        [source.fingerprint for source in trial.experts],
        statistics=[open_statistics(source) for source in trial.statistics] or None,
    )
    merge.check()


def _pool(config: Config) -> Pool | None:
    pools: Sequence[Pool] = list(config.pools.values())
    if len(pools) > 1:
        raise UserError(
            f"a search takes one pool, not {len(pools)}", where="pools", do="leave the others out: ~pools.NAME"
        )
    return pools[0] if pools else None


def _on_split(suite: Suite, split: str) -> Suite:
    tasks = {name: dataclasses.replace(task, split=None) for name, task in suite.tasks.items()}
    return dataclasses.replace(suite, tasks=tasks, split=split)
