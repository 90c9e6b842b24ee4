"""A hub made of folders: what the hub client gives, without a network; every download is noted."""

from __future__ import annotations

import hashlib
import json
from fnmatch import fnmatch
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub
import pytest
from huggingface_hub import errors
from huggingface_hub.utils import SafetensorsFileMetadata
from huggingface_hub.utils import TensorInfo as HubTensor


class FakeHub:
    """Repositories by name, each a folder; a cache laid out as the hub client lays it out."""

    def __init__(self, cache: Path):
        self.cache = cache
        self.repos: dict[str, Path] = {}
        self.downloads: list[str] = []
        """``name/file`` of every file that was put into the cache."""
        self.heads: list[str] = []
        self.reachable = True

    def install(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Stand in for the hub client's functions."""
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(self.cache))
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(huggingface_hub, "snapshot_download", self.snapshot_download)
        monkeypatch.setattr(huggingface_hub, "model_info", self.model_info)
        monkeypatch.setattr(huggingface_hub, "parse_safetensors_file_metadata", self.head)

    @property
    def weights(self) -> list[str]:
        """Weight files that were downloaded."""
        return [file for file in self.downloads if file.endswith((".safetensors", ".bin"))]

    def snapshot_download(
        self,
        name: str,
        *,
        revision: str | None = None,
        allow_patterns: list[str],
        ignore_patterns: list[str],
        local_files_only: bool = False,
        tqdm_class: Any = None,
    ) -> str:
        folder = self.cache / name.replace("/", "--") / "snapshots" / self._commit(name)
        wanted = [
            file
            for file in (self.repos[name].iterdir() if name in self.repos else ())
            if any(fnmatch(file.name, p) for p in allow_patterns)
            and not any(fnmatch(file.name, p) for p in ignore_patterns)
        ]
        if local_files_only:
            if not folder.is_dir() or any(not (folder / file.name).exists() for file in wanted):
                raise errors.LocalEntryNotFoundError("not here")
            return str(folder)
        self._ask(name)
        folder.mkdir(parents=True, exist_ok=True)
        bar = tqdm_class(total=0, unit="B", desc="Reconstructing (incomplete total...)") if tqdm_class else None
        for file in wanted:
            if not (folder / file.name).exists():
                self._put(name, file, folder)
                if bar is not None:
                    bar.update(file.stat().st_size // 2)
                    bar.update(file.stat().st_size // 3)
        return str(folder)

    def model_info(self, name: str, *, revision: str | None = None, files_metadata: bool = False) -> Any:
        self._ask(name)
        assert revision == self._commit(name)
        assert files_metadata
        return SimpleNamespace(siblings=[self._sibling(file) for file in sorted(self.repos[name].iterdir())])

    def head(self, name: str, file: str, *, revision: str | None = None) -> SafetensorsFileMetadata:
        self._ask(name)
        self.heads.append(f"{name}/{file}")
        raw = (self.repos[name] / file).read_bytes()
        header = json.loads(raw[8 : 8 + int.from_bytes(raw[:8], "little")])
        header.pop("__metadata__", None)
        tensors = {k: HubTensor(v["dtype"], v["shape"], tuple(v["data_offsets"])) for k, v in header.items()}
        return SafetensorsFileMetadata({}, tensors)

    def _ask(self, name: str) -> None:
        if not self.reachable:
            raise ConnectionError("no network")
        if name not in self.repos:
            raise errors.RepositoryNotFoundError.__new__(errors.RepositoryNotFoundError)

    def _put(self, name: str, file: Path, folder: Path) -> None:
        content = file.read_bytes()
        blob = hashlib.sha256(content).hexdigest() if _large(file) else hashlib.sha1(content).hexdigest()
        blobs = folder.parent.parent / "blobs"
        blobs.mkdir(exist_ok=True)
        (blobs / blob).write_bytes(content)
        (folder / file.name).symlink_to(blobs / blob)
        self.downloads.append(f"{name}/{file.name}")

    def _sibling(self, file: Path) -> Any:
        sha = SimpleNamespace(sha256=hashlib.sha256(file.read_bytes()).hexdigest()) if _large(file) else None
        return SimpleNamespace(rfilename=file.name, size=file.stat().st_size, lfs=sha)

    @staticmethod
    def _commit(name: str) -> str:
        return hashlib.sha1(name.encode()).hexdigest()


def _large(file: Path) -> bool:
    """Whether the hub keeps the file as a large one."""
    return file.suffix in (".safetensors", ".bin")
