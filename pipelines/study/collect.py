"""Making what a study still lacks: bases, experts, and the information that its methods need of their data."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import itertools
import random
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from safetensors.torch import save_file

from conf.errors import UserError, raise_all
from conf.schema import Base, Checkpoint, Collect, Config, Suite, Training
from mergeopt_core.geometry.information import diagonal_fisher, input_grams
from pipelines.checkpoints.load import load_tokenizer
from pipelines.finetune.data import read_rows
from pipelines.finetune.tokens import Example, encode
from pipelines.process import fitting_threads, threads
from pipelines.progress import SILENT, Progress
from pipelines.store.store import Entry
from pipelines.study.executors import Workers, open_workers
from pipelines.study.experts import clear_exchanges, phases
from pipelines.study.information import FILE, Expert, check_collect, information_key, needed_kinds, pool_experts
from pipelines.study.sources import (
    Access,
    ExpertRecipe,
    Source,
    Unmade,
    access_of,
    find_checkpoint,
    find_expert,
    joint_recipe,
    make_base,
    named,
    pool_recipes,
    runs,
)
from pipelines.study.subsets import narrowed
from pipelines.study.trial import Trial
from pipelines.study.worker import Worker, find_device

Tensors = tuple[dict[str, torch.Tensor], dict[str, str]]
"""Tensors by parameter name, and names that share another one's tensor."""


def make_pools(
    config: Config, access: Access, progress: Progress = SILENT, workers: Callable[[], Workers] | None = None
) -> list[tuple[Source, Expert]]:
    """Make every base, expert and piece of information of the study that the store does not hold yet.

    ``workers`` gives those that make experts; default: the executor's, started for this alone. Returns each pool's
    experts with their base.
    """
    config = narrowed(config)
    bases = {name: make_base(pool.base, access, progress) for name, pool in config.pools.items()}
    pools = [(name, run) for name, pool in config.pools.items() for run in runs(pool)]
    recipes = [(bases[name], recipe) for name, pool in pools for recipe in pool_recipes(pool).values()]
    if config.references.joint:
        recipes += [(bases[name], joint) for name, pool in pools if (joint := joint_recipe(pool))]
    unmade = [(base, r) for base, r in recipes if isinstance(find_expert(r, base, access), Unmade)]
    _make_experts(unmade, access, config, progress, workers)
    experts = [(bases[name], e) for name, pool in pools for e in pool_experts(pool, access)]
    if kinds := needed_kinds(config.methods):
        access.fetch(progress, [expert.source.path for _, expert in experts])
        collect_information(experts, kinds, access, config, progress)
    return experts


def _make_experts(
    unmade: Sequence[tuple[Source, ExpertRecipe]], access: Access, config: Config, progress: Progress,
    workers: Callable[[], Workers] | None,
) -> None:  # fmt: skip
    """Make experts on workers, phase by phase; UserError with all that went wrong in a phase, once that is over."""
    if not unmade:
        return
    by_base: dict[Source, list[ExpertRecipe]] = {}
    for base, recipe in unmade:
        by_base.setdefault(base, []).append(recipe)
    small = find_device(config.executor).type == "cpu"
    planned = [phases(recipes, base, access, small) for base, recipes in by_base.items()]
    with contextlib.ExitStack() as stack, progress.step("experts", len(unmade)) as step:
        at_work = workers() if workers else stack.enter_context(open_workers(config.executor, access))
        for phase in itertools.zip_longest(*planned, fillvalue=()):
            jobs = [job for part in phase for job in part]
            reasons = at_work.train(jobs, lambda job: step.advance(job.finished, expert=job.names), progress)
            raise_all([UserError(reason) for reason in reasons])
    for base, recipes in by_base.items():
        clear_exchanges(recipes, base, access)
        for recipe in recipes:
            access.must_hold("experts", recipe.key(base, access))


def collect_statistics(config: Config, progress: Progress = SILENT) -> list[Entry]:
    """Collect all of ``collect.kinds`` that the store lacks, of a pool's experts (made first) or of given experts.

    Raises UserError where there is no expert, or none with a task.
    """
    check_collect(config.collect)
    access = access_of(config)
    experts = make_pools(config, access, progress) if config.pools else _given_experts(config, access, progress)
    for _, expert in experts:
        if expert.task is None:
            progress.note(f"{expert.name} is left out: the pool does not say what it was trained on", "warning")
    if all(expert.task is None for _, expert in experts):
        do = "name an expert and its data: experts=[DIR] task=file task.path=FILE"
        raise UserError("there is no expert with a task to collect statistics on", where="experts", do=do)
    access.fetch(progress, [expert.source.path for _, expert in experts if expert.task is not None])
    return collect_information(experts, config.collect.kinds, access, config, progress)


