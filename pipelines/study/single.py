"""One model at a time: fine-tune one expert, write one merge, score one model."""

from __future__ import annotations

import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from conf.errors import UserError
from conf.schema import Base, Checkpoint, Config
from mergeopt_core.merging.mergekit_api import describe
from pipelines.evaluate import check_suite, suite_fingerprint
from pipelines.merge.recipe import Recipe
from pipelines.merge.stream import Merge, write_merge
from pipelines.progress import SILENT, Progress
from pipelines.store.store import Entry
from pipelines.study.executors.base import run_trials
from pipelines.study.information import Subject, need_statistics, open_statistics
from pipelines.study.layout import access_of, check_method
from pipelines.study.sources import (
    Access,
    ExpertRecipe,
    Source,
    Unmade,
    find_checkpoint,
    find_expert,
    make_base,
    make_expert,
    named,
)
from pipelines.study.trial import Trial
from pipelines.study.worker import find_device
from pipelines.threads import threads


@dataclass(frozen=True)
class Made:
    """A checkpoint and what is known of it."""

    folder: Path
    entry: dict[str, Any]
    new: bool


def finetune_expert(config: Config, progress: Progress = SILENT) -> Made:
    """Fine-tune ``base`` on ``task``; the expert goes into the store, and a copy to ``out`` where that is set."""
    from pipelines.finetune import check_finetuning, task_fingerprint

    check_finetuning(config.finetuning)
    _check_out(config.out)
    find_device(config.executor.device)
    access = access_of(config)
    task = named(config.task)
    recipe = ExpertRecipe(
        task.name, config.base, task, config.finetuning, config.optimizer, config.training, config.seed
    )
    task_fingerprint(task, access.datasets, access.online)  # data that cannot be had are told before a base is made
    base = make_base(config.base, access, progress)
    new = isinstance(find_expert(recipe, base, access), Unmade)
    expert = make_expert(recipe, base, access, progress, config.executor)
    folder = Path(expert.path)
    entry = Entry("experts", folder.name, folder).describe()
    return Made(_copy_out(folder, config.out), entry, new)


def merge_checkpoint(config: Config, progress: Progress = SILENT) -> Made:
    """Merge ``experts`` over ``base`` by ``method`` into an ordinary checkpoint folder at ``out``."""
    if not config.out:
        raise UserError("there is no folder to write the merged model to", where="out", do="name one with out=DIR")
    device = _merge_device(config)
    merge = _merge(config, access_of(config), progress)
    with threads(config.executor.threads):
        write_merge(merge, Path(config.out), progress, device=device)
    return Made(Path(config.out), {"recipe": merge.recipe.to_dict()}, True)


def merge_mergekit_config(config: Config, file: str, progress: Progress = SILENT) -> Made:
    """Run a mergekit YAML, with our methods registered, into the folder ``out``."""
    from pipelines.merge.mergekit_yaml import run_mergekit_config

    if not config.out:
        raise UserError("there is no folder to write the merged model to", where="out", do="name one with out=DIR")
    run_mergekit_config(
        Path(file), Path(config.out), progress, seed=config.seed, online=config.online,
        allow_pickle=config.allow_pickle, device=_merge_device(config),
    )  # fmt: skip
    return Made(Path(config.out), {"mergekit_config": file}, True)


def evaluate_model(config: Config, progress: Progress = SILENT) -> Entry:
    """Score ``model`` (a folder, hub id or store key), or the merge of ``experts``, or ``base``, on ``suite``.

    The result is in the store, and a copy of it in ``out`` where that is set.
    """
    _check_out(config.out)
    if problems := check_suite(config.suite, config.datasets):
        raise UserError(
            problems[0], where=f"suite {config.suite.name}", do="mend the suite, or name a mirror with datasets=DIR"
        )
    find_device(config.executor.device)
    access = access_of(config)
    trial = _trial(config, access, progress)
    with progress.step(f"evaluate on {config.suite.name}"):
        once = replace(config.executor, retries=0)
        outcome = run_trials([trial], once, access, lambda *_: None)
    if outcome.interrupted:
        raise KeyboardInterrupt
    entry = access.store.entry("results", trial.key) if access.store.has("results", trial.key) else None
    if entry is None or all(task["error"] for task in entry.describe()["tasks"].values()):
        raise UserError(f"the model could not be scored: {outcome.failures[0].reason}")
    _copy_out(entry.folder, config.out)
    return entry


