"""How a stage tells what it is doing: it never prints, it reports to whoever listens."""

from __future__ import annotations

from collections.abc import Iterator
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
