"""One model at a time: fine-tune one expert, write one merge, score one model."""

from __future__ import annotations

import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from conf.errors import UserError
from conf.schema import Base, Checkpoint, Config
from pipelines.checkpoints.card import linearised_at
from pipelines.evaluate import check_suite, suite_fingerprint
from pipelines.merge.adapter import write_adapter
from pipelines.merge.recipe import Recipe
from pipelines.merge.write import write_merge
from pipelines.process import threads
from pipelines.progress import SILENT, Progress
from pipelines.ranks import rank, ranks
from pipelines.store.store import Entry
from pipelines.study.executors import run_trials
from pipelines.study.experts import make_expert
from pipelines.study.information import Expert, need_information
from pipelines.study.recipes import make_recipe
from pipelines.study.sources import (
    Access,
    ExpertRecipe,
    Source,
    Unmade,
    access_of,
    find_checkpoint,
    find_expert,
    make_base,
    named,
)
from pipelines.study.trial import Trial, open_merge
from pipelines.study.worker import find_device


@dataclass(frozen=True)
class Made:
    """A checkpoint and what is known of it."""

    folder: Path
    entry: dict[str, Any]
    new: bool


def finetune_expert(config: Config, progress: Progress = SILENT) -> Made:
    """Fine-tune ``base`` on ``task``; the expert goes into the store, and a copy to ``out`` where that is set."""
    from pipelines.finetune import check_finetuning

    check_finetuning(config.finetuning)
    _check_out(config.out)
    find_device(config.executor)
    access = access_of(config)
    task = named(config.task)
    training = replace(config.training, ranks=ranks()) if config.training.ranks == 1 else config.training
    settings = (config.finetuning, config.optimizer, training, config.seed)
    recipe = ExpertRecipe(task.name, config.base, task, *settings)
    access.data_fingerprint(task)  # data that cannot be had are told before a base is made
    base = make_base(config.base, access, progress)
    new = isinstance(find_expert(recipe, base, access), Unmade)
    make_expert(recipe, base, access, progress, config.executor)
    folder = Path(access.must_hold("experts", recipe.key(base, access)).path)
    entry = Entry("experts", folder.name, folder).describe()
    return Made(_copy_out(folder, config.out if rank() == 0 else None), entry, new)


def merge_checkpoint(config: Config, progress: Progress = SILENT) -> Made:
    """Merge ``experts`` over ``base`` by ``method`` into an ordinary checkpoint folder at ``out``.

    With ``out_adapter`` into a LoRA adapter, whose update is taken in float32 unless another dtype is asked for.
    """
    out, device, access = _merge_out(config), _merge_device(config), access_of(config)
    if config.out_adapter is not None and config.dtype == "auto":
        config = replace(config, dtype="float32")
    merge = open_merge(*_ingredients(config, access, progress), access.open)
    with threads(config.executor.threads):
        if config.out_adapter is None:
            write_merge(merge, out, progress, device=device)
        else:
            write_adapter(merge, out, config.out_adapter, progress, device=device)
    return Made(out, {"recipe": merge.recipe.to_dict()}, True)


def extract_adapter(config: Config, progress: Progress = SILENT) -> Made:
    """Write ``model`` as an adapter of rank ``out_adapter`` on ``base``: the merge of one expert."""
    for name, do in (("model", "name a folder, hub id or store key: model=DIR"), ("out_adapter", "out_adapter=16")):
        if getattr(config, name) is None:
            raise UserError(f"{name} is not given", where=name, do=do)
    assert config.model is not None
    method = {"method": "task_arithmetic"}
    return merge_checkpoint(replace(config, experts=[config.model], method=method), progress)


def merge_mergekit_config(config: Config, file: str, progress: Progress = SILENT) -> Made:
    """Run a mergekit YAML, with our methods registered, into the folder ``out``."""
    from pipelines.merge.mergekit_yaml import run_mergekit_config

    out = _merge_out(config)
    run_mergekit_config(
        Path(file), out, progress, seed=config.seed, online=config.online,
        allow_pickle=config.allow_pickle, device=_merge_device(config),
    )  # fmt: skip
    return Made(out, {"mergekit_config": file}, True)


