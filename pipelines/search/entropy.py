"""AdaMerging: coefficients of task vectors found by gradient descent on the entropy of a merged model's answers.

Yang et al. 2024, https://arxiv.org/abs/2310.02575.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from conf.errors import UserError
from conf.schema import Search
from mergeopt_core.merging.lines import block_of
from pipelines.checkpoints.untrusted import check_types, read_json
from pipelines.evaluate.engine import Pair, answer, batches, forest, rows_only, tree
from pipelines.evaluate.evaluator import Evaluator
from pipelines.process import fitting_threads, threads
from pipelines.progress import Progress
from pipelines.study.trial import Trial
from pipelines.study.worker import Worker

OUTSIDE = "outside"
"""The group of tensors that belong to no block."""

Document = list[Pair]
"""Tokens of a document's prompt with each of its options."""


def descend(
    worker: Worker, merge: Trial, experts: Sequence[Trial], start: Sequence[float], search: Search, state: Path,
    progress: Progress,
) -> dict[str, Any]:  # fmt: skip
    """The parameters of ``adamerging`` after ``search.steps`` steps of Adam from ``start``, one coefficient an expert.

    min_a Σ_tasks mean_x H(p(· | x; θ0 + Σ_k a_k^l Δ_k)), a clipped to [0, 1] where the model reads it

    p is the softmax of the options' log-likelihoods. The gradient is ∂/∂a_k^l = ⟨∇_θ, Δ_k⟩ over the tensors of group l.
    In memory: the model, its gradient, the base, and every task vector. ``state`` is a file that the steps are
    kept in, so that an interrupted descent goes on. Raises UserError for a suite without options to choose from.
    """
    evaluator = worker.evaluator(merge, merge.reader)
    if not isinstance(evaluator, Evaluator):
        raise UserError("adamerging reads answers to prompts, not pictures", where="search.sampler")
    vectors = []
    for trial in experts:
        model = worker.model(trial)
        vectors.append(worker.vector(trial, model))  # leaves the base in the model
    base = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    groups = {name: _group(name, search.blocks) for name in base}
    descent = _Descent(sorted({*groups.values()}), start, search, state)
    with _learning(model), threads(worker.executor.threads or fitting_threads(model)):
        with evaluator.lm.holding(model, evaluator.scorer.batch_size):
            evaluator.scorer.prepare(model)
        tasks = answerable(evaluator)
        with progress.step("entropy", search.steps) as step:
            step.advance(descent.done)
            while descent.done < search.steps:
                place(model, base, vectors, groups, descent.read())
                loss = sum(_entropies(model, evaluator, docs).mean() for docs in descent.chosen(tasks))
                assert isinstance(loss, Tensor)
                loss.backward()
                descent.step(slopes(model, vectors, groups, descent.names))
                model.zero_grad(set_to_none=True)
                step.advance(1, entropy=float(loss.detach()) / len(tasks))
    return descent.parameters()


def place(
    model: nn.Module, base: Mapping[str, Tensor], vectors: Sequence[Mapping[str, Tensor]], groups: Mapping[str, str],
    coefficients: Mapping[str, Sequence[float]],
) -> None:  # fmt: skip
    """Put θ0 + Σ_k a_k^l Δ_k into the model."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            merged = base[name].clone()
            for vector, share in zip(vectors, coefficients[groups[name]]):
                merged.add_(vector[name], alpha=share)
            parameter.copy_(merged)


def slopes(
    model: nn.Module, vectors: Sequence[Mapping[str, Tensor]], groups: Mapping[str, str], names: Sequence[str]
) -> np.ndarray:
    """⟨∇_θ, Δ_k⟩ over the tensors of each group ``[groups, K]``, in float64."""
    found = np.zeros((len(names), len(vectors)))
    for name, parameter in model.named_parameters():
        if parameter.grad is not None:
            gradient, row = parameter.grad.flatten().double(), names.index(groups[name])
            found[row] += [float(gradient @ vector[name].flatten().double()) for vector in vectors]
    return found


def answerable(evaluator: Evaluator) -> list[list[Document]]:
    """Of every task with options, each document's requests; those without a prompt (of mutual information) left out."""
    tasks = []
    for leaf in (leaf for task in evaluator.tasks for leaf in task.leaves):
        pairs = iter(evaluator.scorer.pairs.get(id(leaf), []))
        if leaf.task.OUTPUT_TYPE != "multiple_choice":
            continue
        made = [[(request, next(pairs)) for request in requests] for requests in leaf.instances]
        tasks.append([[pair for request, pair in document if request.args[0]] for document in made])
    if not tasks:
        raise UserError("no task of the suite has options to choose from", where="search.sampler=adamerging")
    return tasks


