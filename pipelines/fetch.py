"""What a command has looked at on the hub: which checkpoints still lack their weights, and how these are fetched."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from conf.errors import UserError
from pipelines.merge.checkpoint import OpenCheckpoint
from pipelines.merge.remote import RemoteCheckpoint, silent_bar
from pipelines.progress import SILENT, Progress, Step

AT_ONCE = 8
"""Checkpoints whose headers are asked for side by side."""

Named = tuple[str, "str | None"]
"""Hub id and revision."""


class Looked:
    """Hub checkpoints by id and revision, asked for once a command; a copy for another process starts empty."""

    def __init__(self) -> None:
        self._known: dict[Named, OpenCheckpoint | UserError] = {}
        self._lacking: dict[str, RemoteCheckpoint] = {}

    def __reduce__(self) -> tuple[Any, ...]:
        return (Looked, ())

    def look(self, named: Named, ask: Callable[[], OpenCheckpoint]) -> OpenCheckpoint:
        """The checkpoint, asked for the first time it is named. Raises the ``UserError`` that the hub gave then."""
        if named not in self._known:
            try:
                found = ask()
                if isinstance(found, RemoteCheckpoint):
                    _ = found.header  # what is wrong with it is wrong from now on
                    self._lacking[str(found.folder)] = found
                self._known[named] = found
            except UserError as error:
                self._known[named] = error
        known = self._known[named]
        if isinstance(known, UserError):
            raise known
        return known

    def look_ahead(self, named: Iterable[Named], look: Callable[[Named], OpenCheckpoint]) -> None:
        """Ask for several checkpoints side by side; what is wrong with one is told when it is asked for alone."""
        new = [name for name in dict.fromkeys(named) if name not in self._known]

        def ask(name: Named) -> None:
            with contextlib.suppress(UserError):
                look(name)

        with ThreadPoolExecutor(max_workers=AT_ONCE) as pool:
            list(pool.map(ask, new))

    def lacking(self, folder: str) -> RemoteCheckpoint | None:
        """The checkpoint of a snapshot folder that still lacks its weights."""
        return self._lacking.get(folder)

    def fetch(self, progress: Progress = SILENT, folders: Sequence[str] | None = None) -> None:
        """Download the weights of snapshot folders, by default of all that lack them; bytes are in the progress."""
        chosen = [self._lacking[f] for f in (self._lacking if folders is None else folders) if f in self._lacking]
        if not chosen:
            return
        with progress.step("fetch", sum(remote.to_fetch for remote in chosen)) as step:
            for remote in dict.fromkeys(chosen):
                tally = _Tally(step, remote)
                opened = remote.fetch(_counting_bar(tally))
                tally.end()
                del self._lacking[str(remote.folder)]
                self._known |= {named: opened for named, known in self._known.items() if known is remote}


class _Tally:
    """Bytes of one checkpoint, passed on in lumps; never more than it has, and all of it in the end."""

    def __init__(self, step: Step, remote: RemoteCheckpoint):
        self._step, self._name, self._total = step, remote.path, remote.to_fetch
        self._seen = self._told = 0
        self._lock = threading.Lock()

    def add(self, count: float) -> None:
        """Count bytes that have come."""
        with self._lock:
            self._seen = min(self._seen + int(count), self._total)
            if (self._seen - self._told) * 100 >= self._total:
                self._tell()

    def end(self) -> None:
        """Count what came without having been told, such as parts fetched before."""
        with self._lock:
            self._seen = self._total
            self._tell()

    def _tell(self) -> None:
        self._step.advance(self._seen - self._told, checkpoint=self._name)
        self._told = self._seen


def _counting_bar(tally: _Tally) -> Any:
    """A bar for the hub client that nobody sees and that counts the bytes written."""

    class Counting(silent_bar()):  # type: ignore[misc]
        def __init__(self, *args: Any, **options: Any):
            self.counts = options.get("unit") == "B" and "bytes" not in str(options.get("desc"))  # of the network
            super().__init__(*args, **options)

        def update(self, n: float | None = 1) -> None:
            if self.counts:
                tally.add(n or 0)

    return Counting