def evaluate_model(config: Config, progress: Progress = SILENT) -> Entry:
    """Score ``model`` (a folder, hub id or store key), or the merge of ``experts``, or ``base``, on ``suite``.

    The result is in the store, and a copy of it in ``out`` where that is set.
    """
    _check_out(config.out)
    if problems := check_suite(config.suite, config.datasets):
        data = "data set" in problems[0] or "MIRROR" in problems[0]
        do = "name a mirror with datasets=DIR, or mend the suite" if data else "mend the suite"
        raise UserError(problems[0], where=f"suite {config.suite.name}", do=do)
    find_device(config.executor)
    access = access_of(config)
    trial = make_trial(config, access, progress)
    once = replace(config.executor, retries=0)
    with progress.step(f"evaluate on {config.suite.name}"):
        outcome = run_trials([trial], once, access, lambda *_: None, progress)
    if outcome.interrupted:
        raise KeyboardInterrupt
    entry = Entry("results", trial.key, access.store.folder("results", trial.key))
    if outcome.failures and not _partly_scored(entry, access):
        raise UserError(f"the model could not be scored: {outcome.failures[0].reason}")
    _copy_out(entry.folder, config.out)
    return entry


def _partly_scored(entry: Entry, access: Access) -> bool:
    scored = access.store.has(entry.kind, entry.key)
    return scored and not all(task["error"] for task in entry.describe()["tasks"].values())


def names(config: Config) -> tuple[str, ...]:
    """What ``evaluate`` is asked to score, as it was named."""
    if config.model:
        return (config.model,)
    return tuple(config.experts) or (config.base.name or config.base.path,)


def make_trial(config: Config, access: Access, progress: Progress = SILENT) -> Trial:
    """The trial that ``evaluate`` runs; its base is made where need be, and weights on the hub are fetched."""
    fingerprint = suite_fingerprint(config.suite, config.datasets)
    if config.experts and not config.model:
        recipe, base, experts, information = _ingredients(config, access, progress)
        return Trial("merge", base, experts, config.suite, fingerprint, recipe, names(config), information)
    if config.model:
        base = find_checkpoint(Checkpoint(path=config.model), access)
        access.fetch(progress, [base.path])
        if theta0 := _linearised_at(config, base, access, progress):
            return Trial("expert", theta0, (base,), config.suite, fingerprint, names=names(config))
    elif config.base == Base():
        do = "name one with model=DIR, experts=[A,B] and their base, base.path=DIR, or base=tiny"
        raise UserError("there is no model to score", where="model", do=do)
    else:
        base = make_base(config.base, access, progress)
    return Trial("base", base, (), config.suite, fingerprint, names=names(config))


def _linearised_at(config: Config, model: Source, access: Access, progress: Progress) -> Source | None:
    """The base that ``model`` is to be scored linearised at, as named or as its folder says; None for a network."""
    choice, recorded = config.suite.linearised, linearised_at(model.path)
    if choice is False or (choice == "auto" and not recorded):
        return None
    if config.base != Base():
        return make_base(config.base, access, progress)
    if not recorded or not Path(recorded).is_dir():
        what = f"it is not known at which base {config.model} is linear" + f" ({recorded} is gone)" * bool(recorded)
        raise UserError(
            what, where="suite.linearised", do="give suite.linearised=true base.path=DIR, or suite.linearised=false"
        )
    return find_checkpoint(Checkpoint(path=recorded), access)


Ingredients = tuple[Recipe, Source, tuple[Source, ...], tuple[Source, ...]]
"""Recipe, base, experts, and what the method needs of each expert's data."""


def _ingredients(config: Config, access: Access, progress: Progress) -> Ingredients:
    """What ``experts`` are merged from; UserError where the store lacks what the method needs of their data."""
    if not config.experts:
        do = "name folders, hub ids or store keys: experts=[a,b]"
        raise UserError("there is nothing to merge", where="experts", do=do)
    recipe = make_recipe(config, config.method, config.experts)
    experts = tuple(find_checkpoint(Checkpoint(path=path), access) for path in config.experts)
    base = make_base(config.base, access, progress)
    access.fetch(progress)
    pairs = [Expert(name, source) for name, source in zip(config.experts, experts)]
    return recipe, base, experts, need_information(recipe.method, pairs, access, config.collect)


def _merge_out(config: Config) -> Path:
    if not config.out:
        raise UserError("there is no folder to write the merged model to", where="out", do="name one with out=DIR")
    return Path(config.out)


def _merge_device(config: Config) -> str:
    """Where a merge is computed: on the CPU, whose bits are the same everywhere, unless another device is named."""
    return "cpu" if config.executor.device == "auto" else str(find_device(config.executor))


def _check_out(out: str | None) -> None:
    place = Path(out or "").expanduser()
    if out is not None and place.exists() and (place.is_file() or any(place.iterdir())):
        raise UserError("the folder is not empty", where=out, do="name a new folder with out=DIR")


def _copy_out(folder: Path, out: str | None) -> Path:
    if out is None:
        return folder
    return Path(shutil.copytree(folder, Path(out).expanduser(), dirs_exist_ok=True))
