"""The terminal: tables and JSON; bars where there is a terminal, plain lines where there is none, and a log always."""

from __future__ import annotations

import json
import logging
import re
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.errors import MarkupError
from rich.table import Table
from rich.text import Text

from conf.errors import printable, redacted

if TYPE_CHECKING:
    from rich.progress import Progress

WIDE = 100_000
"""Cells a line that is no terminal's: nothing is wrapped in it."""
OURS = re.compile(r"(?<!\\)\[(?=[a-z#/@])(?!(?:/|bold|dim|italic|red|green|yellow|cyan|bold red)\])")
"""Where a bracket opens what would be markup, and is none of ours."""


class Screen(Console):
    """A console on which texts from outside do nothing: tags but our own are text, control characters are spelt out."""

    def render_str(self, text: str, **options: Any) -> Text:
        """Text with our own markup; plain where that does not hold together."""
        shown = printable(text)
        if options.get("markup") is False:
            return super().render_str(shown, **options)
        try:
            return super().render_str(OURS.sub(r"\\[", shown), **options)
        except MarkupError:
            return super().render_str(shown, **{**options, "markup": False})


out = Screen()
if not out.is_terminal:
    out = Screen(width=WIDE)
err = Screen(stderr=True)
log = logging.getLogger("mergebench")
log.addHandler(logging.NullHandler())  # without a log file a warning would be printed once more

LONGEST = 4000
"""Characters of one line at most."""
QUIET, NORMAL, VERBOSE = -1, 0, 1
verbosity = NORMAL


def set_verbosity(level: int) -> None:
    """Remember how much the user wants to see: QUIET, NORMAL or VERBOSE."""
    global verbosity
    verbosity = level


def print_json(payload: Any) -> None:
    """One JSON document on standard output; a list has a line for each of its parts, which are written one by one."""
    if not isinstance(payload, list):
        sys.stdout.write(redacted(json.dumps(payload, indent=2, default=str)) + "\n")
        return
    sys.stdout.write("[")
    for i, part in enumerate(payload):
        sys.stdout.write(("," if i else "") + "\n" + redacted(json.dumps(part, default=str)))
    sys.stdout.write("\n]\n")


def show(*parts: Any, **style: Any) -> None:
    """Lines (with markup) and tables on standard output; in a pipe neither wrapped nor padded."""
    with out.capture() as held:
        for part in parts:
            out.print(part, highlight=False, **style)
    text = held.get()
    bare = text if out.is_terminal else "\n".join(line.rstrip(" \t") for line in text.split("\n"))
    sys.stdout.write(bare)


def answer(as_json: bool, payload: Any, *parts: Any, **style: Any) -> None:
    """What a command found: as JSON, or as lines and tables."""
    print_json(payload) if as_json else show(*parts, **style)


def print_plain(text: str) -> None:
    """One plain line on standard error."""
    err.print(text, highlight=False, markup=False, soft_wrap=True)


def table(title: str, columns: Iterable[str], rows: Iterable[Sequence[Any]] = (), **style: Any) -> Table:
    """A table under its title, long cells folded."""
    made = Table(title=title, title_justify="left", **style)
    for column in columns:
        made.add_column(column, overflow="fold")
    for row in rows:
        made.add_row(*row)
    return made


def one_line(text: str) -> str:
    """A message without its line breaks, and cut where some name in it has no end."""
    joined = " ".join(text.split())
    return joined if len(joined) <= LONGEST else f"{joined[: LONGEST // 2]} … {joined[-LONGEST // 2 :]}"


def fields_line(fields: dict[str, Any]) -> str:
    """``loss 0.1234 step 5`` of a mapping, without what is None."""
    return " ".join(f"{name} {_said(name, value)}" for name, value in fields.items() if value is not None)


def _said(name: str, value: Any) -> str:
    """A value in the unit that its name says: bytes of memory, seconds to go."""
    if name == "memory":
        return gigabytes(value)
    if name == "eta":
        return clock(value)
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def gigabytes(count: float) -> str:
    """A number of bytes in the unit that suits it."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} TB"


def clock(seconds: float) -> str:
    """A duration as people say it."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.1f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


class Warnings(logging.Handler):
    """What the store has to say while it is read, as plain lines on standard error."""

    def emit(self, record: logging.LogRecord) -> None:
        """One line."""
        print_plain(f"warning: {one_line(record.getMessage())}")


