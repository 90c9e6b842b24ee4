"""``mergebench search``: a merge method's parameters, tuned on one split and scored once on another."""

from __future__ import annotations

from pathlib import Path

import typer

from cli.options import Cfg, ConfigDir, Json, Overrides, compose_all, print_cfg

HELP = """Search a merge method's parameters on a validation split, and score the best once on the test split.

Random draws, a grid, TPE or CMA-ES (search=random, grid, tpe, cmaes) over search.space; where no space is named, over
the usual ranges of the method's main parameters. What was scored is kept: repeating the command resumes it, and more
search.trials extend it. Tuning on the split that is reported is refused unless search.force=true.

[bold]Examples[/]

  mergebench search +pool@pools.tiny=tiny method=ties search.trials=20

  mergebench search base.path=org/base experts=[a,b] search=cmaes '+search.space.weight={per_expert:true,low:0,high:1}'

  mergebench search +pool@pools.tiny=tiny method=della search=random '+search.space.lambda={beta:[2,2]}' --json
"""


def register(app: typer.Typer) -> None:
    """Add the command to the application."""

    @app.command(help=HELP, rich_help_panel="Studies")
    def search(overrides: Overrides = None, cfg: Cfg = False, json: Json = False, config_dir: ConfigDir = None) -> None:
        composed = compose_all("search", overrides, config_dir)
        if cfg:
            return print_cfg(composed)
        from cli import console
        from cli.search_view import search_lines
        from pipelines.search.run import run_search

        found = []
        for config, _ in composed:
            log = Path(config.runs) / (config.name or "search") / "log.txt"
            with console.log_file(log), console.listening() as progress:
                found.append(run_search(config, progress))
        if json:
            console.print_json([f.to_dict() for f in found])
        else:
            for (config, _), f in zip(composed, found):
                for line in search_lines(f, config.search.top):
                    console.out.print(line, highlight=False)
        if any(f.interrupted for f in found):
            raise typer.Exit(130)
        if any(f.failed for f in found):
            raise typer.Exit(1)
