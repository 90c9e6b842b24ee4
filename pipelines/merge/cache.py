"""What merges of one base share, computed once: in memory up to a bound, singular factors in the store as well.

Kernels ask for what does not depend on the subset being merged (singular factors, cross products, trimming thresholds,
inner products) by a tuple of strings that names expert, tensor and setting, as described in ``mergeopt_core.spectral``.
"""

from __future__ import annotations

import hashlib
import os
import threading
import uuid
from collections import OrderedDict
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

MEMORY = 2 * 2**30
"""Bytes held in memory; the least recently used goes first."""

ON_DISK = "factors"
"""The kind of entry that is worth a file: one decomposition per matrix and expert, used by every subset."""


class MergeCache:
    """A dictionary of shared intermediate results, for one base; several threads may use it.

    ``folder`` is where singular factors are kept between processes and studies; any number of them may share it, on
    devices of one kind, whose rounding theirs is.
    """

    def __init__(self, folder: Path, memory: int = MEMORY, device: str = "cpu"):
        self.folder, self.memory, self.device = folder, memory, device
        self._held: OrderedDict[tuple[str, ...], Any] = OrderedDict()
        self._bytes = 0
        self._lock = threading.Lock()

    def get(self, key: tuple[str, ...]) -> Any:
        """The value of a key, from memory or from a file; None where there is none."""
        with self._lock:
            if key in self._held:
                self._held.move_to_end(key)
                return self._held[key]
        file = self._file(key)
        if key[0] != ON_DISK or not file.is_file():
            return None
        try:
            value = load_file(file, device=self.device)
        except (OSError, ValueError, SafetensorError):  # cut short: computed again
            return None
        self._remember(key, value)
        return value

    def __setitem__(self, key: tuple[str, ...], value: Any) -> None:
        self._remember(key, value)
        if key[0] == ON_DISK:
            beside = self.folder / f"{uuid.uuid4().hex}.tmp"
            try:
                self.folder.mkdir(parents=True, exist_ok=True)
                save_file({name: tensor.contiguous() for name, tensor in value.items()}, beside)
                os.replace(beside, self._file(key))
            except (OSError, SafetensorError):  # a disk that is full or read-only: computed again next time
                with suppress(OSError):
                    beside.unlink(missing_ok=True)

    def _file(self, key: tuple[str, ...]) -> Path:
        return self.folder / (hashlib.sha256("\0".join(key).encode()).hexdigest()[:32] + ".safetensors")

    def _remember(self, key: tuple[str, ...], value: Any) -> None:
        with self._lock:
            if key in self._held:
                self._bytes -= _size(self._held.pop(key))
            self._held[key] = value
            self._bytes += _size(value)
            while self._bytes > self.memory and self._held:
                self._bytes -= _size(self._held.popitem(last=False)[1])


def _size(value: Any) -> int:
    """Bytes of a value; a key and its bookkeeping count a little too."""
    if isinstance(value, Tensor):
        return value.numel() * value.element_size() + 256
    if isinstance(value, Mapping):
        return sum(_size(part) for part in value.values())
    return sum(_size(part) for part in value) if isinstance(value, (tuple, list)) else 256
