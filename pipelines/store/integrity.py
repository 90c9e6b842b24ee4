"""Whether an entry is what was committed: its format, its own checksum, and size and SHA-256 of each of its files.

``entry.json`` carries ``checksum``, the SHA-256 of its own bytes with that hash written as zeros, and ``files``. Entry
and sizes are checked at every read, which costs some microseconds; ``verify`` hashes all files.
Entries of before have none of this; of all the fields that are relied on are checked.
"""

from __future__ import annotations

import hashlib
import json
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from conf.errors import UserError, redacted
from pipelines.checkpoints.hashes import file_hash
from pipelines.checkpoints.untrusted import check_file, parse_json
from pipelines.store.fields import misfit

ENTRY = "entry.json"
FORMAT = 2
"""Of what is written; entries that name none are of the first."""
ZEROS = "0" * 64


class Damaged(UserError):  # noqa: N818  # a UserError, named for what it tells
    """An entry that is not what was committed: ``changed`` since, or unreadable."""

    changed = False


class _ChangedError(ValueError):
    """A seal that does not fit what it seals."""


def write_entry(draft: Path, entry: Mapping[str, Any]) -> None:
    """Write ``entry.json`` into a draft whose other files are all there."""
    files = {
        str(file.relative_to(draft)): [file.stat().st_size, file_hash(file)]
        for file in sorted(draft.rglob("*")) if file.is_file() and file.suffix != ".md"
    }  # fmt: skip
    sealed = {**entry, "format": FORMAT, "files": files, "checksum": ZEROS}
    text = redacted(json.dumps(sealed, indent=1, sort_keys=True, allow_nan=False)) + "\n"
    digest = hashlib.sha256(text.encode()).hexdigest()
    (draft / ENTRY).write_text(text.replace(f'"checksum": "{ZEROS}"', f'"checksum": "{digest}"', 1), encoding="utf-8")


def read_entry(kind: str, folder: Path) -> dict[str, Any]:
    """What an entry says of itself.

    Raises ``Damaged`` where entry or files are not as they were committed, ``UserError`` for a newer format.
    """
    try:
        check_file(folder / ENTRY)
        data = (folder / ENTRY).read_bytes()
        about = parse_json(data, strict=True)
        _check_format(about, f"{kind}:{folder.name[:10]}")
        if "checksum" in about or "format" in about:
            _check_seal(about, data)
        if wrong := misfit(kind, about):
            raise ValueError(f"{wrong} is not what an entry says")
        if (about["kind"], about["key"]) != (kind, folder.name):
            raise ValueError(f"it is {about['kind']}:{about['key'][:10]}")
        _check_sizes(about, folder)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        what = f"{kind}:{folder.name[:10]} is damaged: {reason}"
        damaged = Damaged(what, where=str(folder), do="see `mergebench verify --all`")
        damaged.changed = isinstance(error, _ChangedError)
        raise damaged from None
    return about


def changed_file(folder: Path, about: Mapping[str, Any], only: str | None = None, cache: Path | None = None) -> str:
    """The first file of an entry whose content is not what was committed; empty for none.

    ``cache`` has the hashes of files that were read before and have their size and time of then.
    """
    for name, (_, digest) in about.get("files", {}).items():
        if only in (None, name) and file_hash(folder / name, cache) != digest:
            return name
    return ""


def _check_format(about: Mapping[str, Any], name: str) -> None:
    found = about.get("format", 1)
    if not isinstance(found, int):
        raise ValueError("it has no format")
    if found > FORMAT:
        what = f"{name} was written by a newer mergebench: its format is {found}, this one reads {FORMAT} and older"
        raise UserError(what, do="update mergebench, or use another store")


def _check_seal(about: Mapping[str, Any], data: bytes) -> None:
    told = about.get("checksum")
    if not isinstance(told, str) or len(told) != 64:
        raise ValueError("it has no checksum")
    if hashlib.sha256(data.replace(told.encode(), ZEROS.encode(), 1)).hexdigest() != told:
        raise _ChangedError(f"{ENTRY} was changed")
    if "files" not in about:
        raise ValueError("it names no files")


def _check_sizes(about: Mapping[str, Any], folder: Path) -> None:
    for name, (size, _) in about.get("files", {}).items():
        found = (folder / name).stat()
        if found.st_size != size or not stat.S_ISREG(found.st_mode):
            raise _ChangedError(f"{name} was changed or cut")
