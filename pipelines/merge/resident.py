"""Checkpoints' tensors on an accelerator: copied once through pinned memory, and kept there while there is room.

The experts of a study are merged in one subset after another. Those that fit the device beside the live model stay on
it; of the others, the experts that no merge has used for longest make room for those that the present one uses.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from pipelines.checkpoints.adapters import Model

PIECE = 1 << 25
"""Bytes of a pinned buffer."""

Held = tuple[Tensor, torch.cuda.Event]
"""A tensor on the device, and when its copy is there."""


class DeviceTensors:
    """Tensors of checkpoints on one CUDA device, for any number of merges and loading threads.

    ``room`` is how many bytes may stay on the device (0: none).
    """

    def __init__(self, device: torch.device, room: int = 0):
        self.device, self.room = device, room
        self.copied = self.bytes = 0
        """Bytes copied to the device so far, and those that are kept there now."""
        self._held: OrderedDict[str, dict[str, Held]] = OrderedDict()  # by checkpoint, least recently merged first
        self._beside: int | None = None
        self._used: frozenset[str] = frozenset()
        self._lock, self._own = threading.Lock(), threading.local()

    def begin(self, paths: Iterable[str]) -> None:
        """Say which checkpoints the next merge reads: they are not made to leave."""
        self._used = frozenset(paths)
        for path in self._used & self._held.keys():
            self._held.move_to_end(path)

    def fit(self, working: int, given: float | None = None) -> None:
        """Set the room to what ``working`` bytes for merging, or what stands ``beside`` merges, leave; or to given GB.

        Before anything stood beside them, half of what is free is left for it.
        """
        free, total = torch.cuda.mem_get_info(self.device)
        unused = torch.cuda.memory_reserved(self.device) - torch.cuda.memory_allocated(self.device)
        free += unused + self.bytes - total // 20
        others = free // 2 if self._beside is None else self._beside
        self.room = max(0, free - max(working, others)) if given is None else int(given * 1e9)

    @contextmanager
    def beside(self) -> Iterator[None]:
        """Measure the memory that something else takes inside: it is left free from now on, and a quarter more."""
        before = torch.cuda.memory_allocated(self.device)
        torch.cuda.reset_peak_memory_stats(self.device)
        yield
        taken = torch.cuda.max_memory_allocated(self.device) - before
        self._beside = max(self._beside or 0, taken + taken // 4)

    def give_way(self) -> bool:
        """Give all memory back, for good; whether there was any."""
        self._beside = torch.cuda.get_device_properties(self.device).total_memory
        return self.clear()

    def clear(self) -> bool:
        """Give all memory back; whether there was any."""
        with self._lock:
            had, self.bytes = bool(self._held), 0
            self._held.clear()
        torch.cuda.empty_cache()
        return had

    def tensor(self, model: Model, name: str) -> Tensor:
        """A tensor as stored, on the device: work that the calling thread's current stream begins now may use it."""
        with self._lock:
            held = self._held.get(model.path, {}).get(name)
        if held is None:
            held = self._copy(model, name)
            self._keep(model.path, name, held)
        made, ready = held
        torch.cuda.current_stream(self.device).wait_event(ready)
        return made

    def _copy(self, model: Model, name: str) -> Held:
        """Piece by piece through this thread's two pinned buffers, on its own stream: one is filled as one is sent."""
        if not hasattr(self._own, "buffers"):
            pinned = (torch.empty(PIECE, dtype=torch.uint8, pin_memory=True) for _ in range(2))
            self._own.buffers = [(buffer, torch.cuda.Event()) for buffer in pinned]
        info, read = model.header[name], model.reader(name)
        made = torch.empty(info.shape, dtype=getattr(torch, info.dtype), device=self.device)
        target, stream = made.reshape(-1).view(torch.uint8), torch.cuda.current_stream(self.device)
        for start in range(0, len(target), PIECE):
            (buffer, sent), _ = self._own.buffers
            self._own.buffers.reverse()
            sent.synchronize()
            piece = target[start : start + PIECE]
            read(start, buffer[: len(piece)].numpy().data)
            piece.copy_(buffer[: len(piece)], non_blocking=True)
            sent.record(stream)
        ready = torch.cuda.Event()
        ready.record(stream)
        with self._lock:
            self.copied += made.nbytes
        return made, ready

    def _keep(self, path: str, name: str, held: Held) -> None:
        """Hold on to a tensor where there is room for it, or can be made."""
        size = held[0].nbytes
        with self._lock:
            while self.bytes + size > self.room and (oldest := next(iter(self._held), None)) is not None:
                if oldest in self._used:
                    return
                self.bytes -= sum(tensor.nbytes for tensor, _ in self._held.pop(oldest).values())
            if self.bytes + size <= self.room:
                self._held.setdefault(path, {})[name] = held
                self.bytes += size
