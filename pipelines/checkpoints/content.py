"""Hashes of data by content: of a file, and of all files below a folder."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path

from conf.errors import UserError
from pipelines.checkpoints.hashes import read_hash

MOST = 2_000_000
"""Files of a folder of data at most."""
SYSTEM = (("proc",), ("sys",))
"""Folders whose files have no end."""


def folder_hash(folder: Path) -> str | None:
    """Hash of a folder's files by name and content; None where there is none. Files are read once per process."""
    if folder.is_file():
        return data_hash(folder)
    if not folder.exists():
        return None
    digest = hashlib.sha256()
    for path in sorted(_files(folder)):
        digest.update(f"{path.relative_to(folder)} {data_hash(path)}\n".encode())
    return digest.hexdigest()[:16]


def _files(folder: Path) -> Iterator[Path]:
    """The files below a folder, links followed. UserError for what is none of data: too many, or the system's own."""
    count = 0
    for root, below, names in os.walk(folder, followlinks=True):
        place = Path(root)
        real = place.resolve()
        if place.is_symlink() and real in {parent.resolve() for parent in place.parents}:
            below.clear()  # a link to a folder above it
            continue
        count += 1 + len(names)
        if count > MOST or real.parts[1:2] in SYSTEM:
            what = f"the folder holds {real if count <= MOST else f'more than {MOST:,} files'}"
            raise UserError(what, where=str(folder), do="name a folder of data")
        yield from (path for name in names if (path := place / name).is_file())


def data_hash(path: Path) -> str:
    """Hash of a data file's content; it is read once per process, and again when it has changed."""
    stat = path.stat()
    return _hash(str(path), stat.st_size, stat.st_mtime_ns)


@lru_cache(maxsize=65536)
def _hash(path: str, size: int, changed: int) -> str:
    return read_hash(Path(path))[:16]
