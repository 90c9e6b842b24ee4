"""The task vectors of one tensor, and the conventions that all of our methods share on top of them."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from mergeopt_core.merging.blocks import BLOCK, blocks, flat
from mergeopt_core.merging.mergekit_api import TensorGroup

NormMatch = Literal["none", "mean_vector", "mean_norm"]
Rest = Literal["mean", "sum", "base"]

_EMBEDDING_OR_HEAD = re.compile(r"embed|lm_head|(^|\.)w[tp]e\.|(^|\.)shared\.|(^|\.)output\.weight$")


def working_dtype(group: TensorGroup) -> torch.dtype:
    """float64 where an input is float64, float32 otherwise."""
    return torch.float64 if any(t.dtype == torch.float64 for t in group.tensors) else torch.float32


class Updates:
    """Δ_k = θ_k − θ0 of one tensor, in float32 or better, in the order of the expert ids.

    The order is by id and not as given, so that a sum over experts has the same bits however they are listed.
    A Δ_k is made when it is asked for: at most those that a method holds on to are in memory at once.
    """

    def __init__(self, group: TensorGroup):
        self.name = group.metadata.name or ""
        self.given = [entry.id for entry in group.non_base]
        entries = sorted(group.non_base, key=lambda entry: str(entry.id))
        self.keys = [entry.id for entry in entries]
        self.experts = [entry.tensor for entry in entries]
        self.dtype = working_dtype(group)
        assert group.base is not None
        self.base = group.base.tensor.to(self.dtype)

    def __len__(self) -> int:
        return len(self.keys)

    def __iter__(self) -> Iterator[Tensor]:
        return (self.delta(k) for k in range(len(self)))

    @property
    def shape(self) -> torch.Size:
        """Shape of the tensor."""
        return self.base.shape

    def delta(self, k: int) -> Tensor:
        """The task vector Δ_k ``[*shape]`` of the k-th expert by id."""
        return self.experts[k].to(self.dtype) - self.base

    def stack(self) -> Tensor:
        """All task vectors ``[K, *shape]``."""
        stacked = self.base.new_empty((len(self), *self.shape))
        for k, delta in enumerate(self):
            stacked[k] = delta
        return stacked

    def values(self, per_expert: Mapping[Any, Any]) -> list[Any]:
        """A per-expert parameter in this order."""
        return [per_expert[key] for key in self.keys]

    def weighted_sum(self, weights: Sequence[float], dtype: torch.dtype | None = None) -> Tensor:
        """Σ_k w_k Δ_k ``[*shape]``, in the arithmetic's dtype or the one given.

        A decomposition's weak directions show a sum's rounding errors: they want float64.
        """
        result = torch.zeros(self.shape, dtype=dtype or self.dtype, device=self.base.device)
        into, base, *experts = flat([result, self.base, *self.experts])
        buffer = torch.empty(min(BLOCK, base.numel()) if base.device.type == "cpu" else base.numel()).to(self.base)
        for block in blocks(base):
            piece = buffer[: block.stop - block.start]
            for expert, weight in zip(experts, weights):
                into[block].add_(torch.sub(expert[block], base[block], out=piece), alpha=weight)
        return result


def total(weights: Sequence[float]) -> float:
    """Σ_k w_k, or 1 where the weights cancel (mergekit's convention)."""
    summed = sum(weights)
    return 1.0 if abs(summed) < 1e-8 else summed


def is_selected(name: str, shape: Sequence[int], tensors: str) -> bool:
    """Whether a tensor is treated as a matrix.

    ``linear``: 2-D, not an embedding or the head; ``matrices``: every 2-D tensor; otherwise a regular expression that
    is searched for in the names of 2-D tensors. ValueError where it is no regular expression.
    """
    if len(shape) != 2 or min(shape) == 0:
        return False
    if tensors == "matrices":
        return True
    if tensors == "linear":
        return not _EMBEDDING_OR_HEAD.search(name)
    try:
        return re.search(tensors, name) is not None
    except re.error as error:
        raise ValueError(f"tensors is linear, matrices or a regular expression, not {tensors!r}: {error}") from None


def rest_update(updates: Updates, weights: Sequence[float], rest: Rest, rest_scale: float = 1.0) -> Tensor:
    """The update of a tensor that gets no matrix treatment: weighted mean or sum of task vectors, or none at all."""
    if rest == "base":
        return torch.zeros_like(updates.base)
    update = updates.weighted_sum(weights)
    return update.mul_(rest_scale / (total(weights) if rest == "mean" else 1.0))


def match_norm(update: Tensor, updates: Updates, weights: Sequence[float], match: NormMatch) -> Tensor:
    """The update scaled to ‖Σ w_k Δ_k / Σ w_k‖ (``mean_vector``) or to the mean ‖Δ_k‖ (``mean_norm``)."""
    if match == "none":
        return update
    norm = torch.linalg.vector_norm(update, dtype=torch.float64)
    if norm == 0:
        return update
    if match == "mean_vector":
        target = torch.linalg.vector_norm(updates.weighted_sum(weights), dtype=torch.float64) / abs(total(weights))
    else:
        target = torch.stack([torch.linalg.vector_norm(d, dtype=torch.float64) for d in updates]).mean()
    return update * (target / norm).to(update.dtype)


def statistics_of(updates: Updates, statistics: Any, shape: torch.Size) -> list[Tensor] | None:
    """The experts' statistics of this tensor in the updates' order and dtype; None where it has none for any expert.

    ValueError naming tensor and expert where only some experts have one, a shape is wrong or a value not finite.
    """
    if statistics is None or all(statistics[key] is None for key in updates.keys):
        return None
    found = []
    for key in updates.keys:
        value = statistics[key]
        if value is None:
            raise ValueError(f"{updates.name}: expert {key} has no statistics, others have")
        if value.shape != shape:
            raise ValueError(
                f"{updates.name}: the statistics of expert {key} have shape {list(value.shape)}, not {list(shape)}"
            )
        if not torch.isfinite(value.sum()):
            raise ValueError(f"{updates.name}: the statistics of expert {key} are not finite")
        found.append(value.to(device=updates.base.device, dtype=updates.dtype))
    return found


def note_rank(report: Any, name: str, sigma: Tensor, rank_tolerance: float, threshold: float = 1e-4) -> None:
    """Put an update whose σ ``[r]`` (largest first) fall below 1e-4 · σ₁ into the report: its null space is noise.

    A method that gives every direction weight is ill-posed on it unless ``rank_tolerance`` leaves that space out.
    """
    if report is None or rank_tolerance > 0 or sigma.numel() == 0 or float(sigma[0]) == 0:
        return
    rank = int((sigma > threshold * sigma[0]).sum())
    if rank < sigma.numel():
        report[name] = {"rank": rank, "of": sigma.numel()}


def merged(updates: Updates, update: Tensor, scale: float = 1.0) -> Tensor:
    """θ0 + scale · update, in the arithmetic's dtype."""
    return torch.add(updates.base, update.to(updates.dtype), alpha=scale)
