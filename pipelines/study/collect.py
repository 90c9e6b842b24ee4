"""Collecting one statistic: the expert live in memory, its examples one after another, the sums into the store."""

from __future__ import annotations

import dataclasses
import hashlib
import random
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from safetensors.torch import save_file
from transformers import AutoTokenizer

from conf.errors import UserError
from conf.schema import Base, Checkpoint, Collect, Config, Suite, Task, Training
from mergeopt_core.geometry.information import diagonal_fisher, input_grams
from pipelines.evaluate.quiet import fitting_threads
from pipelines.finetune.data import read_rows
from pipelines.finetune.tokens import Example, encode
from pipelines.progress import SILENT, Progress
from pipelines.store.store import Entry
from pipelines.study.information import FILE, Subject, check_collect, make_statistics, pool_subjects
from pipelines.study.layout import access_of, make_pools
from pipelines.study.sources import Access, Source, find_checkpoint, make_base, named
from pipelines.study.trial import Trial
from pipelines.study.worker import Worker
from pipelines.threads import threads

Statistic = tuple[dict[str, torch.Tensor], dict[str, str]]
"""Tensors by parameter name, and names that share another one's tensor."""


def collect_statistic(kind: str, base: Source, subject: Subject, key: str, worker: Worker, collect: Collect) -> None:
    """Run the expert over its examples and commit the statistic; UserError where a number is not finite."""
    assert subject.task is not None
    access = worker.access
    trial = Trial("expert", base, (subject.expert,), Suite(dtype="float32"), {})
    model = worker.model(trial)
    examples = _examples(model, base, subject.task, access, collect)
    with threads(worker.executor.threads or fitting_threads(model)):
        try:
            tensors, aliases = _fisher(model, examples, collect) if kind == "fisher" else _grams(model, examples)
        except ValueError as error:
            raise UserError(f"{kind} statistics of {subject.name}: {error}", where=subject.expert.path) from None
    _check_names(tensors, subject, worker)
    about = {
        "name": subject.name,
        "statistic": kind,
        "task": subject.task.name,
        "expert": dataclasses.asdict(subject.expert),
        "base": dataclasses.asdict(base),
        "settings": dataclasses.asdict(collect),
        "examples": len(examples),
        "tokens": sum(len(e.ids) for e in examples),
        "aliases": aliases,
    }
    with access.store.commit("statistics", key, about) as draft:
        save_file({name: tensor.cpu().contiguous() for name, tensor in tensors.items()}, draft / FILE)
        about["sha256"] = hashlib.sha256((draft / FILE).read_bytes()).hexdigest()


def _examples(model: Any, base: Source, task: Task, access: Access, collect: Collect) -> list[Example]:
    """Token ids with the start of each completion: a seeded choice of the task's training examples."""
    rows = read_rows(task, collect.seed, access.datasets, access.online)
    if len(rows) > collect.examples:
        rows = random.Random(f"statistics {collect.seed}").sample(rows, collect.examples)
    context = int(getattr(model.config, "max_position_embeddings", None) or 1 << 30)
    return encode(rows, AutoTokenizer.from_pretrained(base.path), task, Training(truncate=True), context)


def _check_names(tensors: Mapping[str, Any], subject: Subject, worker: Worker) -> None:
    """UserError where the live model calls its weights otherwise than the checkpoint: a merge would not find them."""
    checkpoint = worker.access.open(subject.expert.path)
    unknown = [] if checkpoint.adapter else [name for name in tensors if name not in checkpoint.header]
    if unknown:
        what = f"the model calls its weights otherwise than the checkpoint does ({unknown[0]})"
        raise UserError(what, where=subject.expert.path, do="save it anew with transformers' save_pretrained")


def _fisher(model: Any, examples: Sequence[Example], collect: Collect) -> Statistic:
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


def _grams(model: Any, examples: Sequence[Example]) -> Statistic:
    device = next(model.parameters()).device

    def forward(live: Any, example: Any) -> None:
        live(input_ids=torch.tensor([example.ids], device=device), use_cache=False)

    return input_grams(model, examples, forward)


def collect_statistics(config: Config, progress: Progress = SILENT) -> list[Entry]:
    """Collect every statistic of ``collect.kinds`` that the store lacks; experts of a pool are made where need be.

    Raises UserError where there is no expert, or none with a task.
    """
    check_collect(config.collect)
    access = access_of(config)
    pairs = _pools(config, access, progress) if config.pools else _experts(config, access, progress)
    for _, subject in pairs:
        if subject.task is None:
            progress.note(f"{subject.name} is left out: the pool does not say what it was trained on", "warning")
    if all(subject.task is None for _, subject in pairs):
        do = "name an expert and its data: experts=[DIR] task=file task.path=FILE"
        raise UserError("there is no expert with a task to collect statistics on", where="experts", do=do)
    access.fetch(progress, [subject.expert.path for _, subject in pairs if subject.task is not None])
    return make_statistics(pairs, config.collect.kinds, access, config, progress)


def _pools(config: Config, access: Access, progress: Progress) -> list[tuple[Source, Subject]]:
    make_pools(config, access, progress)
    bases = {name: make_base(pool.base, access, progress) for name, pool in config.pools.items()}
    return [(bases[name], s) for name, pool in config.pools.items() for s in pool_subjects(pool, access)]


def _experts(config: Config, access: Access, progress: Progress) -> list[tuple[Source, Subject]]:
    if config.experts and not (config.task.skill or config.task.path):
        do = "say what the experts were trained on: task.path=FILE, or task=skills/add"
        raise UserError("no task is named", where="task", do=do)
    found = [(path, find_checkpoint(Checkpoint(path=path), access)) for path in config.experts]
    base = None if config.base == Base() else make_base(config.base, access, progress)
    return [(base or expert, Subject(path, expert, named(config.task))) for path, expert in found]
