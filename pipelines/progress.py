"""How a stage tells what it is doing: it never prints, it reports to whoever listens."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol


class Step(Protocol):
    """One running piece of work with a known number of units."""

    def advance(self, n: int = 1, **fields: Any) -> None:
        """Count n units done; fields (loss, trial, …) are shown beside the bar."""


class Progress(Protocol):
    """What a stage is given to report to (a live view, plain lines, or silence)."""

    def step(self, label: str, total: int | None = None) -> Any:
        """Context manager yielding a Step."""

    def note(self, text: str, level: str = "info") -> None:
        """Say one line (level: debug, info or warning)."""


class _SilentStep:
    def advance(self, n: int = 1, **fields: Any) -> None:
        pass


class Silent:
    """A listener that shows nothing: the default of every stage."""

    @contextmanager
    def step(self, label: str, total: int | None = None) -> Iterator[Step]:
        """Yield a step that counts for nobody."""
        yield _SilentStep()

    def note(self, text: str, level: str = "info") -> None:
        """Drop the line."""


SILENT = Silent()


class Within(Silent):
    """Progress within one unit of a longer step: ``tell`` is given a few words, such as scoring 64/512, now and then.

    Quick units tell nothing, so that a step of many of them is not drowned: ``every`` seconds go by before the first
    words and between any two.
    """

    EVERY = 2.0

    def __init__(self, tell: Callable[[str], None], every: float | None = None):
        self.tell, self.every = tell, self.EVERY if every is None else every

    @contextmanager
    def step(self, label: str, total: int | None = None) -> Iterator[Step]:
        """A step that is told as part of the longer one."""
        yield _Part(self, label, total)


class _Part:
    def __init__(self, within: Within, label: str, total: int | None):
        self.within, self.label, self.total, self.done = within, label, total, 0
        self.last = time.monotonic()

    def advance(self, n: int = 1, **fields: Any) -> None:
        self.done += n
        if time.monotonic() - self.last >= self.within.every:
            self.last = time.monotonic()
            self.within.tell(" ".join([f"{self.label} {self.done}/{self.total or '?'}", *map(str, fields.values())]))