def names(config: Config) -> tuple[str, ...]:
    """What ``evaluate`` is asked to score, as it was named."""
    if config.model:
        return (config.model,)
    return tuple(config.experts) or (config.base.name or config.base.path,)


def _trial(config: Config, access: Access, progress: Progress) -> Trial:
    fingerprint = suite_fingerprint(config.suite, config.datasets)
    if config.model:
        model = find_checkpoint(Checkpoint(path=config.model), access)
        access.fetch(progress, [model.path])
        return Trial("base", model, (), config.suite, fingerprint, names=names(config))
    if not config.experts:
        if config.base == Base():
            do = "name one with model=DIR, experts=[A,B] and their base, base.path=DIR, or base=tiny"
            raise UserError("there is no model to score", where="model", do=do)
        base = make_base(config.base, access, progress)
        return Trial("base", base, (), config.suite, fingerprint, names=names(config))
    base, experts = _sources(config, access, progress)
    recipe = _recipe(config, base, experts)
    random = describe(recipe.method).random
    statistics = _statistics(config, experts, access)
    return Trial("merge", base, experts, config.suite, fingerprint, recipe, random, names(config), statistics)


def _merge(config: Config, access: Access, progress: Progress) -> Merge:
    base, experts = _sources(config, access, progress)
    statistics = [open_statistics(source) for source in _statistics(config, experts, access)]
    return Merge(
        _recipe(config, base, experts),
        access.open(base.path),
        [access.open(expert.path) for expert in experts],
        [expert.fingerprint for expert in experts],
        statistics=statistics or None,
    )


def _statistics(config: Config, experts: tuple[Source, ...], access: Access) -> tuple[Source, ...]:
    """What the method needs of each expert's data; UserError where the store lacks it."""
    subjects = [Subject(name, expert) for name, expert in zip(config.experts, experts)]
    return need_statistics(str(config.method["method"]), subjects, access, config.collect)


def _sources(config: Config, access: Access, progress: Progress) -> tuple[Source, tuple[Source, ...]]:
    if not config.experts:
        raise UserError(
            "there is nothing to merge", where="experts", do="name folders, hub ids or store keys: experts=[a,b]"
        )
    check_method(config.method, experts=config.experts)
    experts = tuple(find_checkpoint(Checkpoint(path=path), access) for path in config.experts)
    base = make_base(config.base, access, progress)
    access.fetch(progress)
    return base, experts


def _recipe(config: Config, base: Source, experts: tuple[Source, ...]) -> Recipe:
    method, parameters = check_method(config.method, experts=config.experts)
    return Recipe(
        base.path,
        tuple(expert.path for expert in experts),
        method,
        parameters,
        config.seed,
        config.dtype,
        config.vocab,
        config.strict,
    )


def _merge_device(config: Config) -> str:
    """Where a merge is computed: on the CPU, whose bits are the same everywhere, unless another device is named."""
    return "cpu" if config.executor.device == "auto" else str(find_device(config.executor.device))


def _check_out(out: str | None) -> None:
    place = Path(out or "").expanduser()
    if out is not None and place.exists() and (place.is_file() or any(place.iterdir())):
        raise UserError("the folder is not empty", where=out, do="name a new folder with out=DIR")


def _copy_out(folder: Path, out: str | None) -> Path:
    if out is None:
        return folder
    return Path(shutil.copytree(folder, Path(out).expanduser(), dirs_exist_ok=True))