class _OneLine(logging.Formatter):
    """A line of the log, whatever is in the names that it tells of."""

    def format(self, record: logging.LogRecord) -> str:
        return printable(super().format(record)).replace("\n", "\\n")


@contextmanager
def log_file(path: Path) -> Iterator[None]:
    """Append what happens to a log file, with times."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handler = logging.FileHandler(path)
    handler.setFormatter(_OneLine("%(asctime)s %(levelname)s %(message)s"))
    log.setLevel(logging.DEBUG)
    log.propagate = False
    log.addHandler(handler)
    try:
        yield
    finally:
        log.removeHandler(handler)
        handler.close()


@contextmanager
def listening() -> Iterator[Listener]:
    """The listener that stages report to: bars on a terminal, plain lines otherwise, the log alone when quiet."""
    if verbosity == QUIET or not err.is_terminal:
        yield Listener(lines=verbosity != QUIET)
        return
    from rich import progress

    columns = (
        progress.SpinnerColumn(), progress.TextColumn("{task.description}"), progress.BarColumn(),
        progress.MofNCompleteColumn(), progress.TimeRemainingColumn(), progress.TextColumn("[dim]{task.fields[seen]}"),
    )  # fmt: skip
    with progress.Progress(*columns, console=err, transient=True) as bars:
        yield Listener(bars)


class Listener:
    """What stages report to: writes the log, and shows bars or plain lines."""

    def __init__(self, bars: Progress | None = None, lines: bool = False):
        self.bars, self.lines, self.depth = bars, lines, 0

    @contextmanager
    def step(self, label: str, total: int | None = None) -> Iterator[Step]:
        """A bar that goes when its work is done, or lines now and then; one line of what it took stays."""
        step = Step(self, label, total)
        self.depth += 1
        try:
            yield step
        finally:
            self.depth -= 1
            if self.bars and step.bar is not None:
                self.bars.remove_task(step.bar)
        good, seconds = step.done - step.failed, f"{time.perf_counter() - step.start:.1f} s"
        line = label + ("" if not total else f" ({total})" if good >= total else f" ({good} of {total})")
        log.info("%s: %s", line, seconds)
        if self.bars:
            mark = "[yellow]![/]" if good < (total or 0) else "[green]✓[/]"
            self.bars.console.print(f"{mark} {line} {seconds}", highlight=False)
        elif self.lines and (self.depth == 0 or verbosity >= VERBOSE):
            print_plain(f"{line}: {seconds}")

    def note(self, text: str, level: str = "info") -> None:
        """One line: debug, info or warning."""
        log.log(getattr(logging, level.upper()), text)
        warns = level == "warning"
        if level == "debug" and verbosity < VERBOSE:
            return
        if self.bars:
            self.bars.console.print(Text(printable(f"! {text}" if warns else text), style="yellow" if warns else ""))
        elif self.lines:
            print_plain(("warning: " if warns else "") + text)


class Step:
    """One running piece of work; plain lines are at least ``EVERY`` seconds apart."""

    EVERY = 5.0

    def __init__(self, listener: Listener, label: str, total: int | None):
        self.listener, self.label, self.total = listener, label, total
        self.bar = listener.bars.add_task(label, total=total, seen="") if listener.bars else None
        self.done = self.failed = 0
        self.start = self.last_line = time.perf_counter()

    def advance(self, n: int = 1, **fields: Any) -> None:
        """Count n units, of which ``became="failed"`` says that they failed, and show the fields."""
        failed, text, now = fields.get("became") == "failed", fields_line(fields), time.perf_counter()
        self.done += n
        self.failed += n * failed
        log.log(logging.WARNING if failed else logging.DEBUG, "%s %s: %s", self.label, self.done, text)
        if self.listener.bars and self.bar is not None:
            self.listener.bars.update(self.bar, advance=n, seen=text)
        elif self.listener.lines and (failed or now - self.last_line >= self.EVERY or verbosity >= VERBOSE):
            self.last_line = now
            rest = (self.total or 0) - self.done
            left = f", {(now - self.start) / self.done * rest:.0f} s left" if self.total and self.done else ""
            print_plain(f"{self.label}: {self.done}/{self.total or '?'}{left} {text}")
