"""The task vectors of one tensor, and elementwise arithmetic a block at a time."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

BLOCK = 1 << 16
"""Entries per block: 256 KiB in float32, so that what is in between stays in the CPU's cache."""

DEVICE_BLOCK = 1 << 24
"""The same for an accelerator, a multiple of it: enough to keep all of it busy, little of its memory."""


def blocks(tensor: Tensor, size: int = BLOCK) -> Iterator[slice]:
    """Slices of a flat tensor: of ``size`` entries on a CPU, of ``DEVICE_BLOCK`` elsewhere."""
    step = block_size(tensor, size)
    return (slice(start, min(start + step, tensor.numel())) for start in range(0, tensor.numel(), step))


def block_size(tensor: Tensor, size: int = BLOCK) -> int:
    """Entries of the largest block of a tensor (at least 1)."""
    count = max(tensor.numel(), 1)
    return min(size if tensor.device.type == "cpu" else DEVICE_BLOCK, count)


def subtract(a: Tensor, b: Tensor, out: Tensor) -> Tensor:
    """a − b in ``out``'s dtype, which ``b`` has; a CPU widens first, which takes it half of the time."""
    widen = a.dtype != out.dtype and out.device.type == "cpu"
    return torch.sub(out.copy_(a) if widen else a, b, out=out)


def flat(tensors: Sequence[Tensor]) -> list[Tensor]:
    """The tensors as ``[n]`` views."""
    return [tensor.reshape(-1) for tensor in tensors]


def working_dtype(tensors: Sequence[Tensor]) -> torch.dtype:
    """float64 where an input is float64, float32 otherwise."""
    return torch.float64 if any(t.dtype == torch.float64 for t in tensors) else torch.float32


class Updates:
    """Δ_k = θ_k − θ0 of one tensor, in float32 or better, in the order of the expert ids.

    The order is by id and not as given, so that a sum over experts has the same bits however they are listed.
    A Δ_k is made when it is asked for: at most those that a method holds on to are in memory at once.
    """

    def __init__(self, group: Any):  # mergekit's TensorGroup
        self.name = group.metadata.name or ""
        self.given = [entry.id for entry in group.non_base]
        entries = sorted(group.non_base, key=lambda entry: str(entry.id))
        self.keys = [entry.id for entry in entries]
        self.experts = [entry.tensor for entry in entries]
        self.dtype = working_dtype(group.tensors)
        assert group.base is not None
        self.base = group.base.tensor.to(self.dtype)
        self.shape = self.base.shape

    def __len__(self) -> int:
        return len(self.keys)

    def __iter__(self) -> Iterator[Tensor]:
        return (self.delta(k) for k in range(len(self)))

    def delta(self, k: int) -> Tensor:
        """The task vector Δ_k ``[*shape]`` of the k-th expert by id."""
        return self.experts[k].to(self.dtype) - self.base

    def values(self, per_expert: Mapping[Any, Any]) -> list[Any]:
        """A per-expert parameter in this order."""
        return [per_expert[key] for key in self.keys]

    def weighted_sum(self, weights: Sequence[float], dtype: torch.dtype | None = None) -> Tensor:
        """Σ_k w_k Δ_k ``[*shape]``, in the arithmetic's dtype or the one given.

        A decomposition's weak directions show a sum's rounding errors: they want float64.
        """
        result = torch.zeros(self.shape, dtype=dtype or self.dtype, device=self.base.device)
        into, base, *experts = flat([result, self.base, *self.experts])
        buffer = base.new_empty(block_size(base))
        for block in blocks(base):
            piece = buffer[: block.stop - block.start]
            for expert, weight in zip(experts, weights):
                into[block].add_(subtract(expert[block], base[block], piece), alpha=weight)
        return result

    def merged(self, update: Tensor, scale: float = 1.0) -> Tensor:
        """θ0 + scale · update ``[*shape]``, in the arithmetic's dtype."""
        return torch.add(self.base, update.to(self.dtype), alpha=scale)


def total(weights: Sequence[float]) -> float:
    """Σ_k w_k, or 1 where the weights cancel (mergekit's convention)."""
    summed = sum(weights)
    return 1.0 if abs(summed) < 1e-8 else summed
