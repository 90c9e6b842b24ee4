"""Whether the store still holds what it says: merges made again from their recipes, checkpoints hashed again."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from conf.errors import UserError
from conf.schema import Executor
from pipelines.checkpoints.fingerprint import WeightHash
from pipelines.progress import SILENT, Progress
from pipelines.store.integrity import ENTRY, Damaged, changed_file, read_entry
from pipelines.store.samples import DOCUMENTS, SAMPLES, check_table
from pipelines.store.store import DAMAGED, KINDS, Entry, title
from pipelines.study.information import FILE
from pipelines.study.sources import Access
from pipelines.study.worker import Worker
from pipelines.upkeep.export import merge_of, sources_of

GOOD, DIFFERS, MISSING, UNKNOWN = "ok", "differs", "missing", "unknown"
"""States of a check; unknown: nothing was recorded to compare with, or it was recorded on another device."""


@dataclass(frozen=True)
class Check:
    """What was found of one entry."""

    kind: str
    key: str
    what: str
    state: str
    told: str = ""

    @property
    def bad(self) -> bool:
        """Whether the entry is not what it says."""
        return self.state in (DIFFERS, MISSING)


def chosen_entries(keys: Sequence[str], access: Access) -> list[Entry]:
    """The entries that the keys begin; all entries of the store where there is no key."""
    if keys:
        return [access.store.find(key) for key in keys]
    store = access.store
    aside = [path.name.split("-") for path in sorted((store.root / DAMAGED).glob("*-*-*"))]
    lost = [Entry(kind, key, store.folder(kind, key)) for kind, key, *_ in aside if kind in KINDS]
    return [*(entry for kind in KINDS for entry in store.entries(kind)), *(e for e in lost if not e.folder.exists())]


def verify(entries: Sequence[Entry], access: Access, executor: Executor, progress: Progress = SILENT) -> list[Check]:
    """Check entries one after another.

    A merge's result: every checkpoint that it was made of is hashed again, and it is merged again from its recipe; the
    weights' hash has to be the recorded one. Other results: their checkpoint is hashed again. Bases, experts, kept
    merges and statistics: their files are hashed again.
    """
    verifier = _Verifier(access, executor)
    checks = []
    with progress.step("verify", len(entries)) as step:
        for entry in entries:
            checks.append(verifier.check(entry))
            step.advance(1, entry=f"{entry.kind}:{entry.key[:8]}", state=checks[-1].state)
    return checks


class _Verifier:
    """Checks entries; a checkpoint that many of them name is read once."""

    def __init__(self, access: Access, executor: Executor):
        self.access, self.store = access, access.store
        self.worker = Worker(access, executor)
        self._fresh: dict[str, str] = {}

    def check(self, entry: Entry) -> Check:
        """What became of one entry."""
        about: dict[str, Any] = {}
        try:
            about = read_entry(entry.kind, entry.folder)  # from its file, whatever was read before
            if name := changed_file(entry.folder, about):
                state, told = DIFFERS, f"{name} is not what was committed"
            else:
                state, told = getattr(self, f"_check_{entry.kind}")(entry, about)
        except Damaged as error:
            state, told = DIFFERS if error.changed else MISSING, error.what
        except UserError as error:
            state, told = MISSING, error.what
        except OSError as error:
            state, told = MISSING, str(error)
        return Check(entry.kind, entry.key, title(about) or f"no {ENTRY}", state, told)

    def _check_bases(self, entry: Entry, about: dict[str, Any]) -> tuple[str, str]:
        recorded = about.get("fingerprint")
        if recorded is None:
            return UNKNOWN, "no fingerprint was recorded when it was made"
        return _compared(self._fingerprint(str(entry.folder)), recorded, "its files are not those that were committed")

    _check_experts = _check_bases

    def _check_results(self, entry: Entry, about: dict[str, Any]) -> tuple[str, str]:
        for name in (DOCUMENTS, *([SAMPLES] if (entry.folder / SAMPLES).exists() else [])):
            check_table(entry, name)
        for source in sources_of(about, self.store):
            if self._fingerprint(source.path) != source.fingerprint:
                return DIFFERS, f"{source.path} is not what was scored"
        if about["recipe"] is None:
            return GOOD, ""
        if about.get("weights") is None:
            return UNKNOWN, "no hash of the merged weights was recorded"
        if _hash(merge_of(about, self.access).tensors(str(self.worker.device))) == about["weights"]:
            return GOOD, ""
        if about["device"] != self.worker.device_name:
            return UNKNOWN, f"merged on {about['device']}; on {self.worker.device_name} its last bits may be others"
        return DIFFERS, "merging again gives other weights"

    def _check_merges(self, entry: Entry, about: dict[str, Any]) -> tuple[str, str]:
        checkpoint = self.access.open(str(entry.folder))
        found = _hash((name, checkpoint.tensor(name)) for name in sorted(checkpoint.header))
        return _compared(found, about["weights"], "its files do not hold the weights that were merged")

    def _check_statistics(self, entry: Entry, about: dict[str, Any]) -> tuple[str, str]:
        found = hashlib.sha256((entry.folder / FILE).read_bytes()).hexdigest()
        return _compared(found, about["sha256"], "its file is not the one that was committed")

    def _fingerprint(self, path: str) -> str:
        """The fingerprint of a checkpoint, read from its files and from no cache."""
        if path not in self._fresh:
            self._fresh[path] = self.access.open(path).fingerprint()
        return self._fresh[path]


def _compared(found: str, recorded: str, otherwise: str) -> tuple[str, str]:
    return (GOOD, "") if found == recorded else (DIFFERS, otherwise)


def _hash(tensors: Iterable[tuple[str, Any]]) -> str:
    digest = WeightHash()
    for name, tensor in tensors:
        digest.add(name, tensor)
    return digest.hexdigest()
