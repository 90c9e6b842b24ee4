"""Checkpoints on the hub: known from headers before their weights are fetched, and fetched when a command runs."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from pathlib import Path
from typing import Any

from torch import Tensor

from conf.errors import UserError
from pipelines.checkpoints.checkpoint import OpenCheckpoint, open_checkpoint
from pipelines.checkpoints.fingerprint import fingerprint
from pipelines.checkpoints.folder import FILES, LEAVE, explain, hub_id, hub_is_asked, snapshot, weight_files
from pipelines.checkpoints.headers import DTYPES, TensorInfo
from pipelines.progress import SILENT, Progress, Step

WEIGHTS = "*.safetensors"
SMALL = [pattern for pattern in FILES if pattern != WEIGHTS]
"""What is fetched of a hub model to plan with it."""


class RemoteCheckpoint(OpenCheckpoint):
    """A hub model whose weights are not here: what ``OpenCheckpoint`` is, but for tensors, until ``fetch``."""

    def __init__(self, name: str, folder: Path, files: list[Path], sizes: Mapping[str, int], hashes: Mapping[str, str]):
        super().__init__(name, folder, files)
        self.revision, self.sizes, self.hashes = folder.name, sizes, hashes
        """Commit of the snapshot, bytes of every file still to be fetched, hex sha256 of the weight files."""

    @property
    def to_fetch(self) -> int:
        """Bytes still to be fetched."""
        return sum(self.sizes.values())

    @cached_property
    def header(self) -> dict[str, TensorInfo]:
        """Dtype and shape by tensor name, from the heads of the weight files on the hub."""
        return {name: info for file in self.files for name, info in self._head(file.name).items()}

    def tensor(self, name: str) -> Tensor:
        """Refused: the weights are not here."""
        raise UserError(f"the weights of {self.path} are not fetched yet", do="fetch the checkpoint first")

    def release(self, name: str) -> None:
        """Nothing to give back."""

    def fingerprint(self, cache_dir: Path | None = None) -> str:
        """The fingerprint that the checkpoint will have when it is here."""
        if self._fingerprint is None:
            self._fingerprint = fingerprint(self.folder, self.files, cache_dir, self.hashes)
        return self._fingerprint

    def fetch(self, bar: Any = None) -> OpenCheckpoint:
        """Download the weights and open the checkpoint; ``bar`` is the tqdm class that the hub client moves."""
        folder = snapshot(self.path, self.revision, FILES, bar=bar)
        return OpenCheckpoint(self.path, folder, weight_files(folder))

    def _head(self, file: str) -> dict[str, TensorInfo]:
        """What one weight file holds: two range requests at most."""
        from huggingface_hub import parse_safetensors_file_metadata

        try:
            tensors = parse_safetensors_file_metadata(self.path, file, revision=self.revision).tensors
        except Exception as error:
            raise explain(self.path, self.revision, False, error) from error
        for name, tensor in tensors.items():
            if tensor.dtype not in DTYPES:
                what = f"{name} has dtype {tensor.dtype}, which cannot be merged"
                raise UserError(what, where=self.path, do="use a 16 or 32-bit copy")
        return {name: TensorInfo(DTYPES[t.dtype], tuple(t.shape)) for name, t in tensors.items()}


def open_headers(
    path: str, *, revision: str | None = None, online: bool = True, allow_pickle: bool = False
) -> OpenCheckpoint:
    """Open a checkpoint without fetching weights: a ``RemoteCheckpoint`` for a hub id whose weights are not here.

    Raises ``UserError`` as ``open_checkpoint`` does. Pickled weights have no header that could be read from afar: where
    they are allowed they are fetched at once.
    """
    if not hub_id(path) or not hub_is_asked(online):
        return open_checkpoint(path, revision=revision, online=online, allow_pickle=allow_pickle)
    folder = snapshot(path, revision, SMALL, bar=_bar())
    try:
        files = weight_files(folder)
    except UserError:
        return _from_afar(path, folder, allow_pickle)
    return _checked(OpenCheckpoint(path, folder, files))


def _from_afar(name: str, folder: Path, allow_pickle: bool) -> OpenCheckpoint:
    """The checkpoint as the hub's list of files tells of it."""
    from huggingface_hub import model_info
    from huggingface_hub.utils import filter_repo_objects

    try:
        siblings = model_info(name, revision=folder.name, files_metadata=True).siblings or []
    except Exception as error:
        raise explain(name, folder.name, False, error) from error
    try:
        files = weight_files(folder, allow_pickle, [s.rfilename for s in siblings])
    except UserError as error:  # about the repository, not about the folder, which is not whole
        raise UserError(f"{name}: {error.what}", do=error.do) from error
    hashes = {s.rfilename: s.lfs.sha256 for s in siblings if s.lfs is not None}
    if any(file.suffix == ".bin" or file.name not in hashes for file in files):
        return open_checkpoint(name, revision=folder.name, allow_pickle=allow_pickle)
    wanted = filter_repo_objects((s.rfilename for s in siblings), allow_patterns=FILES, ignore_patterns=LEAVE)
    sizes = {s.rfilename: s.size or 0 for s in siblings}
    unfetched = {file: sizes[file] for file in wanted if not (folder / file).is_file()}
    return _checked(RemoteCheckpoint(name, folder, files, unfetched, {file.name: hashes[file.name] for file in files}))


