"""A weight file mapped into memory: tensors are views, and pages are given back after use."""

from __future__ import annotations

import mmap
from pathlib import Path

import torch

from pipelines.merge.headers import Place, TensorInfo

RELEASE_FROM = 1 << 20
"""Smaller tensors keep their pages: giving them back costs more than it frees."""


class MappedFile:
    """Read-only tensors of one safetensors file (private mapping: writing to a view never reaches the file)."""

    def __init__(self, file: Path):
        with file.open("rb") as stream:
            self._map = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_COPY)

    def tensor(self, info: TensorInfo, place: Place) -> torch.Tensor:
        """View of the file's bytes as a tensor (a copy only where the file is not aligned for the dtype)."""
        dtype = getattr(torch, info.dtype)
        if info.count == 0:
            return torch.empty(info.shape, dtype=dtype)
        if place.start % dtype.itemsize:
            return torch.frombuffer(bytearray(self._map[place.start : place.stop]), dtype=dtype).view(info.shape)
        flat = torch.frombuffer(self._map, dtype=dtype, count=info.count, offset=place.start)
        return flat.view(info.shape)

    def release(self, place: Place) -> None:
        """Give the pages of a tensor back, so that resident memory does not grow with what has been read.

        Views stay valid: a later access maps the page again.
        """
        if place.stop - place.start < RELEASE_FROM or not hasattr(mmap, "MADV_DONTNEED"):
            return
        first = -(-place.start // mmap.PAGESIZE) * mmap.PAGESIZE
        last = place.stop // mmap.PAGESIZE * mmap.PAGESIZE
        self._map.madvise(mmap.MADV_DONTNEED, first, last - first)
