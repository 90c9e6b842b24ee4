"""Hashes of files, kept by their stamps so that a large one is read once."""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import time
from pathlib import Path

BLOB = re.compile(r"^[0-9a-f]{64}$")
SETTLED = 2.0
"""Seconds after its last change from which on a file's stamp is trusted to change with its content."""
BLOCK = 1 << 22


def file_hash(file: Path, cache: Path | None = None) -> str:
    """SHA-256 of a file's bytes, from the cache where its stamp is known."""
    real = file.resolve()
    if real.parent.name == "blobs" and BLOB.match(real.name):
        return real.name
    stat = real.stat()
    stamp = f"{real}|{stat.st_size}|{stat.st_mtime_ns}|{stat.st_ino}"
    known = cache / hashlib.sha256(stamp.encode()).hexdigest()[:40] if cache else None
    if known and known.is_file() and BLOB.match(digest := known.read_text(encoding="utf-8", errors="replace")):
        return digest
    digest = read_hash(real)
    if known and time.time() - stat.st_mtime > SETTLED:
        with contextlib.suppress(OSError):  # a disk that is full or read-only: hashed again next time
            _write_whole(known, digest)
    return digest


def read_hash(file: Path) -> str:
    """SHA-256 of a file's bytes, read in blocks."""
    digest, buffer = hashlib.sha256(), bytearray(BLOCK)
    view = memoryview(buffer)
    with file.open("rb", buffering=0) as stream:
        while count := stream.readinto(buffer):
            digest.update(view[:count])
    return digest.hexdigest()


def _write_whole(file: Path, text: str) -> None:
    """Write beside the place and rename, so that a reader sees all or nothing."""
    file.parent.mkdir(parents=True, exist_ok=True)
    beside = file.with_name(f"{file.name}.{os.getpid()}.part")
    beside.write_text(text, encoding="utf-8")
    os.replace(beside, file)
