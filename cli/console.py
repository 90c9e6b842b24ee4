"""The terminal: consoles, a live view where there is a terminal, plain lines where there is none, and a log always."""

from __future__ import annotations

import json
import logging
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)

out = Console()
err = Console(stderr=True)
log = logging.getLogger("mergebench")

LEVELS = {"debug": logging.DEBUG, "info": logging.INFO, "warning": logging.WARNING}
QUIET, NORMAL, VERBOSE = -1, 0, 1
verbosity = NORMAL


def set_verbosity(level: int) -> None:
    """Remember how much the user wants to see: QUIET, NORMAL or VERBOSE."""
    global verbosity
    verbosity = level


def print_json(payload: Any) -> None:
    """One JSON document on standard output."""
    sys.stdout.write(json.dumps(payload, indent=2, default=str) + "\n")


@contextmanager
def log_file(path: Path) -> Iterator[None]:
    """Append what happens to a log file, with times."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handler = logging.FileHandler(path)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    log.setLevel(logging.DEBUG)
    log.propagate = False
    log.addHandler(handler)
    try:
        yield
    finally:
        log.removeHandler(handler)
        handler.close()


@contextmanager
def listening() -> Iterator[Any]:
    """The listener that stages report to: live bars on a terminal, plain lines otherwise, nothing when quiet."""
    if verbosity == QUIET:
        yield Listener(None)
        return
    if not err.is_terminal:
        yield PlainListener()
        return
    columns = (
        SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(),
        TextColumn("[dim]{task.fields[seen]}"),
    )  # fmt: skip
    with Progress(*columns, console=err, transient=True) as bars:
        yield Listener(bars)


class LiveStep:
    """One bar."""

    def __init__(self, bars: Progress | None, bar: TaskID | None, label: str):
        self.bars, self.bar, self.label = bars, bar, label
        self.done = 0

    def advance(self, n: int = 1, **fields: Any) -> None:
        """Move the bar and show the fields beside it."""
        self.done += n * (fields.get("became") != "failed")
        if self.bars is not None and self.bar is not None:
            self.bars.update(self.bar, advance=n, seen=_shown(fields))
        if fields.get("became") == "failed":
            log.warning("%s: %s", self.label, _shown(fields))
        else:
            log.debug("%s: %s", self.label, _shown(fields))


class Listener:
    """Live bars."""

    def __init__(self, bars: Progress | None):
        self.bars = bars

    @contextmanager
    def step(self, label: str, total: int | None = None) -> Iterator[LiveStep]:
        """A bar that goes when its work is done; one line of what it took stays."""
        start = time.perf_counter()
        bar = self.bars.add_task(label, total=total, seen="") if self.bars else None
        step = LiveStep(self.bars, bar, label)
        try:
            yield step
        finally:
            if self.bars is not None and bar is not None:
                self.bars.remove_task(bar)
        self._done(f"{label}{_count(step.done, total)} {time.perf_counter() - start:.1f} s", step.done < (total or 0))

    def _done(self, line: str, partial: bool) -> None:
        log.info(line)
        if self.bars is not None:
            self.bars.console.print(f"{'[yellow]![/]' if partial else '[green]✓[/]'} {line}", highlight=False)

    def note(self, text: str, level: str = "info") -> None:
        """One line above the bars."""
        log.log(LEVELS[level], text)
        if self.bars is not None and (level != "debug" or verbosity >= VERBOSE):
            self.bars.console.print(
                f"[yellow]! {text}" if level == "warning" else text, highlight=False, markup=level == "warning"
            )


class PlainStep:
    """A step told in plain lines, at most one every few seconds."""

    EVERY = 5.0

    def __init__(self, label: str, total: int | None):
        self.label, self.total, self.done, self.failed = label, total, 0, 0
        self.start = self.last = time.perf_counter()

    def advance(self, n: int = 1, **fields: Any) -> None:
        """Count, log, and say where things stand when the last line is a while ago."""
        self.done += n
        now = time.perf_counter()
        failed = fields.get("became") == "failed"
        self.failed += failed
        log.log(logging.WARNING if failed else logging.DEBUG, "%s %s: %s", self.label, self.done, _shown(fields))
        if failed or now - self.last >= self.EVERY or verbosity >= VERBOSE:
            self.last = now
            left = (
                f", {(now - self.start) / self.done * (self.total - self.done):.0f} s left"
                if self.total and self.done
                else ""
            )
            err.print(
                f"{self.label}: {self.done}/{self.total or '?'}{left} {_shown(fields)}",
                highlight=False,
                markup=False,
                soft_wrap=True,
            )


class PlainListener:
    """Plain lines, for logs and pipes: a step within a step ends without a line of its own."""

    def __init__(self) -> None:
        self.depth = 0

    @contextmanager
    def step(self, label: str, total: int | None = None) -> Iterator[PlainStep]:
        """A step that says where it stands now and then, and what it took."""
        step = PlainStep(label, total)
        self.depth += 1
        try:
            yield step
        finally:
            self.depth -= 1
        line = f"{label}{_count(step.done - step.failed, total)}: {time.perf_counter() - step.start:.1f} s"
        log.info(line)
        if self.depth == 0 or verbosity >= VERBOSE:
            err.print(line, highlight=False, markup=False, soft_wrap=True)

    def note(self, text: str, level: str = "info") -> None:
        """One line."""
        log.log(LEVELS[level], text)
        if level != "debug" or verbosity >= VERBOSE:
            err.print(("warning: " if level == "warning" else "") + text, highlight=False, markup=False, soft_wrap=True)


def _count(done: int, total: int | None) -> str:
    """How many there were, or how many of them were done where that is not all."""
    return "" if not total else f" ({total})" if done >= total else f" ({done} of {total})"


def _shown(fields: dict[str, Any]) -> str:
    return " ".join(f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in fields.items() if v is not None)
