"""An open checkpoint: headers known, tensors mapped on demand, a fingerprint over what it is."""

from __future__ import annotations

import mmap
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from conf.errors import UserError
from pipelines.checkpoints.fingerprint import fingerprint
from pipelines.checkpoints.folder import ADAPTER, locate, weight_files
from pipelines.checkpoints.headers import CODES, HEAD, VOCABULARY, Place, TensorInfo, first, read_safetensors_header
from pipelines.checkpoints.untrusted import check_file, check_folder, check_types, read_json

CONFIG_TYPES: dict[str, Any] = {
    "model_type": str, "text_config": dict, "quantization_config": dict, "tie_word_embeddings": bool,
}  # fmt: skip
"""Fields of config.json that are read here; the others are transformers' own, which checks them as it loads."""


ADAPTER_TYPES: dict[str, Any] = {
    "peft_type": str, "r": int, "lora_alpha": (int, float), "alpha_pattern": dict, "rank_pattern": dict,
    "use_rslora": bool, "use_dora": bool, "fan_in_fan_out": bool, "ensure_weight_tying": bool,
    "init_lora_weights": (bool, str),
}  # fmt: skip


Reader = Callable[[int, memoryview], None]
"""Puts a tensor's bytes from an offset on into the given memory."""


def reader_of(tensor: Tensor) -> Reader:
    """What copies the bytes of a tensor that is in memory."""
    flat = tensor.contiguous().reshape(-1).view(torch.uint8).numpy()

    def read(start: int, into: memoryview) -> None:
        into[:] = flat[start : start + len(into)].data

    return read


class OpenCheckpoint:
    """A model folder (or a LoRA adapter's): ``header`` without reading weights, ``tensor(name)`` as a mapped view."""

    def __init__(self, path: str, folder: Path, files: list[Path]):
        self.path, self.folder, self.files = path, folder, files
        """What the person wrote (a folder or a hub id), the folder on this machine, its weight files."""
        self.config: dict[str, Any] = read_json(folder / "config.json")
        """Fields of config.json."""
        check_types(self.config, CONFIG_TYPES, folder / "config.json")
        self.adapter: dict[str, Any] | None = read_json(folder / ADAPTER) or None
        """Fields of adapter_config.json where the folder holds a LoRA adapter instead of a whole model."""
        check_types(self.adapter or {}, ADAPTER_TYPES, folder / ADAPTER)
        self._mapped: dict[Path, MappedFile] = {}
        self._fingerprint: str | None = None

    @cached_property
    def _entries(self) -> dict[str, tuple[TensorInfo, Place]]:
        found: dict[str, tuple[TensorInfo, Place]] = {}
        for file in self.files:
            entries = read_safetensors_header(file)
            if twice := sorted(found.keys() & entries.keys()):
                what = f"{twice[0]} is in {found[twice[0]][1].file.name} and in {file.name}"
                raise UserError(what, where=str(self.folder), do="take one of them out, or fetch it again")
            found.update(entries)
        return found

    @cached_property
    def header(self) -> dict[str, TensorInfo]:
        """Dtype and shape by tensor name, read from file headers alone."""
        return {name: info for name, (info, _) in self._entries.items()}

    @property
    def size_bytes(self) -> int:
        """Bytes of all tensors."""
        return sum(info.size for info in self.header.values())

    @property
    def name(self) -> str:
        """Short name for tables: the last part of the path or hub id."""
        return Path(self.path).name or self.path

    @property
    def tied(self) -> bool:
        """Whether the output head is the embedding: as the config says, else whether no head is stored."""
        text = self.config.get("text_config") or {}
        said = self.config.get("tie_word_embeddings", text.get("tie_word_embeddings"))
        return bool(said) if said is not None else first(HEAD, self.header) is None

    def tensor(self, name: str) -> Tensor:
        """The tensor of that name, in the dtype it is stored in: a view of the mapped file. KeyError if unknown."""
        info, place = self._entries[name]
        return self._file(place.file).tensor(info, place)

    def reader(self, name: str) -> Reader:
        """What reads a tensor's bytes without mapping them. KeyError if unknown."""
        place = self._entries[name][1]

        def read(start: int, into: memoryview) -> None:
            with place.file.open("rb", buffering=0) as stream:
                stream.seek(place.start + start)
                while into and (count := stream.readinto(into)):
                    into = into[count:]

        return read

    def release(self, name: str) -> None:
        """Give a tensor's mapped pages back; views of it stay valid."""
        if name in self._entries:
            place = self._entries[name][1]
            self._file(place.file).release(place)

    def fingerprint(self, cache_dir: Path | None = None) -> str:
        """Hex sha256 over weights, configs and tokenizer; file hashes are kept under ``cache_dir``."""
        if self._fingerprint is None:
            self._fingerprint = fingerprint(self.folder, self.files, cache_dir)
        return self._fingerprint

    def _file(self, file: Path) -> MappedFile:
        if file not in self._mapped:
            self._mapped[file] = MappedFile(file)
        return self._mapped[file]

    def __repr__(self) -> str:
        return f"OpenCheckpoint({self.path!r})"


