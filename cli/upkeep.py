"""``mergebench verify``, ``gc``, ``export`` and ``results``: the store looked after and read out."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from cli.options import ConfigDir, Json, Overrides, compose_one

VERIFY = """Check that the store still holds what it says.

Merges are made again from their recipes and their weights compared by hash with those that were scored; files of bases,
experts, kept merges and statistics are hashed again. Exit code 1 where something differs or is missing.

[bold]Examples[/]

  mergebench verify 3f2a

  mergebench verify results:3f2a experts:77c0 store=/data/store

  mergebench verify --all --json
"""

GC = """Show what no study refers to; with --delete, remove it.

A study is what `sweep` or `search` ran: it holds on to its results and to the bases, experts, statistics and kept
merges that these need. Results of `evaluate` and experts of `finetune` belong to no study until one uses them.

[bold]Examples[/]

  mergebench gc

  mergebench gc --kind results --older-than 30 --delete

  mergebench gc --forget quickstart --delete
"""

EXPORT = """Write an entry of the store as an ordinary checkpoint folder, with its model card.

Of a merge's result the merge is made again from its recipe, and has to have the weights that were scored.

[bold]Examples[/]

  mergebench export 3f2a out=best-merge

  mergebench export experts:77c0 out=my-expert
"""

RESULTS = """Write every result of the store as a table: one row a trial and task.

On a terminal: mean scores by all in which results differ (base, pool, training, seed, suite, few-shots, sample,
dtype, device, batch size, engine, …), and what they share below.

[bold]Examples[/]

  mergebench results --format csv

  mergebench results name=quickstart out=results.parquet

  mergebench results --json store=/data/store
"""

Arguments = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[KEY]... [OVERRIDES]...",
        help="First digits of keys, as `ls` prints them, and Hydra overrides.",
        show_default=False,
    ),
]
Key = Annotated[str, typer.Argument(metavar="KEY", help="Four or more first digits of a key, as `ls` prints them.")]
All = Annotated[bool, typer.Option("--all", help="Check every entry.")]
Delete = Annotated[bool, typer.Option("--delete", help="Remove what is shown.")]
Forget = Annotated[
    list[str] | None, typer.Option("--forget", metavar="STUDY", help="A study that counts no longer (repeatable).")
]
Kind = Annotated[
    list[str] | None,
    typer.Option(
        "--kind", metavar="KIND", help="Only this kind: bases, experts, results, merges, statistics (repeatable)."
    ),
]
Older = Annotated[float, typer.Option("--older-than", metavar="DAYS", help="Leave what is younger.")]
Format = Annotated[
    str | None,
    typer.Option(
        "--format",
        metavar="FORMAT",
        help="csv, parquet, json or table; default: by out's ending, else a table on a terminal, else csv.",
    ),
]


def register(app: typer.Typer) -> None:
    """Add the commands to the application."""
    panel = "Store"

    @app.command(help=VERIFY, rich_help_panel=panel)
    def verify(
        arguments: Arguments = None, everything: All = False, json: Json = False, config_dir: ConfigDir = None
    ) -> None:
        _verify(arguments or [], everything, json, config_dir)

    @app.command(help=GC, rich_help_panel=panel)
    def gc(
        overrides: Overrides = None,
        delete: Delete = False,
        forget: Forget = None,
        kind: Kind = None,
        older: Older = 0.0,
        json: Json = False,
        config_dir: ConfigDir = None,
    ) -> None:
        config, _ = compose_one("gc", overrides, config_dir)
        from cli import console
        from cli.upkeep_view import gc_dict, gc_lines
        from pipelines.store.gc import collect_garbage
        from pipelines.store.store import Store

        store = Store(config.store)
        found = collect_garbage(store, delete=delete, forget=forget or (), kinds=kind or (), days=older)
        if json:
            return console.print_json(gc_dict(found))
        for line in gc_lines(found):
            console.out.print(line, highlight=False)

    @app.command(help=EXPORT, rich_help_panel=panel)
    def export(key: Key, overrides: Overrides = None, json: Json = False, config_dir: ConfigDir = None) -> None:
        config, _ = compose_one("export", overrides, config_dir)
        from cli import console
        from pipelines.study.sources import access_of
        from pipelines.upkeep.export import export as write

        with console.listening() as progress:
            entry = write(key, config, access_of(config), progress)
        if json:
            return console.print_json({"folder": config.out, "kind": entry.kind, "key": entry.key})
        said = f"{entry.kind}:{entry.key[:10]} exported to [bold]{config.out}[/]"
        console.out.print(said, highlight=False, soft_wrap=True)

    @app.command(help=RESULTS, rich_help_panel=panel)
    def results(
        overrides: Overrides = None, form: Format = None, json: Json = False, config_dir: ConfigDir = None
    ) -> None:
        config, _ = compose_one("results", overrides, config_dir)
        import sys
        from pathlib import Path

        from cli import console
        from cli.upkeep_view import results_table
        from pipelines.store.results import format_of, grouped, print_rows, result_rows, write_rows
        from pipelines.store.store import Store

        people = form is None and config.out is None and console.out.is_terminal
        named = "json" if json else format_of("table" if people else form, config.out)
        rows = result_rows(Store(config.store), config.name)
        if named == "table":
            return console.out.print(results_table(*grouped(rows)))
        if config.out is None:
            return print_rows(rows, named, sys.stdout)
        write_rows(rows, named, Path(config.out).expanduser())
        if not json:
            console.out.print(f"{len(rows)} rows in [bold]{config.out}[/]", highlight=False, soft_wrap=True)


def _verify(arguments: list[str], everything: bool, json: bool, config_dir: str | None) -> None:
    keys = [text for text in arguments if "=" not in text and not text.startswith("~")]
    config, _ = compose_one("verify", [text for text in arguments if text not in keys], config_dir)
    from cli import console
    from cli.upkeep_view import verify_table
    from conf.errors import UserError

    if bool(keys) == everything:
        raise UserError("nothing says what to check", where="verify", do="name keys, or check everything with --all")
    from pipelines.study.sources import access_of
    from pipelines.upkeep.verify import chosen_entries
    from pipelines.upkeep.verify import verify as check

    access = access_of(config)
    with console.listening() as progress:
        checks = check(chosen_entries(keys, access), access, config.executor, progress)
    if json:
        told: list[dict[str, Any]] = [{**vars(c), "bad": c.bad} for c in checks]
        console.print_json(told)
    else:
        for line in verify_table(checks, config.store):
            console.out.print(line, highlight=False)
    if any(c.bad for c in checks):
        raise typer.Exit(1)
