"""``mergebench ls`` and ``show``: what the store holds."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cli.options import ConfigDir, Json, Overrides, compose_one

if TYPE_CHECKING:
    from pipelines.store.records import Record
    from pipelines.store.store import Entry

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
        config, _ = compose_one("ls", overrides, config_dir)
        from cli import console
        from pipelines.store.records import studies
        from pipelines.store.store import KINDS, Store

        store = Store(config.store)
        entries = [entry for kind in KINDS for entry in store.entries(kind)]
        if json:
            console.print_json([{"folder": entry.folder, **_told(entry, studies(store))} for entry in entries])
        else:
            console.out.print(_table(entries, str(store.root), studies(store)))

    @app.command(help=SHOW, rich_help_panel=panel)
    def show(key: Key, overrides: Overrides = None, json: Json = False, config_dir: ConfigDir = None) -> None:
        config, _ = compose_one("show", overrides, config_dir)
        from cli import console
        from pipelines.store.store import Store

        entry = Store(config.store).find(key)
        about = {"folder": str(entry.folder), **entry.describe()}
        if json:
            return console.print_json(about)
        from rich.pretty import Pretty

        console.out.print(Pretty(about, expand_all=False))


def _told(entry: Entry, records: list[Record]) -> dict[str, Any]:
    """What an entry says of itself; of a result also its pool and provenance as plain columns."""
    from pipelines.store.provenance import provenance
    from pipelines.store.results import pools_of

    about = entry.describe()
    if "trial" not in about:
        return about
    return {**about, "provenance": {"pool": pools_of(entry.key, records), **provenance(about)}}


def _table(entries: list[Entry], root: str, records: list[Record]) -> Any:
    from rich.markup import escape
    from rich.table import Table

    from pipelines.store.provenance import apart, provenance, said, training_of
    from pipelines.store.results import pools_of

    told = [(entry, entry.describe()) for entry in entries]
    table = Table(title=f"{len(entries)} entries in {escape(root)}", title_justify="left", box=None, pad_edge=False)
    for column in ("kind", "key", "what", "how", "mean", "made"):
        table.add_column(column, overflow="fold")
    shared = []
    for kind in dict.fromkeys(entry.kind for entry in entries):
        own, rows = [(entry, about) for entry, about in told if entry.kind == kind], []
        for entry, about in own:
            how: dict[str, Any] = {"what": _what(about), "pool": None, "training": None}
            if kind == "results":
                how |= {"pool": pools_of(entry.key, records), **provenance(about)}
            elif trained := training_of(str(entry.folder)):
                how |= {"training": trained["how"], "training_seed": trained["seed"]}
            rows.append(how)
        lines, same = apart(rows, ["what", "pool", "training"])
        shared += [f"all {kind}: {text}"] if (text := said(same)) else []
        for (entry, about), line in zip(own, lines):
            made = time.strftime("%Y-%m-%d %H:%M", time.localtime(about["made"]))
            how = {name: value for name, value in line.items() if name != "what"}
            table.add_row(kind, entry.key[:10], escape(_what(about)), escape(said(how)), _mean(about), made)
    table.caption, table.caption_justify = escape("\n".join(shared)), "left"
    return table


def _what(about: dict[str, Any]) -> str:
    if "statistic" in about:
        return f"{about['statistic']} of {about['name']} on {about['task']}"
    if "trial" not in about:
        return str(about.get("name", ""))
    recipe = about["recipe"]
    return (
        f"{recipe['method']} of {', '.join(about['names'])}" if recipe else " ".join([about["trial"], *about["names"]])
    )


def _mean(about: dict[str, Any]) -> str:
    values = [task["value"] for task in about.get("tasks", {}).values() if not task["error"]]
    return f"{sum(values) / len(values):.4f}" if values else ""