class PickledCheckpoint(OpenCheckpoint):
    """A checkpoint in pickled .bin files, loaded with torch's restricted unpickler (weights only)."""

    @cached_property
    def _tensors(self) -> dict[str, Tensor]:
        tensors: dict[str, Tensor] = {}
        for file in self.files:
            try:
                check_file(file, most=1 << 62)
                state = torch.load(file, map_location="cpu", weights_only=True, mmap=_zipped(file))
                weights = state.get("state_dict", state)
                if wrong := [n for n, value in weights.items() if not isinstance(n, str) or not _plain(value, file)]:
                    raise ValueError(f"{str(wrong[0])[:80]!r} is no plain tensor")
            except Exception as error:  # whatever unpickling raises
                reason = str(error).partition("\n")[0][:200]
                what = f"{file.name} holds more than weights, or none, and is not loaded: {reason}"
                raise UserError(what, where=str(self.folder), do="convert it") from error
            tensors.update(weights)
        return tensors

    @cached_property
    def header(self) -> dict[str, TensorInfo]:
        """Dtype and shape by tensor name (pickled files have no header: they are mapped and their index is read)."""
        return {k: TensorInfo(str(v.dtype).removeprefix("torch."), tuple(v.shape)) for k, v in self._tensors.items()}

    def tensor(self, name: str) -> Tensor:
        """The tensor of that name. KeyError if unknown."""
        return self._tensors[name].contiguous()

    def reader(self, name: str) -> Reader:
        """What copies a tensor's bytes. KeyError if unknown."""
        return reader_of(self.tensor(name))

    def release(self, name: str) -> None:
        """Nothing to give back."""


def _plain(value: Any, file: Path) -> bool:
    """Whether a value is a dense tensor that takes no more than its file holds (a stride of 0 makes any size of it)."""
    if not isinstance(value, Tensor) or value.layout != torch.strided or value.device.type != "cpu":
        return False
    return str(value.dtype).removeprefix("torch.") in CODES and value.nbytes <= file.stat().st_size


def _zipped(file: Path) -> bool:
    """Whether torch wrote the file in the format that can be mapped."""
    with file.open("rb") as stream:
        return stream.read(2) == b"PK"


def open_checkpoint(
    path: str, *, revision: str | None = None, online: bool = True, allow_pickle: bool = False
) -> OpenCheckpoint:
    """Open a model folder, adapter folder or hub id; keep the result: it caches headers and mapped files.

    Raises ``UserError`` for a missing folder, a folder that is no model, an unknown hub id, a hub out of reach,
    missing shards, and pickled weights without ``allow_pickle``.
    """
    folder = locate(path, revision=revision, online=online, allow_pickle=allow_pickle)
    check_folder(folder)
    files = weight_files(folder, allow_pickle)
    kind = PickledCheckpoint if files[0].suffix == ".bin" else OpenCheckpoint
    checkpoint = kind(path, folder, files)
    if not checkpoint.adapter and not checkpoint.config:
        raise UserError("the folder holds weights but no config.json", where=str(folder), do="give a model folder")
    bare = [name for name, info in checkpoint.header.items() if not info.shape and VOCABULARY.search(name)]
    if bare:  # the header is read here, so that no one behind this door meets a broken one
        raise UserError(f"{bare[0]} has no rows, one for each token", where=str(folder), do="fetch it again")
    return checkpoint


RELEASE_FROM = 1 << 20
"""Smaller tensors keep their pages: giving them back costs more than it frees."""


class MappedFile:
    """Read-only tensors of one safetensors file (private mapping: writing to a view never reaches the file)."""

    def __init__(self, file: Path):
        with file.open("rb") as stream:
            self._map = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_COPY)

    def tensor(self, info: TensorInfo, place: Place) -> Tensor:
        """View of the file's bytes as a tensor (a copy only where the file is not aligned for the dtype)."""
        dtype = getattr(torch, info.dtype)
        if info.count == 0:
            return torch.empty(info.shape, dtype=dtype)
        if place.start % dtype.itemsize:
            return torch.frombuffer(bytearray(self._map[place.start : place.stop]), dtype=dtype).view(info.shape)
        return torch.frombuffer(self._map, dtype=dtype, count=info.count, offset=place.start).view(info.shape)

    def release(self, place: Place, least: int = RELEASE_FROM) -> None:
        """Give the pages of a tensor of so many bytes or more back: resident memory does not grow with what was read.

        Views stay valid: a later access maps the page again.
        """
        if place.stop - place.start < least or not hasattr(mmap, "MADV_DONTNEED"):
            return
        first = -(-place.start // mmap.PAGESIZE) * mmap.PAGESIZE
        last = place.stop // mmap.PAGESIZE * mmap.PAGESIZE
        self._map.madvise(mmap.MADV_DONTNEED, first, last - first)
