"""Hashes of data by content: of a file, and of all files below a folder."""

from __future__ import annotations

import hashlib
import os
from functools import lru_cache
from pathlib import Path

from pipelines.checkpoints.hashes import read_hash


def folder_hash(folder: Path) -> str | None:
    """Hash of a folder's files by name and content; None where there is none. Files are read once per process."""
    if folder.is_file():
        return data_hash(folder)
    if not folder.exists():
        return None
    digest = hashlib.sha256()
    below = (Path(root) / name for root, _, names in os.walk(folder, followlinks=True) for name in names)
    for path in sorted(p for p in below if p.is_file()):
        digest.update(f"{path.relative_to(folder)} {data_hash(path)}\n".encode())
    return digest.hexdigest()[:16]


def data_hash(path: Path) -> str:
    """Hash of a data file's content; it is read once per process, and again when it has changed."""
    stat = path.stat()
    return _hash(str(path), stat.st_size, stat.st_mtime_ns)


@lru_cache(maxsize=65536)
def _hash(path: str, size: int, changed: int) -> str:
    return read_hash(Path(path))[:16]