def _given_experts(config: Config, access: Access, progress: Progress) -> list[tuple[Source, Expert]]:
    if config.experts and not (config.task.skill or config.task.path):
        do = "say what the experts were trained on: task.path=FILE, or task=skills/add"
        raise UserError("no task is named", where="task", do=do)
    found = [Expert(path, find_checkpoint(Checkpoint(path), access), named(config.task)) for path in config.experts]
    base = None if config.base == Base() else make_base(config.base, access, progress)
    return [(base or expert.source, expert) for expert in found]


def collect_information(
    experts: Sequence[tuple[Source, Expert]],
    kinds: Sequence[str],
    access: Access,
    config: Config,
    progress: Progress = SILENT,
) -> list[Entry]:
    """Collect what the store lacks of experts, each with its base; returns all entries, in order.

    An expert without a task is left out. Raises UserError for a task without data and for numbers that are not finite.
    """
    store, worker = access.store, Worker(access, dataclasses.replace(config.executor, device_map=None))
    asked = [(base, expert, kind) for base, expert in experts for kind in kinds if expert.task is not None]
    keys = [information_key(kind, expert, access, config.collect) for _, expert, kind in asked]
    missing = [(key, one) for key, one in zip(keys, asked) if not store.has("statistics", key)]
    with progress.step("statistics", len(missing)) as step:
        for key, (base, expert, kind) in missing:
            with store.claim("statistics", key):
                if not store.has("statistics", key):
                    _collect(kind, base, expert, key, worker, config.collect)
            step.advance(1, expert=expert.name, statistic=kind)
    return [store.entry("statistics", key) for key in keys]


def _collect(kind: str, base: Source, expert: Expert, key: str, worker: Worker, collect: Collect) -> None:
    """Run the expert over its examples and commit what they tell; UserError where a number is not finite."""
    assert expert.task is not None
    model = worker.model(Trial("expert", base, (expert.source,), Suite(dtype="float32"), {}))
    examples = _examples(model, base, expert, worker.access, collect)
    with threads(worker.executor.threads or fitting_threads(model)):
        try:
            tensors, aliases = _fisher(model, examples, collect) if kind == "fisher" else _grams(model, examples)
        except ValueError as error:
            raise UserError(f"{kind} statistics of {expert.name}: {error}", where=expert.source.path) from None
    _check_names(tensors, expert.source.path, worker.access)
    about = {
        "name": expert.name,
        "statistic": kind,
        "task": expert.task.name,
        "expert": dataclasses.asdict(expert.source),
        "base": dataclasses.asdict(base),
        "settings": dataclasses.asdict(collect),
        "examples": len(examples),
        "tokens": sum(len(e.ids) for e in examples),
        "aliases": aliases,
    }
    with worker.access.store.commit("statistics", key, about) as draft:
        save_file({name: tensor.cpu().contiguous() for name, tensor in tensors.items()}, draft / FILE)
        about["sha256"] = hashlib.sha256((draft / FILE).read_bytes()).hexdigest()


def _examples(model: Any, base: Source, expert: Expert, access: Access, collect: Collect) -> list[Example]:
    """Token ids with the start of each completion: a seeded choice of the task's training examples."""
    assert expert.task is not None
    rows = read_rows(expert.task, collect.seed, access.datasets, access.online)
    if len(rows) > collect.examples:
        rows = random.Random(f"statistics {collect.seed}").sample(rows, collect.examples)
    context = int(getattr(model.config, "max_position_embeddings", None) or 1 << 30)
    return encode(rows, load_tokenizer(base.path), expert.task, Training(truncate=True), context)


def _check_names(tensors: Mapping[str, Any], path: str, access: Access) -> None:
    """UserError where the live model calls its weights otherwise than the checkpoint: a merge would not find them."""
    checkpoint = access.open(path)
    unknown = [] if checkpoint.adapter else [name for name in tensors if name not in checkpoint.header]
    if unknown:
        what = f"the model calls its weights otherwise than the checkpoint does ({unknown[0]})"
        raise UserError(what, where=path, do="save it anew with transformers' save_pretrained")


def _fisher(model: Any, examples: Sequence[Example], collect: Collect) -> Tensors:
    device = next(model.parameters()).device
    generator = torch.Generator().manual_seed(collect.seed)

    def log_likelihood(live: Any, example: Any) -> Any:
        """Σ log p of the completion's tokens given what is before them: the data's own, or drawn from the model."""
        ids = torch.tensor([example.ids], device=device)  # [1, T]
        start = max(1, example.start)
        scores = live(input_ids=ids, use_cache=False).logits[0, start - 1 : -1].float().log_softmax(-1)  # [C, V]
        labels = ids[0, start:]  # [C]
        if collect.labels == "sampled":
            labels = torch.multinomial(scores.detach().exp().cpu(), 1, generator=generator)[:, 0].to(device)
        return scores.gather(1, labels[:, None]).sum()

    return diagonal_fisher(model, examples, log_likelihood), {}


def _grams(model: Any, examples: Sequence[Example]) -> Tensors:
    device = next(model.parameters()).device

    def forward(live: Any, example: Any) -> None:
        live(input_ids=torch.tensor([example.ids], device=device), use_cache=False)

    return input_grams(model, examples, forward)
