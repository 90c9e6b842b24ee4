"""Elementwise arithmetic over many tensors, a block at a time, so that what is in between stays in the CPU's cache."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from torch import Tensor

BLOCK = 1 << 16
"""Entries a block: 256 KiB in float32."""


def blocks(tensor: Tensor, size: int = BLOCK) -> Iterator[slice]:
    """Slices of a flat tensor: of ``size`` entries on a CPU, the whole of it elsewhere."""
    count = tensor.numel()
    step = size if tensor.device.type == "cpu" else max(count, 1)
    for start in range(0, count, step):
        yield slice(start, min(start + step, count))


def flat(tensors: Sequence[Tensor]) -> list[Tensor]:
    """The tensors as ``[n]`` views."""
    return [tensor.reshape(-1) for tensor in tensors]