def entropies(
    model: nn.Module, documents: Sequence[Document], max_length: int, width: int, size: int, share: bool
) -> Tensor:
    """H = −Σ_o p_o log p_o of each document ``[n]``, p the softmax of its options' log-likelihoods, in nats."""
    pairs = [pair for document in documents for pair in document]
    trees = forest(pairs, max_length, width) if share else [tree([i], pairs, max_length) for i in range(len(pairs))]
    order, values = [], []
    with rows_only(model) as rows:
        for batch in batches(trees, size):
            order += batch.requests
            values.append(answer(model, batch, rows)[0])
    by_request = torch.cat(values)[torch.tensor(np.argsort(order), device=values[0].device)]
    found = []
    for options in by_request.split([len(document) for document in documents]):
        log_p = torch.log_softmax(options, dim=0)
        found.append(-(log_p.exp() * log_p).sum())
    return torch.stack(found)


def _entropies(model: nn.Module, evaluator: Evaluator, documents: Sequence[Document]) -> Tensor:
    scorer, width = evaluator.scorer, model.get_input_embeddings().weight.shape[1]
    return entropies(model, documents, scorer.max_length, width, scorer.batch_size, scorer.share)


def _group(name: str, by_block: bool) -> str:
    block = block_of(name) if by_block else None
    return OUTSIDE if block is None else str(block)


@contextmanager
def _learning(model: nn.Module) -> Iterator[None]:
    """Let the model's weights have gradients for a while."""
    before = [parameter.requires_grad for parameter in model.parameters()]
    try:
        model.requires_grad_(True)
        yield
    finally:
        model.zero_grad(set_to_none=True)
        for parameter, required in zip(model.parameters(), before):
            parameter.requires_grad_(required)


class _Descent:
    """The coefficients ``[groups, K]``, Adam's moments of them, and the file that both are kept in."""

    def __init__(self, names: list[str], start: Sequence[float], search: Search, state: Path):
        self.names, self.search, self.file, self.done = names, search, state, 0
        self.raw = torch.tensor([list(start)] * len(names), dtype=torch.float64, requires_grad=True)
        self.adam = torch.optim.Adam([self.raw], lr=search.lr)
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError, UserError):  # a damaged file: from the start
            self._go_on(read_json(state))

    def _go_on(self, kept: dict[str, Any]) -> None:
        check_types(kept, {"done": int, "raw": list, "adam": dict}, self.file)
        found = [torch.tensor(part, dtype=torch.float64) for part in (kept["raw"], *kept["adam"].values())]
        if any(part.shape != self.raw.shape or not part.isfinite().all() for part in found) or kept["done"] < 1:
            raise ValueError(self.file)
        self.done, self.raw.data = int(kept["done"]), found[0]
        self.adam.state[self.raw] = {**dict(zip(kept["adam"], found[1:])), "step": torch.tensor(float(self.done))}

    def read(self) -> dict[str, list[float]]:
        """The coefficients as the model reads them, by group."""
        return dict(zip(self.names, self.raw.detach().clamp(0, 1).tolist()))

    def chosen(self, tasks: Sequence[Sequence[Document]]) -> Iterator[list[Document]]:
        """This step's documents of every task: a draw that depends on the seed, the step and the task alone."""
        for place, documents in enumerate(tasks):
            random = np.random.default_rng([self.search.seed, self.done, place])
            size = min(self.search.documents, len(documents))
            yield [documents[i] for i in random.choice(len(documents), size, replace=False)]

    def step(self, slope: np.ndarray) -> None:
        """One step of Adam; a coefficient that is clipped has no gradient."""
        inside = (self.raw.detach() >= 0) & (self.raw.detach() <= 1)
        self.raw.grad = torch.from_numpy(slope) * inside
        self.adam.step()
        self.done += 1
        moments = {n: v.tolist() for n, v in self.adam.state[self.raw].items() if n != "step"}
        beside = self.file.with_suffix(".part")
        beside.write_text(json.dumps({"done": self.done, "raw": self.raw.tolist(), "adam": moments}))
        os.replace(beside, self.file)

    def parameters(self) -> dict[str, Any]:
        """The coefficients as the method takes them, to six digits."""
        found = {name: [round(value, 6) for value in values] for name, values in self.read().items()}
        count = self.raw.shape[1]
        return {"weight": found.pop(OUTSIDE, [0.0] * count), "blocks": found}
