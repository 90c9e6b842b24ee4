"""``mergebench merge``: one merged checkpoint on disk."""

from __future__ import annotations

from typing import Annotated

import typer

from cli.options import Cfg, ConfigDir, Json, Overrides, compose_one, print_cfg

HELP = """Merge experts into an ordinary checkpoint folder.

[bold]Examples[/]

  mergebench merge base.path=org/base experts=[out/a,out/b] method=ties method.density=0.2 out=merged

  mergebench merge base.path=org/base experts=[org/one,org/two,org/three] method.weight=[0.5,0.3,0.2] out=merged

  mergebench merge --mergekit-config recipe.yaml out=merged
"""

MergekitConfig = Annotated[
    str | None,
    typer.Option(
        "--mergekit-config",
        metavar="FILE",
        help="Run a mergekit YAML, with our methods registered.",
        rich_help_panel="Configuration",
    ),
]


def register(app: typer.Typer) -> None:
    """Add the command to the application."""

    @app.command(help=HELP, rich_help_panel="One model")
    def merge(
        overrides: Overrides = None,
        cfg: Cfg = False,
        json: Json = False,
        config_dir: ConfigDir = None,
        mergekit_config: MergekitConfig = None,
    ) -> None:
        config, tree = compose_one("merge --mergekit-config" if mergekit_config else "merge", overrides, config_dir)
        if cfg:
            return print_cfg([(config, tree)])
        from cli import console
        from pipelines.study.single import merge_checkpoint, merge_mergekit_config

        with console.listening() as progress:
            made = (
                merge_mergekit_config(config, mergekit_config, progress)
                if mergekit_config
                else merge_checkpoint(config, progress)
            )
        if json:
            return console.print_json({"folder": made.folder, **made.entry})
        console.out.print(f"merged into [bold]{made.folder}[/]", highlight=False, soft_wrap=True)
