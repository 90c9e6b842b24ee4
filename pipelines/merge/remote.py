"""A checkpoint on the hub, known before its weights are fetched: headers by range requests, hashes from the hub.

The snapshot folder is made in the hub's cache with everything but the weights, so that it is the folder that the
checkpoint will have, and the fingerprint is the one that it will have: the hub tells the sha256 of each weight file.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from conf.errors import UserError
from pipelines.merge.checkpoint import OpenCheckpoint, open_checkpoint
from pipelines.merge.files import weight_files
from pipelines.merge.fingerprint import fingerprint
from pipelines.merge.headers import DTYPES, TensorInfo
from pipelines.merge.sources import FILES, LEAVE, explain, hub_id, hub_is_asked

if TYPE_CHECKING:
    from torch import Tensor

WEIGHTS = "*.safetensors"
SMALL = [pattern for pattern in FILES if pattern != WEIGHTS]
"""What is fetched of a hub model to plan with it."""


class RemoteCheckpoint(OpenCheckpoint):
    """A hub model whose weights are not here: what ``OpenCheckpoint`` is, but for tensors, until ``fetch``."""

    def __init__(self, name: str, folder: Path, files: list[Path], sizes: Mapping[str, int], hashes: Mapping[str, str]):
        super().__init__(name, folder, files)
        self.revision = folder.name
        """Commit that the snapshot is of."""
        self.sizes = sizes
        """Bytes of every file that is still to be fetched, by name."""
        self.hashes = hashes
        """Hex sha256 of the weight files, by name."""

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

    def fetch(self, tqdm_class: Any = None) -> OpenCheckpoint:
        """Download the weights and open the checkpoint; ``tqdm_class`` is the bar that the hub client moves."""
        from huggingface_hub import snapshot_download

        asked: dict[str, Any] = {"revision": self.revision, "allow_patterns": FILES, "ignore_patterns": LEAVE}
        try:
            folder = Path(snapshot_download(self.path, tqdm_class=tqdm_class, **asked))
        except Exception as error:  # the hub client's many errors become one line each
            raise explain(self.path, self.revision, False, error) from error
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
    folder = _small_files(path, revision)
    try:
        files = weight_files(folder)
    except UserError:
        return _from_afar(path, folder, allow_pickle)
    return _checked(OpenCheckpoint(path, folder, files))


def _small_files(name: str, revision: str | None) -> Path:
    """The snapshot folder with everything but weights."""
    from huggingface_hub import snapshot_download

    silent = silent_bar()
    try:
        return Path(
            snapshot_download(
                name, revision=revision, allow_patterns=SMALL, ignore_patterns=LEAVE, tqdm_class=silent
            )
        )  # fmt: skip
    except Exception as error:
        raise explain(name, revision, False, error) from error


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
    lacking = {file: sizes[file] for file in wanted if not (folder / file).is_file()}
    return _checked(RemoteCheckpoint(name, folder, files, lacking, {file.name: hashes[file.name] for file in files}))


def _checked(checkpoint: OpenCheckpoint) -> OpenCheckpoint:
    if not checkpoint.adapter and not checkpoint.config:
        raise UserError(f"{checkpoint.path} holds weights but no config.json", do="give a model")
    return checkpoint


def silent_bar() -> Any:
    """A bar that the hub client may move and nobody sees."""
    from tqdm import tqdm

    class Silent(tqdm):  # type: ignore[type-arg]
        def __init__(self, *args: Any, **options: Any):
            super().__init__(*args, **{**options, "disable": True})

    return Silent
