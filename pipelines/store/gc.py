"""What of the store no study refers to, and its removal."""

from __future__ import annotations

import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from conf.errors import UserError, nearest
from pipelines.store.records import FOLDER, Record, studies
from pipelines.store.store import DAMAGED, KINDS, Store, title

DAY = 86400.0


@dataclass(frozen=True)
class Waste:
    """Something that may go."""

    kind: str
    """Kind of an entry, searches, or draft for what a killed process left behind."""
    key: str
    path: Path
    size: int
    what: str


@dataclass
class Collection:
    """What may go, what was removed, and what every study holds on to."""

    waste: list[Waste] = field(default_factory=list)
    forgotten: list[Record] = field(default_factory=list)
    kept: int = 0
    deleted: bool = False
    busy: list[Waste] = field(default_factory=list)
    """What was left because another process holds it."""

    @property
    def size(self) -> int:
        """Bytes of all that may go."""
        return sum(waste.size for waste in self.waste)


def collect_garbage(
    store: Store, *, delete: bool = False, forget: Sequence[str] = (), kinds: Sequence[str] = (), days: float = 0.0
) -> Collection:
    """Find what no study refers to and, with ``delete``, remove it.

    Args:
        store: the store.
        delete: act; otherwise nothing is touched.
        forget: names of studies that count no longer; their records go too.
        kinds: kinds of entries that may go; default: all.
        days: entries younger than this stay.

    Raises:
        UserError: for a study or kind that does not exist.
    """
    records = studies(store)
    _check_names(forget, [record.name for record in records], "--forget", "study")
    _check_names(kinds, KINDS, "--kind", "kind of entry")
    forgotten = [record for record in records if record.name in forget]
    live = {key for record in records if record not in forgotten for key in record.all_keys()}
    found = Collection(forgotten=forgotten)
    for entry, about in (pair for kind in kinds or KINDS for pair in store.read_all(kind)):
        if entry.key in live or time.time() - about["made"] < days * DAY:
            found.kept += 1
        else:
            found.waste.append(_waste(entry.kind, entry.folder, _what(about)))
    found.waste += _drafts(store, live)
    if not kinds:
        held = [record.file.stem for record in records if record not in forgotten]
        found.waste += [waste for waste in _searches(store, held) if time.time() - _touched(waste.path) >= days * DAY]
    if lost := sorted(path.name for path in (store.root / DAMAGED).glob(f"{FOLDER}-*") if delete):
        do = "run the study again, or take the file out of there"
        where = str(store.root / DAMAGED / lost[0])
        raise UserError("a damaged record may hold on to what would go", where=where, do=do)
    if delete:
        _delete(found, store)
    return found


def _check_names(names: Sequence[str], known: Sequence[str], where: str, what: str) -> None:
    for name in names:
        if name not in known:
            raise UserError(f"there is no {what} {name!r}", where=where, do=nearest(name, known))


def _drafts(store: Store, live: set[str]) -> list[Waste]:
    """What a killed process left behind a day ago or more: drafts, and states of training of experts that are finished
    or that no study wants.
    """
    states = sorted((store.root / "work").glob("*"))
    states = [path for path in states if path.stem not in live or store.has("experts", path.stem)]
    drafts = [
        (path, path.lstat().st_mtime, "left behind by a killed process") for path in (store.root / "tmp").iterdir()
    ]
    drafts += [(path, _touched(path), "damaged") for path in (store.root / DAMAGED).glob("*")]
    drafts += [(path, _touched(path), "state of an interrupted training") for path in states]
    return [_waste("draft", path, what) for path, touched, what in sorted(drafts) if time.time() - touched > DAY]


def _touched(folder: Path) -> float:
    """When something in a folder was last written."""
    return max(file.lstat().st_mtime for file in (folder, *folder.rglob("*")))


def _searches(store: Store, kept: Sequence[str]) -> list[Waste]:
    """Proposals and tables of searches whose record is gone; a record's name ends as the search's identity begins."""
    folders = sorted((store.root / "searches").glob("*"))
    gone = [path for path in folders if not any(name.endswith(f"-{path.name[:8]}") for name in kept)]
    return [_waste("searches", path, "proposals of a forgotten search") for path in gone]


def _delete(found: Collection, store: Store) -> None:
    """Remove what may go: an entry is renamed out of its place first, so that no one finds half of it."""
    for waste in found.waste:
        if waste.kind == "draft":
            _remove(waste.path)
            continue
        with store.claim(waste.kind, waste.key, wait=False) as mine:
            if not mine:
                found.busy.append(waste)
                continue
            aside = store.aside(waste.key)
            waste.path.rename(aside)
            _remove(aside)
    for record in found.forgotten:
        record.file.unlink(missing_ok=True)
    found.waste = [waste for waste in found.waste if waste not in found.busy]
    found.deleted = True


def _remove(path: Path) -> None:
    if path.is_symlink() or path.is_file():
        path.unlink()
    else:
        shutil.rmtree(path)


def _waste(kind: str, path: Path, what: str) -> Waste:
    files = [path] if path.is_symlink() or path.is_file() else path.rglob("*")
    return Waste(kind, path.name, path, sum(file.lstat().st_size for file in files if not file.is_dir()), what)


def _what(about: dict[str, Any]) -> str:
    return title(about) + (f" on {about['suite']}" if "suite" in about else "")
