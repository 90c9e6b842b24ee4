"""Checkpoints to resume from, and room on the disk."""

from __future__ import annotations

import errno
import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from conf.errors import UserError

LAST_GOOD = "last-good"
"""Folder of the weights before a loss that is no number."""


def prepare(folder: Path, about: dict[str, Any]) -> Path | None:
    """Make the folder of a run's checkpoints ready; the newest complete one of the same run, where there is one.

    ``about`` fixes the run: checkpoints of another one are removed.
    """
    note, text = folder / "run.json", json.dumps(about, sort_keys=True, default=str)
    if folder.is_dir() and (not note.is_file() or note.read_text() != text):
        shutil.rmtree(folder)
    folder.mkdir(parents=True, exist_ok=True)
    note.write_text(text)
    complete = [f for f in folder.glob("checkpoint-*") if (f / "trainer_state.json").is_file()]
    return max(complete, key=lambda f: int(f.name.rpartition("-")[2]), default=None)


def check_room(folder: Path, needed: int) -> None:
    """Refuse to start where the result cannot be written.

    Raises:
        UserError: Saying what is needed and what is free.
    """
    place = folder
    while not place.exists():
        place = place.parent
    free = shutil.disk_usage(place).free
    if free < needed:
        raise UserError(
            f"{needed / 1e9:.2f} GB are needed on the disk, {free / 1e9:.2f} GB are free", where=str(place),
            do="free some room, or write elsewhere",
        )  # fmt: skip


@contextmanager
def full_disk(folder: Path) -> Iterator[None]:
    """A disk that fills up while something is written becomes a UserError."""
    try:
        yield
    except Exception as error:
        full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
        if full or "no space left" in str(error).lower() or "os error 28" in str(error).lower():
            raise UserError(
                "the disk is full", where=str(folder), do="free some room and give the command again"
            ) from None
        raise
