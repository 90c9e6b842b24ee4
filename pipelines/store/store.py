"""The store: checkpoints and results by content key, there whole or not at all.

Layout: ``<root>/<kind>/<key>/`` with an ``entry.json`` that says what the entry is. An entry is written beside its
place and renamed into it; any number of processes may share a store, and whoever renames first wins. Nothing is ever
marked done by the existence of a folder that is still being filled.
"""

from __future__ import annotations

import errno
import hashlib
import json
import logging
import marshal
import os
import platform
import re
import shutil
import time
import uuid
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from conf.errors import UserError
from pipelines.checkpoints.hold import hold
from pipelines.store.integrity import Damaged, changed_file, read_entry, write_entry

KINDS = ("bases", "experts", "results", "merges", "statistics")
DAMAGED = "damaged"
LATE = (0, 0.1, 0.3, 1, 2)
"""Seconds between looks for an entry that another process has committed."""
UNLOCKED = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)
KEY = re.compile("[0-9a-f]{32}")
MACHINE = f".{re.sub('[^A-Za-z0-9-]', '', platform.node())[:32]}."
"""Part of the names of drafts: some file systems lock among the processes of one machine alone."""
log = logging.getLogger("mergebench.store")


def content_key(payload: Any) -> str:
    """Hex key of what can change a number: SHA-256 over the canonical JSON (sorted keys, exact floats), 32 digits."""
    text = json.dumps(payload, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def model_title(kind: str, names: Iterable[str], method: str | None = None) -> str:
    """A model's name in messages and tables: ``ties of a, b``, ``expert a``, ``base``."""
    named = ", ".join(names)
    return f"{method} of {named}" if method else f"{kind} {named}".strip()


def title(about: Mapping[str, Any]) -> str:
    """What an entry is, in a few words, from what it says of itself."""
    if "statistic" in about:
        return f"{about['statistic']} of {about['name']} on {about['task']}"
    if "name" in about or "trial" not in about:
        return str(about.get("name", ""))
    return model_title(about["trial"], about["names"], (about["recipe"] or {}).get("method"))


@dataclass(frozen=True)
class Entry:
    """One committed directory of the store."""

    kind: str
    key: str
    folder: Path
    read: dict[tuple[str, str], bytes] = field(default_factory=dict, compare=False, repr=False)
    """Accounts that were read already, by kind and key."""

    def describe(self) -> dict[str, Any]:
        """The entry's own account of itself; read once, unless it is of a result with a failed part.

        Raises ``Damaged`` where it is not what was committed.
        """
        if text := self.read.get((self.kind, self.key)):
            return marshal.loads(text)
        about = read_entry(self.kind, self.folder)
        if not about.get("incomplete"):
            self.read[self.kind, self.key] = marshal.dumps(about)
        return about


class Store:
    """Checkpoints and results by content key, below one folder."""

    def __init__(self, root: str | os.PathLike[str]):
        self.root = Path(root).expanduser().absolute()
        self._read: dict[tuple[str, str], bytes] = {}
        self._told: set[Path] = set()
        self._cleared = False
        try:
            (self.root / "tmp").mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(
                f"cannot use {root} as a store",
                where=error.strerror or "",
                do="name a folder that can be written with store=…",
            ) from None

    @property
    def cache(self) -> Path:
        """Folder of things that can be computed again: fingerprints, spectral factors."""
        folder = self.root / "cache"
        folder.mkdir(exist_ok=True)
        return folder

    def folder(self, kind: str, key: str) -> Path:
        """Where an entry is, or would be."""
        return self.root / kind / key

    def has(self, kind: str, key: str, complete: bool = False, whole: bool = False) -> bool:
        """Whether the entry is committed (and, if asked, carries no failed part, or has files of the committed content:
        hashed where they were not before, set aside where they are others).
        """
        entry = self._entry(kind, key)
        about = self.read(entry)
        if whole and about and (name := changed_file(entry.folder, about, cache=self.cache)):
            self.set_aside(entry.folder, f"{kind}-{key}", f"{kind}:{key[:10]} is damaged: {name} was changed")
            return False
        return about is not None and not (complete and about.get("incomplete", False))

    def _entry(self, kind: str, key: str) -> Entry:
        return Entry(kind, key, self.folder(kind, key), self._read)

    def __getstate__(self) -> dict[str, Any]:
        """The store as another process gets it: what was read stays here."""
        return {**vars(self), "_read": {}}

    def read(self, entry: Entry) -> dict[str, Any] | None:
        """What an entry says of itself; None where there is none, or a damaged one, which is set aside."""
        if not os.path.lexists(entry.folder):
            return None
        try:
            return entry.describe()
        except Damaged as error:
            self.set_aside(entry.folder, f"{entry.kind}-{entry.key}", error.what)
            return None

    def read_all(self, kind: str) -> Iterator[tuple[Entry, dict[str, Any]]]:
        """All sound entries of a kind, by key, with what they say of themselves; damaged ones are set aside."""
        for entry in self.entries(kind):
            if (about := self.read(entry)) is not None:
                yield entry, about

    def set_aside(self, path: Path, name: str, why: str) -> None:
        """Move what cannot be used into ``damaged/``, and say so once; nothing is deleted."""
        self._read.clear()
        aside = self.root / DAMAGED / f"{name}-{uuid.uuid4().hex[:8]}"
        try:
            aside.parent.mkdir(exist_ok=True)
            os.rename(path, aside)
        except FileNotFoundError:  # another process did
            return
        except OSError as error:
            aside = Path(f"{path}, which cannot be moved ({error.strerror})")
        if path not in self._told:
            self._told.add(path)
            log.warning("%s; it is in %s and will be made again where it is needed", why, aside)

    def entry(self, kind: str, key: str) -> Entry:
        """The committed entry of exactly this key."""
        if not self.has(kind, key):
            raise UserError(
                f"the store holds no {kind} entry {key}", where=str(self.root), do="list them with `mergebench ls`"
            )
        return self._entry(kind, key)

    def entries(self, kind: str) -> list[Entry]:
        """All committed entries of a kind, by key."""
        parent = self.root / kind
        if not parent.is_dir():
            return []
        places = (path for path in sorted(parent.iterdir()) if KEY.fullmatch(path.name) or path.is_dir())
        return [self._entry(kind, path.name) for path in places]

    def find(self, prefix: str) -> Entry:
        """The one entry of any kind whose key begins so (``kind:prefix`` narrows it)."""
        kind, _, start = prefix.rpartition(":")
        kinds = [k for k in KINDS if not kind or k.startswith(kind)]
        hits = [e for k in kinds for e in self.entries(k) if e.key.startswith(start)] if len(start) >= 4 else []
        if len(hits) != 1:
            what = f"{len(hits)} entries of the store begin with" if hits else "no entry of the store begins with"
            raise UserError(
                f"{what} {prefix!r}", where=str(self.root), do="give four or more digits of a key from `mergebench ls`"
            )
        return hits[0]

    @contextmanager
    def commit(self, kind: str, key: str, about: dict[str, Any]) -> Iterator[Path]:
        """A fresh folder to fill; on leaving without an error it becomes the entry, in one rename.

        ``about`` is read when the block ends, so the block may still add to it. An entry that is there already stays,
        unless it is marked incomplete (a result with failed tasks): then it is replaced.
        """
        with self.draft(key) as draft:
            yield draft
            entry = {"kind": kind, "key": key, "made": time.time(), **about}
            write_entry(draft, entry)
            _sync(draft)
            self._publish(draft, kind, key)

    def aside(self, name: str) -> Path:
        """A new path below ``tmp/``: a folder there that no process holds is removed by this machine's next draft."""
        return self.root / "tmp" / f"{name}{MACHINE}{uuid.uuid4().hex[:8]}"

    @contextmanager
    def draft(self, name: str) -> Iterator[Path]:
        """A fresh folder below ``tmp/``, removed at the end; that of a killed process goes with the next one."""
        if not self._cleared:
            self._cleared = True
            self._clear()
        draft, held = self.aside(name), 0
        try:
            while not draft.is_dir():  # another process can take it for one that was left, until it is held
                if held:
                    os.close(held)
                draft.mkdir(parents=True)
                held = hold(draft)
            yield draft
        finally:
            shutil.rmtree(draft, ignore_errors=True)
            if held:
                os.close(held)

    def _clear(self) -> None:
        """Remove what killed processes of this machine left: the lock on a draft dies with its process."""
        for path in (self.root / "tmp").glob(f"*{MACHINE}*"):
            if held := hold(path, wait=False):
                shutil.rmtree(path, ignore_errors=True)
                os.close(held)

    def _publish(self, draft: Path, kind: str, key: str) -> None:
        place = self.folder(kind, key)
        place.parent.mkdir(exist_ok=True)
        if not self.has(kind, key, complete=True) and os.path.lexists(place):
            os.rename(place, replaced := self.aside(key))
            shutil.rmtree(replaced, ignore_errors=True)
        try:
            os.rename(draft, place)
        except OSError:  # another process was first; on some network file systems its entry shows a little later
            for wait in LATE:
                if self.has(kind, key):
                    return
                time.sleep(wait)
            raise

    @contextmanager
    def claim(self, kind: str, key: str, wait: bool = True) -> Iterator[bool]:
        """Hold the right to make an entry; yields False when another process holds it and ``wait`` is off.

        The claim is an operating-system file lock: it dies with its process, so nothing stale is left behind.
        """
        folder = self.root / "locks"
        folder.mkdir(exist_ok=True)
        lock = FileLock(folder / f"{kind}-{key}.lock")
        try:
            lock.acquire(timeout=-1 if wait else 0)
        except Timeout:
            yield False
            return
        except (NotImplementedError, OSError) as error:
            if isinstance(error, OSError) and error.errno not in UNLOCKED:
                raise
            yield True  # a file system without locks: work may be done twice, and who renames first wins
            return
        try:
            yield True
        finally:
            lock.release()


def _sync(folder: Path) -> None:
    """Make the files of a draft durable before the rename that publishes them."""
    for path in folder.rglob("*"):
        if path.is_file():
            descriptor = os.open(path, os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
