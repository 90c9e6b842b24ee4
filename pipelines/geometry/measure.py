"""One pass over the tensors of a base and its experts: inner products per tensor, and a sample of entries."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from conf.errors import UserError
from mergeopt_core.geometry import gram, sample_positions
from pipelines.checkpoints.checkpoint import OpenCheckpoint
from pipelines.merge.recipe import Recipe
from pipelines.merge.stream import Merge
from pipelines.progress import SILENT, Progress


@dataclass(frozen=True)
class Measured:
    """What one pass tells of K task vectors over L tensors ("layers")."""

    experts: list[str]
    layers: list[str]
    """Names of the floating-point tensors that are compared: all of the base's, a tied head counted once."""
    grams: Tensor
    """Inner products of the task vectors in every layer, `[L, K, K]` in float64."""
    entries: Tensor
    """The same entries of every task vector, `[K, S]` in float32: all of them, or a seeded sample."""
    total: int
    """Entries of one task vector."""

    @property
    def gram(self) -> Tensor:
        """Inner products of the whole task vectors, `[K, K]`."""
        return self.grams.sum(dim=0)

    @property
    def still(self) -> list[str]:
        """Experts that are the base itself: their task vector is zero and has no direction."""
        return [name for name, square in zip(self.experts, self.gram.diagonal().tolist()) if square == 0]


def measure(
    base: OpenCheckpoint,
    experts: Mapping[str, OpenCheckpoint],
    sample: int = 0,
    seed: int = 0,
    progress: Progress = SILENT,
    **match: Any,
) -> Measured:
    """Read base and experts once, one tensor of each at a time; ``sample`` is the number of entries that are kept.

    Adapters are laid on the base; ``match`` are the recipe's ``vocab`` and ``strict``.
    Raises ``UserError`` for experts that are not the base's (shapes, missing tensors,
    vocabularies) and for weights that are not finite, naming tensor and expert.
    """
    if not experts:
        raise UserError("there are no task vectors to look at", where="experts", do="name experts: experts=[a,b]")
    paths = tuple(expert.path for expert in experts.values())
    merge = Merge(Recipe(base.path, paths, "task_arithmetic", **match), base, list(experts.values()), list(experts))
    merge.check()
    layers = {name: info.count for name, info in merge.layout.outputs.items() if info.merged and info.count}
    layers = {name: count for name, count in layers.items() if name not in merge.layout.kept}
    total = sum(layers.values())
    positions = torch.from_numpy(sample_positions(total, sample, seed))
    entries = torch.empty(len(experts), len(positions))
    grams, first = [], 0
    with progress.step("task vectors", len(layers)) as step:
        for name, origin, tensors in merge.inputs():
            if name not in layers:
                continue
            begin, end = torch.searchsorted(positions, torch.tensor([first, first + layers[name]])).tolist()
            grams.append(gram(origin, tensors, positions[begin:end] - first, entries[:, begin:end]))
            _check_finite(name, list(experts), grams[-1])
            first += layers[name]
            step.advance(1)
    return Measured(list(experts), list(layers), torch.stack(grams), entries, total)


def _check_finite(layer: str, experts: list[str], products: Tensor) -> None:
    bad = ~products.diagonal().isfinite()
    if bad.any():
        who = "the base" if bad.all() and len(experts) > 1 else experts[int(bad.nonzero()[0])]
        raise UserError(f"{layer}: {who} holds values that are not finite", do="check that checkpoint")
