"""``mergebench statistics``: what Fisher merging and RegMean need of each expert's data."""

from __future__ import annotations

from typing import Any

import typer

from cli.options import Cfg, ConfigDir, Json, Overrides, compose_all, print_cfg

HELP = """Collect what `fisher` and `regmean` need of each expert's data, and keep it in the store.

Merges and studies then find it by themselves; a study collects what its own experts lack. For every parameter the
diagonal of the Fisher information, for every linear layer the Gram matrix of its inputs.

[bold]Examples[/]

  mergebench statistics +pool@pools.tiny=tiny

  mergebench statistics experts=[out/a] task=skills/add collect.kinds=[gram]

  mergebench statistics experts=[org/one] task=file task.path=one.jsonl collect.examples=512
"""


def register(app: typer.Typer) -> None:
    """Add the command to the application."""

    @app.command(help=HELP, rich_help_panel="One model")
    def statistics(
        overrides: Overrides = None, cfg: Cfg = False, json: Json = False, config_dir: ConfigDir = None
    ) -> None:
        composed = compose_all("statistics", overrides, config_dir)
        if cfg:
            return print_cfg(composed)
        from cli import console
        from pipelines.study.collect import collect_statistics

        with console.listening() as progress:
            entries = [entry for config, _ in composed for entry in collect_statistics(config, progress)]
        told = [{"folder": str(entry.folder), **entry.describe()} for entry in entries]
        if json:
            return console.print_json(told)
        console.out.print(_table(told))


def _table(told: list[dict[str, Any]]) -> Any:
    from rich.table import Table

    table = Table(title=f"{len(told)} statistics in the store", title_justify="left")
    for column in ("key", "expert", "task", "statistic", "examples", "tokens"):
        table.add_column(column, overflow="fold")
    for about in told:
        numbers = (str(about["examples"]), str(about["tokens"]))
        table.add_row(about["key"][:10], about["name"], about["task"], about["statistic"], *numbers)
    return table
