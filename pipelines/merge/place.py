"""A folder that is there whole or not at all: written beside its place and renamed into it."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from conf.errors import UserError

RECIPE = "mergebench_recipe.json"
"""The file by which a folder is known as a merge made here."""
SLACK = 64 << 20
"""Bytes of room asked for beside the weights."""


@contextmanager
def placed(out: Path, size: int) -> Iterator[Path]:
    """Yield an empty folder beside ``out`` that takes its place at the end, or vanishes where something goes wrong.

    Only an empty place or an earlier merge is written over. Raises ``UserError`` for a folder that holds something
    else, and for a disk with less than ``size`` bytes of room.
    """
    if out.is_file():
        raise UserError(f"{out} is a file", do="give another folder")
    if out.is_dir() and any(out.iterdir()) and not (out / RECIPE).is_file():
        raise UserError(f"{out} is not empty and is no merge made here", do="give an empty or new folder")
    out.parent.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(out.parent).free
    if free < size + SLACK:
        what = f"the merged model takes {size / 1e9:.1f} GB, the disk has {free / 1e9:.1f} GB free"
        raise UserError(what, where=str(out.parent), do="free some room, give another folder, or choose dtype=bfloat16")
    beside = Path(tempfile.mkdtemp(prefix=f".{out.name}.", suffix=".part", dir=out.parent))
    try:
        yield beside
        beside.chmod(0o755)
        _into_place(beside, out)
    finally:
        shutil.rmtree(beside, ignore_errors=True)


def _into_place(beside: Path, out: Path) -> None:
    """Rename into place; an earlier merge is moved aside first and then removed."""
    aside = None
    if out.is_dir() and any(out.iterdir()):
        aside = beside.with_suffix(".old")
        out.rename(aside)
    beside.rename(out)
    if aside is not None:
        shutil.rmtree(aside, ignore_errors=True)
