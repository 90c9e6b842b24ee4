"""Writing a checkpoint: safetensors files as a stream, in a folder that is there whole or not at all."""

from __future__ import annotations

import json
import os
import shutil
import struct
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from glob import escape
from itertools import accumulate
from pathlib import Path

import torch
from torch import Tensor

from conf.errors import UserError, redacted
from pipelines.checkpoints.headers import CODES, TensorInfo, itemsize
from pipelines.checkpoints.hold import hold


@dataclass
class Shard:
    """One file: its name and where each tensor's bytes start (from the end of the header)."""

    file: str
    tensors: dict[str, TensorInfo]
    starts: dict[str, int] = field(init=False)

    def __post_init__(self) -> None:
        # wider dtypes first, so that every tensor is aligned
        order = sorted(self.tensors, key=lambda name: (-itemsize(self.tensors[name].dtype), name))
        self.starts = dict(zip(order, accumulate((self.tensors[name].size for name in order), initial=0)))

    @property
    def size(self) -> int:
        """Bytes of all tensors."""
        return sum(info.size for info in self.tensors.values())


def plan_shards(outputs: Mapping[str, TensorInfo], most: int) -> list[Shard]:
    """Divide tensors in order into files of at most ``most`` bytes (a larger tensor has a file of its own)."""
    groups: list[dict[str, TensorInfo]] = [{}]
    size = 0
    for name, info in outputs.items():
        if groups[-1] and size + info.size > most:
            groups.append({})
            size = 0
        groups[-1][name] = info
        size += info.size
    count = len(groups)
    names = [f"model-{i:05d}-of-{count:05d}.safetensors" for i in range(1, count + 1)]
    return [Shard(name, group) for name, group in zip(names if count > 1 else ["model.safetensors"], groups)]


class ShardWriter:
    """Context manager that writes planned shards and, for more than one, their index."""

    def __init__(self, folder: Path, plan: list[Shard]):
        self._folder, self._plan = folder, plan
        self._of = {name: shard for shard in plan for name in shard.tensors}
        self._open: dict[str, tuple[int, int]] = {}  # file name → descriptor, start of the data
        self._left = set(self._of)

    def __enter__(self) -> ShardWriter:
        return self

    def write(self, name: str, tensor: Tensor) -> None:
        """Put one tensor into its place."""
        shard = self._of[name]
        info = shard.tensors[name]
        if tuple(tensor.shape) != info.shape or str(tensor.dtype) != f"torch.{info.dtype}":
            raise AssertionError(f"{name}: planned {info}, merged {tensor.dtype} {list(tensor.shape)}")
        if shard.file not in self._open:
            self._open[shard.file] = _begin(self._folder / shard.file, shard)
        descriptor, data = self._open[shard.file]
        if info.size:
            flat = tensor.detach().cpu().contiguous().view(-1).view(torch.uint8)
            _write_all(descriptor, memoryview(flat.numpy()), data + shard.starts[name], self._folder)
        self._left.discard(name)
        if not self._left & set(shard.tensors):
            os.close(self._open.pop(shard.file)[0])

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        for descriptor, _start in self._open.values():
            os.close(descriptor)
        if kind is None:
            assert not self._left, f"not written: {sorted(self._left)[:3]}"
            self._write_index()

    def _write_index(self) -> None:
        if len(self._plan) == 1:
            return
        places = {name: shard.file for name, shard in sorted(self._of.items())}
        index = {"metadata": {"total_size": sum(shard.size for shard in self._plan)}, "weight_map": places}
        (self._folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def _begin(file: Path, shard: Shard) -> tuple[int, int]:
    """Create the file at its full size and write its header."""
    entries: dict[str, dict] = {"__metadata__": {"format": "pt"}}
    for name, start in shard.starts.items():
        info = shard.tensors[name]
        offsets = [start, start + info.size]
        entries[name] = {"dtype": CODES[info.dtype], "shape": list(info.shape), "data_offsets": offsets}
    header = json.dumps(entries, separators=(",", ":")).encode()
    header += b" " * (-len(header) % 8)
    descriptor = os.open(file, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o644)
    os.ftruncate(descriptor, 8 + len(header) + shard.size)
    _write_all(descriptor, memoryview(struct.pack("<Q", len(header)) + header), 0, file.parent)
    return descriptor, 8 + len(header)


def _write_all(descriptor: int, data: memoryview, position: int, folder: Path) -> None:
    """Write all bytes at a position; ``UserError`` where the disk is full."""
    try:
        while data:
            count = os.pwrite(descriptor, data[: 1 << 30], position)
            data, position = data[count:], position + count
    except OSError as error:
        what = f"cannot write: {error.strerror}"
        raise UserError(what, where=str(folder), do="free some room on the disk") from error


RECIPE = "mergebench_recipe.json"
"""The file by which a folder is known as a merge made here."""
TOLD = ("config.json", "README.md", "mergekit_config.yml")
"""Files beside the weights that libraries write with what they have read elsewhere."""
SLACK = 64 << 20
"""Bytes of room asked for beside the weights."""


def redact_files(folder: Path) -> None:
    """Take secrets out of the files that a library wrote of a model."""
    for file in (folder / name for name in TOLD):
        if file.is_file() and (clean := redacted(text := file.read_text(encoding="utf-8"))) != text:
            file.write_text(clean, encoding="utf-8")


@contextmanager
def new_folder(out: Path, size: int) -> Iterator[Path]:
    """Yield an empty folder beside ``out`` that takes its place at the end, or vanishes where something goes wrong.

    What a killed process left of an earlier attempt goes first: a folder of a living one is locked.
    Only an empty place or an earlier merge is written over. Raises ``UserError`` for a folder that holds something
    else, and for a disk with less than ``size`` bytes of room.
    """
    if out.is_file():
        raise UserError(f"{out} is a file", do="give another folder")
    if out.is_dir() and any(out.iterdir()) and not (out / RECIPE).is_file():
        raise UserError(f"{out} is not empty and is no merge made here", do="give an empty or new folder")
    out.parent.mkdir(parents=True, exist_ok=True)
    for left in out.parent.glob(f".{escape(out.name)}.*.part"):
        if lock := hold(left, wait=False):
            shutil.rmtree(left, ignore_errors=True)
            os.close(lock)
    free = shutil.disk_usage(out.parent).free
    if free < size + SLACK:
        what = f"the merged model takes {size / 1e9:.1f} GB, the disk has {free / 1e9:.1f} GB free"
        raise UserError(what, where=str(out.parent), do="free some room, give another folder, or choose dtype=bfloat16")
    beside = Path(tempfile.mkdtemp(prefix=f".{out.name}.", suffix=".part", dir=out.parent))
    lock = hold(beside)
    try:
        yield beside
        beside.chmod(0o755)
        if out.is_dir() and any(out.iterdir()):
            out.rename(earlier := beside.with_suffix(".old"))
            beside.rename(out)
            shutil.rmtree(earlier, ignore_errors=True)
        else:
            beside.rename(out)
    finally:
        shutil.rmtree(beside, ignore_errors=True)
        if lock:
            os.close(lock)
