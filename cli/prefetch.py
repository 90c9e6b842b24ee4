"""``mergebench prefetch``: a local mirror of a suite's data sets."""

from __future__ import annotations

import typer

from cli.options import ConfigDir, Json, Overrides, compose_one

HELP = """Copy a suite's data sets from the hub into a local mirror, for machines without a network.

The other commands read the mirror with datasets=DIR and then fetch nothing. What is there already is not fetched again.

[bold]Examples[/]

  mergebench prefetch suite=real_mini out=mirror

  mergebench prefetch suite=in_the_wild out=/data/mirror --json
"""


def register(app: typer.Typer) -> None:
    """Add the command to the application."""

    @app.command(help=HELP, rich_help_panel="Store")
    def prefetch(overrides: Overrides = None, json: Json = False, config_dir: ConfigDir = None) -> None:
        config, _ = compose_one("prefetch", overrides, config_dir)
        from pathlib import Path

        from cli import console
        from conf.errors import UserError

        if not config.out:
            raise UserError("there is no folder to put the mirror into", where="out", do="name one with out=DIR")
        if not config.online:
            raise UserError("the hub may not be asked", where="online", do="set online=true, or copy a mirror")
        from pipelines.evaluate.prefetch import prefetch as fill

        with console.listening() as progress:
            fetched = fill(config.suite, Path(config.out), progress=progress)
        if json:
            return console.print_json(vars(fetched))
        names = ", ".join(fetched.datasets) or "none: this suite needs no hub data set"
        console.out.print(f"data sets in [bold]{fetched.folder}[/]: {names}", highlight=False, soft_wrap=True)
        for folder in fetched.by_hand:
            where = fetched.folder / folder
            console.out.print(f"[yellow]put by hand into {where}: its data are on no hub[/]", soft_wrap=True)
        console.out.print(f"[dim]use it with datasets={fetched.folder}[/]", highlight=False, soft_wrap=True)
