"""The application with all of its commands; heavy packages are imported when a command runs, never before."""

from __future__ import annotations

import logging
import os
import signal
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version as version_of
from typing import Annotated, Any

import typer
from rich.markup import escape

from cli import terminal
from cli.completion import answer_bash
from cli.options import app
from conf.errors import UserError, disk_full, out_of_memory, redacted
from pipelines.ranks import rank, tells

from cli import models, studies, geometry, compare, help, store  # isort: skip  # noqa: F401  # the order of their commands in help

ANYWHERE = ("-v", "--verbose", "-q", "--quiet")
"""Options of the application that may also stand behind the command."""
UsageError: type[Exception] = typer.BadParameter.__bases__[0]
"""What the parser of options raises: click's class, or the copy of it in newer Typers."""


def _version(show: bool) -> None:
    if show:
        typer.echo(f"mergebench {version_of('mergebench')}")
        raise typer.Exit()


@app.callback()
def common(
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Say more.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Say only results and errors.")] = False,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """What holds for every command."""
    terminal.set_verbosity(terminal.VERBOSE if verbose else terminal.QUIET if quiet else terminal.NORMAL)


def _say(error: UserError) -> None:
    """What is wrong in one line, on standard output too where JSON is asked for."""
    if not tells():
        return
    if "--json" in sys.argv:
        terminal.print_json(error.to_dict())
    lines = [f"[bold red]error[/] {escape(terminal.one_line(str(error)))}"]
    if terminal.verbosity >= terminal.VERBOSE:
        lines += [f"  also {escape(terminal.one_line(str(other)))}" for other in error.others]
    for line in lines:
        terminal.err.print(line, highlight=False, soft_wrap=True)


WARNINGS = terminal.Warnings()
STOPPED: list[int] = []
"""Signals that asked this process to stop."""


def _stop(number: int, frame: object) -> None:
    """Note the signal and interrupt what runs; a child process that has inherited this goes as it would without."""
    if os.getpid() != _PROCESS:
        signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)
    STOPPED.append(number)
    raise KeyboardInterrupt


@contextmanager
def _catching_stops() -> Iterator[None]:
    """Handle SIGINT and SIGTERM, even where a shell without job control has a background job ignore SIGINT."""
    global _PROCESS
    _PROCESS = os.getpid()
    STOPPED.clear()
    before = {number: signal.signal(number, _stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


_PROCESS = 0


def main() -> None:
    """Run the command line; bad input is one line on standard error and exit code 2, a stop is 130 or 143."""
    logging.getLogger("mergebench.store").addHandler(WARNINGS)
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    if os.environ.get("_MERGEBENCH_COMPLETE") == "complete_bash":
        return answer_bash(app)
    code: Any = 0
    try:
        with _catching_stops():
            code = _run()
    except SystemExit as ended:
        code = ended.code
    except KeyboardInterrupt:
        code = 130
    if STOPPED:  # whatever became of the interrupt on its way here
        code = 128 + STOPPED[0]
    if (STOPPED or code == 130) and tells():
        sys.stderr.write("interrupted: what was finished is kept; the same command goes on\n")
    sys.exit(code)


def _run() -> int:
    """Run the command of this process's arguments; returns its exit code, unless it exits by itself."""
    try:
        arguments = sys.argv[1:]
        anywhere = [text for text in arguments if text in ANYWHERE]
        if rank() > 0:  # the first one tells for all
            anywhere, sys.stdout = ["--quiet"], open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115
        arguments = [*anywhere, *(text for text in arguments if text not in ANYWHERE)]
        return app(arguments, prog_name="mergebench", standalone_mode=False) or 0
    except UserError as error:
        _say(error)
        return 2
    except BrokenPipeError:
        return 1
    except UsageError as error:
        return _misuse(error)
    except Exception as error:
        told = _cause(error)
        if told is None:
            sys.stderr.write(redacted(traceback.format_exc()) if tells() else "")
            return 1
        _say(told[0])
        return told[1]


def _misuse(error: Any) -> int:
    """Tell in one line what the options' parser does not take; returns the exit code. (Help has no message.)"""
    if said := error.format_message().rstrip("."):
        command = error.ctx.command_path if error.ctx else "mergebench"
        _say(UserError(said, do=f"see `{command} --help`"))
    return 2


def _cause(error: Exception) -> tuple[UserError, int] | None:
    """Line and exit code for a full disk, too little memory and a place that cannot be used; None for another error."""
    where, kept = str(getattr(error, "filename", None) or "")[:300], "what was finished is kept"
    if disk_full(error):
        return UserError("the disk is full", where=where, do=f"free some space; {kept}"), 1
    if out_of_memory(error):
        reason = str(error).partition("\n")[0][:300]
        do = "choose a smaller model or batch, bfloat16, or another device"
        return UserError("out of memory", where=reason, do=f"{do}; {kept}"), 1
    if isinstance(error, OSError) and error.filename is not None:
        return UserError(f"cannot read or write: {error.strerror}", where=where, do=f"name another place; {kept}"), 2
    return None
