"""What a method learns from all tensors before the first is merged: the k-th largest magnitude of a whole model."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from mergeopt_core.merging.trimming import bits

_HIGH_BITS, _LOW_BITS = 16, 15  # a magnitude has 31 bits: the sign bit is 0


class Preparation(Protocol):
    """Passes over all tensors of base and experts, driven like this::

    for _ in range(preparation.passes):
        for name in tensor_names:
            preparation.visit(name, base, experts)
        preparation.end_pass()
    prepared = preparation.finish()
    """

    passes: int

    def visit(self, tensor_name: str, base: Tensor, experts: Sequence[Tensor]) -> None:
        """Look at one tensor of all models, in the order of the ids that the preparation was made with."""

    def end_pass(self) -> None:
        """All tensors have been visited."""

    def finish(self) -> dict[str, Any]:
        """What ``merge_tensor`` takes as ``prepared``."""


class GlobalThresholds:
    """Exact k-th largest |Δ_k| over all tensors of each expert, in two passes and 512 KiB an expert.

    The first pass counts magnitudes by the upper 16 bits of their float32 pattern, which order as the values do; the
    second counts the lower 15 bits of those that share the upper bits of the k-th largest. ``kept(n)`` is how many of
    n entries are to stay; the threshold is that entry's magnitude, and all entries equal to it stay too. ``labels`` say
    what else fixes a threshold, for the cache; ``transform(delta, expert, tensor)`` comes first (and forbids a cache).
    """

    def __init__(
        self,
        keys: Sequence[str],
        kept: Callable[[int, str], int],
        labels: Mapping[str, str],
        *,
        transform: Callable[[Tensor, str, str], Tensor] | None = None,
        cache: Any = None,
    ):
        self.keys, self.kept, self.transform = list(keys), kept, transform
        self.cache, self.labels = (None if transform else cache), labels
        self.thresholds: dict[str, float] = {}
        for key in self.keys:
            known = self.cache.get(self._place(key)) if self.cache is not None else None
            if known is not None:
                self.thresholds[key] = float(known)
        self.open = [key for key in self.keys if key not in self.thresholds]
        self.passes = 2 if self.open else 0
        self._prefix: dict[str, int] = {}
        self._above: dict[str, int] = {}
        self._counts = {key: np.zeros(1 << _HIGH_BITS, dtype=np.int64) for key in self.open}

    def _place(self, key: str) -> tuple[str, ...]:
        return ("threshold", str(key), self.labels[key])

    def visit(self, tensor_name: str, base: Tensor, experts: Sequence[Tensor]) -> None:
        """Count one tensor; whole numbers are left out."""
        if not base.is_floating_point():
            return
        anchor = base.to(torch.float32)
        for key, expert in zip(self.keys, experts):
            if key not in self._counts:
                continue
            delta = expert.to(torch.float32) - anchor
            patterns = bits(self.transform(delta, key, tensor_name) if self.transform else delta)
            if key in self._prefix:
                inside = patterns[(patterns >> _LOW_BITS) == self._prefix[key]] & ((1 << _LOW_BITS) - 1)
                self._counts[key] += np.bincount(inside, minlength=1 << _LOW_BITS)
            else:
                self._counts[key] += np.bincount(patterns >> _LOW_BITS, minlength=1 << _HIGH_BITS)

    def end_pass(self) -> None:
        """Find the upper bits after the first pass, the whole pattern after the second."""
        for key in self.open:
            counts = self._counts[key]
            if key not in self._prefix:
                wanted = min(max(self.kept(int(counts.sum()), key), 0), int(counts.sum()))
                if wanted == 0:  # nothing stays
                    self.thresholds[key] = float("inf")
                    self._prefix[key], self._above[key] = -1, 0
                else:
                    self._prefix[key], self._above[key] = _descend(counts, wanted)
                self._counts[key] = np.zeros(1 << _LOW_BITS, dtype=np.int64)
            elif self._prefix[key] >= 0:
                low, _ = _descend(counts, self._above[key])
                pattern = np.array([(self._prefix[key] << _LOW_BITS) | low], dtype=np.uint32)
                self.thresholds[key] = float(pattern.view(np.float32)[0])

    def finish(self) -> dict[str, Any]:
        """The thresholds by expert id; those found here are put into the cache."""
        if self.cache is not None:
            for key in self.open:
                self.cache[self._place(key)] = self.thresholds[key]
        return {"thresholds": {key: self.thresholds[key] for key in self.keys}}


def _descend(counts: np.ndarray, wanted: int) -> tuple[int, int]:
    """Bin of the ``wanted``-th largest value, and its rank within that bin."""
    from_top = np.cumsum(counts[::-1])
    place = int(np.searchsorted(from_top, wanted))
    return len(counts) - 1 - place, wanted - (int(from_top[place - 1]) if place else 0)
