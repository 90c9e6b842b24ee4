"""The Typer application: one command a file; heavy packages are imported when a command runs, never before."""

from __future__ import annotations

import errno
import os
import sys
from typing import Annotated

import typer

from cli import catalog, doctor, evaluate, finetune, merge, prefetch, search, shelf, statistics, study, upkeep

ANYWHERE = ("-v", "--verbose", "-q", "--quiet")
"""Options of the application that may also stand behind the command."""

app = typer.Typer(
    name="mergebench",
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help=(
        "Fine-tune experts, merge them, evaluate every merge, and say with statistics what merging was worth.\n\n"
        "Arguments are Hydra overrides, such as [cyan]method=ties method.density=0.2[/]. "
        "[dim]Repeating a command resumes it.[/]"
    ),
)

finetune.register(app)
merge.register(app)
evaluate.register(app)
statistics.register(app)
study.register(app)
search.register(app)
catalog.register(app)
shelf.register(app)
upkeep.register(app)
prefetch.register(app)
doctor.register(app)


def _version(show: bool) -> None:
    if show:
        from importlib.metadata import version

        typer.echo(f"mergebench {version('mergebench')}")
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
    from cli import console

    console.set_verbosity(console.VERBOSE if verbose else console.QUIET if quiet else console.NORMAL)


def main() -> None:
    """Run the command line; bad input is one line on standard error and exit code 2."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    from conf.errors import UserError

    try:
        arguments = sys.argv[1:]
        anywhere = [text for text in arguments if text in ANYWHERE]
        app([*anywhere, *(text for text in arguments if text not in ANYWHERE)])
    except UserError as error:
        from cli import console

        if "--json" in sys.argv:
            console.print_json(error.to_dict())
        console.err.print(f"[bold red]error[/] {_plain(str(error))}", highlight=False, soft_wrap=True)
        for other in error.others if console.verbosity >= console.VERBOSE else ():
            console.err.print(f"  also {_plain(str(other))}", highlight=False, soft_wrap=True)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.stderr.write("interrupted: what was finished is kept; the same command goes on\n")
        sys.exit(130)
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


def _plain(text: str) -> str:
    from rich.markup import escape

    return escape(" ".join(text.split()))
