"""``mergebench ls`` and ``show``: what the store holds."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cli.options import ConfigDir, Json, Overrides, compose_one

if TYPE_CHECKING:
    from pipelines.store import Entry

LS = """List what the store holds: bases, experts, results, merges, statistics.

[bold]Examples[/]

  mergebench ls

  mergebench ls store=/data/store --json
"""

SHOW = """Show one entry of the store, by the first digits of its key.

[bold]Examples[/]

  mergebench show 3f2a

  mergebench show experts:3f2a --json
"""

Key = Annotated[str, typer.Argument(metavar="KEY", help="Four or more first digits of a key, as `ls` prints them.")]


def register(app: typer.Typer) -> None:
    """Add the commands to the application."""
    panel = "Store"

    @app.command(name="ls", help=LS, rich_help_panel=panel)
    def list_entries(overrides: Overrides = None, json: Json = False, config_dir: ConfigDir = None) -> None:
        config, _ = compose_one(overrides, config_dir)
        from cli import console
        from pipelines.store import KINDS, Store

        store = Store(config.store)
        entries = [entry for kind in KINDS for entry in store.entries(kind)]
        if json:
            console.print_json([{"folder": entry.folder, **entry.describe()} for entry in entries])
        else:
            console.out.print(_table(entries, str(store.root)))

    @app.command(help=SHOW, rich_help_panel=panel)
    def show(key: Key, overrides: Overrides = None, json: Json = False, config_dir: ConfigDir = None) -> None:
        config, _ = compose_one(overrides, config_dir)
        from cli import console
        from pipelines.store import Store

        entry = Store(config.store).find(key)
        about = {"folder": str(entry.folder), **entry.describe()}
        if json:
            return console.print_json(about)
        from rich.pretty import Pretty

        console.out.print(Pretty(about, expand_all=False))


def _table(entries: list[Entry], root: str) -> Any:
    from rich.table import Table

    table = Table(title=f"{len(entries)} entries in {root}", title_justify="left")
    for column in ("kind", "key", "what", "mean", "made"):
        table.add_column(column, overflow="fold")
    for entry in entries:
        about = entry.describe()
        made = time.strftime("%Y-%m-%d %H:%M", time.localtime(about["made"]))
        table.add_row(entry.kind, entry.key[:10], _what(about), _mean(about), made)
    return table


def _what(about: dict[str, Any]) -> str:
    if "statistic" in about:
        return f"{about['statistic']} of {about['name']} on {about['task']}"
    if "trial" not in about:
        method = about.get("finetuning", {}).get("method", "")
        return " ".join(filter(None, [about.get("name", ""), method]))
    recipe = about["recipe"]
    return (
        f"{recipe['method']} of {', '.join(about['names'])}" if recipe else " ".join([about["trial"], *about["names"]])
    )


def _mean(about: dict[str, Any]) -> str:
    values = [task["value"] for task in about.get("tasks", {}).values() if not task["error"]]
    return f"{sum(values) / len(values):.4f}" if values else ""
