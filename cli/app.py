"""The application with all of its commands; heavy packages are imported when a command runs, never before."""

from __future__ import annotations

import errno
import os
import sys
from importlib.metadata import version as version_of
from typing import Annotated

import typer
from rich.markup import escape

from cli import terminal
from cli.completion import answer_bash
from cli.options import app
from conf.errors import UserError

from cli import models, studies, geometry, compare, help, store  # isort: skip  # noqa: F401  # the order of their commands in help

ANYWHERE = ("-v", "--verbose", "-q", "--quiet")
"""Options of the application that may also stand behind the command."""


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


def main() -> None:
    """Run the command line; bad input is one line on standard error and exit code 2."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    if os.environ.get("_MERGEBENCH_COMPLETE") == "complete_bash":
        return answer_bash(app)
    try:
        arguments = sys.argv[1:]
        anywhere = [text for text in arguments if text in ANYWHERE]
        app([*anywhere, *(text for text in arguments if text not in ANYWHERE)])
    except UserError as error:
        if "--json" in sys.argv:
            terminal.print_json(error.to_dict())
        lines = [f"[bold red]error[/] {escape(' '.join(str(error).split()))}"]
        if terminal.verbosity >= terminal.VERBOSE:
            lines += [f"  also {escape(' '.join(str(other).split()))}" for other in error.others]
        for line in lines:
            terminal.err.print(line, highlight=False, soft_wrap=True)
        sys.exit(2)
    except SystemExit as end:
        if isinstance(getattr(end.__context__, "__cause__", None), KeyboardInterrupt):  # typer makes it an exit
            sys.stderr.write("interrupted: what was finished is kept; the same command goes on\n")
        raise
    except BrokenPipeError:
        sys.exit(1)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        where = f" ({error.filename})" if error.filename else ""
        sys.stderr.write(
            f"error the disk is full{where}: what was finished is kept; free some space and repeat the command\n"
        )
        sys.exit(1)