def _checked(checkpoint: OpenCheckpoint) -> OpenCheckpoint:
    if not checkpoint.adapter and not checkpoint.config:
        raise UserError(f"{checkpoint.path} holds weights but no config.json", do="give a model")
    return checkpoint


AT_ONCE = 8
"""Checkpoints whose headers are read side by side."""

Named = tuple[str, "str | None"]
"""Hub id and revision."""


class HubLookup:
    """Hub checkpoints by id and revision, looked up once per command; a copy for another process starts empty."""

    def __init__(self) -> None:
        self._found: dict[Named, OpenCheckpoint | UserError] = {}
        self._unfetched: dict[str, RemoteCheckpoint] = {}

    def __reduce__(self) -> tuple[Any, ...]:
        return (HubLookup, ())

    def get(self, named: Named, open: Callable[[], OpenCheckpoint]) -> OpenCheckpoint:
        """The checkpoint, opened the first time it is named. Raises the ``UserError`` that opening it raised then."""
        if named not in self._found:
            try:
                found = open()
                if isinstance(found, RemoteCheckpoint):
                    _ = found.header  # read here, so that an error in it is kept too
                    self._unfetched[str(found.folder)] = found
                self._found[named] = found
            except UserError as error:
                self._found[named] = error
        known = self._found[named]
        if isinstance(known, UserError):
            raise known
        return known

    def prefetch(self, named: Iterable[Named], open: Callable[[Named], OpenCheckpoint]) -> None:
        """Look several checkpoints up side by side; the error of one is raised by ``get``."""

        def one(name: Named) -> None:
            with contextlib.suppress(UserError):
                open(name)

        with ThreadPoolExecutor(max_workers=AT_ONCE) as pool:
            list(pool.map(one, [name for name in dict.fromkeys(named) if name not in self._found]))

    def unfetched(self, folder: str) -> RemoteCheckpoint | None:
        """The checkpoint of a snapshot folder whose weights are not fetched yet."""
        return self._unfetched.get(folder)

    def fetch(self, progress: Progress = SILENT, folders: Sequence[str] | None = None) -> None:
        """Download the weights of snapshot folders, by default of all that lack them; progress counts bytes."""
        wanted = self._unfetched if folders is None else folders
        chosen = list(dict.fromkeys(self._unfetched[f] for f in wanted if f in self._unfetched))
        if not chosen:
            return
        with progress.step("fetch", sum(remote.to_fetch for remote in chosen)) as step:
            for remote in chosen:
                count = _Count(step, remote)
                opened = remote.fetch(_bar(count))
                count.finish()
                del self._unfetched[str(remote.folder)]
                self._found |= {named: opened for named, found in self._found.items() if found is remote}


class _Count:
    """Bytes of one checkpoint, passed on per hundredth; never more than it has, and all of it in the end."""

    def __init__(self, step: Step, remote: RemoteCheckpoint):
        self._step, self._name, self._total = step, remote.path, remote.to_fetch
        self._seen = self._passed = 0
        self._lock = threading.Lock()

    def add(self, count: float) -> None:
        """Count bytes that have come."""
        with self._lock:
            self._seen = min(self._seen + int(count), self._total)
            if (self._seen - self._passed) * 100 >= self._total:
                self._pass_on()

    def finish(self) -> None:
        """Count what no bar showed, such as parts fetched before."""
        with self._lock:
            self._seen = self._total
            self._pass_on()

    def _pass_on(self) -> None:
        self._step.advance(self._seen - self._passed, checkpoint=self._name)
        self._passed = self._seen


def _bar(count: _Count | None = None) -> Any:
    """A tqdm class for the hub client that shows nothing and counts the bytes written."""
    from tqdm import tqdm

    class Bar(tqdm):  # type: ignore[type-arg]
        def __init__(self, *args: Any, **options: Any):
            # the client moves a second bar in bytes, of what came over the network
            self.counts = options.get("unit") == "B" and "bytes" not in str(options.get("desc"))
            super().__init__(*args, **{**options, "disable": True})

        def update(self, n: float | None = 1) -> None:
            if count and self.counts:
                count.add(n or 0)

    return Bar
