"""``mergebench ls``, ``show``, ``verify``, ``gc``, ``export``, ``push``, ``results``, ``prefetch``: the store."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape

from cli import terminal
from cli.entries import PLAIN, entries_table, entry_card, listed
from cli.options import ConfigDir, Json, Overrides, command, compose_one, split_words
from conf.errors import UserError, nearest
from pipelines.store.gc import Collection, collect_garbage
from pipelines.store.store import KINDS, Store

if TYPE_CHECKING:
    from pipelines.upkeep.verify import Check

PANEL = "Store"
STATES = {"ok": "green", "differs": "red", "missing": "red", "unknown": "yellow"}
SHOWN = 40
"""Lines of a table on the terminal; --json has all of them."""
Key = Annotated[str, typer.Argument(metavar="KEY", help="Four or more first digits of a key, as `ls` prints them.")]
Arguments = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[KEY]... [OVERRIDES]...",
        help="First digits of keys, as `ls` prints them, and Hydra overrides.",
        show_default=False,
    ),
]
Words = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[TEXT]... [OVERRIDES]...", help="What to look for, and Hydra overrides.", show_default=False
    ),
]
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
Repo = Annotated[str, typer.Argument(metavar="OWNER/NAME", help="Repository on the hub.", show_default=False)]
Yes = Annotated[bool, typer.Option("--yes", help="Upload; otherwise nothing leaves this machine.")]
Private = Annotated[bool, typer.Option("--private", help="Make a new repository private.")]
Licence = Annotated[
    str | None, typer.Option("--license", metavar="NAME", help="Licence of the model; default: that of the base.")
]
Older = Annotated[float, typer.Option("--older-than", metavar="DAYS", help="Leave what is younger.")]
Samples = Annotated[
    str | None,
    typer.Option("--samples", metavar="DIR", help="Write kept prompts and answers as lm_eval --log_samples does."),
]
Format = Annotated[
    str | None,
    typer.Option(
        "--format",
        metavar="FORMAT",
        help="csv, parquet, json or table; default: by out's ending, else a table on a terminal, else csv.",
    ),
]


@command(PANEL, "", "mergopt --kind experts", "store=/data/store --json", name="ls")
def list_entries(arguments: Words = None, kind: Kind = None, json: Json = False, config_dir: ConfigDir = None) -> None:
    """List what the store holds, the newest last: bases, experts, results, merges, statistics.

    Words without an equals sign are looked for in names, methods and training: every one has to be there. kind=results
    is the same as --kind results.
    """
    kinds = [*(kind or ()), *(text[5:] for text in arguments or () if text.startswith("kind="))]
    texts, overrides = split_words([text for text in arguments or () if not text.startswith("kind=")])
    config = compose_one("ls", overrides, config_dir)
    for name in kinds:
        if name not in KINDS:
            raise UserError(f"the store has no kind {name!r}", where="--kind", do=nearest(name, KINDS))
    store = Store(config.store)
    entries = listed(store, kinds or KINDS, texts)
    if json:
        return terminal.print_json([{"folder": entry.folder, **about} for entry, about in entries])
    terminal.show(entries_table(entries, str(store.root)))


@command(PANEL, "3f2a", "experts:3f2a --json")
def show(key: Key, overrides: Overrides = None, json: Json = False, config_dir: ConfigDir = None) -> None:
    """Show one entry of the store, by the first digits of its key; --json has all that it records."""
    config = compose_one("show", overrides, config_dir)
    entry = Store(config.store).find(key)
    about = {"folder": str(entry.folder), **entry.describe()}
    terminal.answer(json, about, *(() if json else entry_card(entry, about)), soft_wrap=True)


@command(PANEL, "3f2a", "results:3f2a experts:77c0 store=/data/store", "--all --json")
def verify(
    arguments: Arguments = None, everything: All = False, json: Json = False, config_dir: ConfigDir = None
) -> None:
    """Check that the store still holds what it says.

    Merges are made again from their recipes and their weights compared by hash with those that were scored; files of
    bases, experts, kept merges and statistics are hashed again. Exit code 1 where something differs or is missing.
    """
    keys, overrides = split_words(arguments)
    config = compose_one("verify", overrides, config_dir)
    if bool(keys) == everything:
        raise UserError("nothing says what to check", where="verify", do="name keys, or check everything with --all")
    from pipelines.study.sources import access_of
    from pipelines.upkeep.verify import chosen_entries
    from pipelines.upkeep.verify import verify as check

    access = access_of(config)
    with terminal.listening() as progress:
        checks = check(chosen_entries(keys, access), access, config.executor, progress)
    terminal.answer(json, [{**vars(c), "bad": c.bad} for c in checks], *_checks(checks, config.store))
    if any(c.bad for c in checks):
        raise typer.Exit(1)


@command(PANEL, "", "--kind results --older-than 30 --delete", "--forget quickstart --delete")
def gc(
    overrides: Overrides = None,
    delete: Delete = False,
    forget: Forget = None,
    kind: Kind = None,
    older: Older = 0.0,
    json: Json = False,
    config_dir: ConfigDir = None,
) -> None:
    """Show what no study refers to; with --delete, remove it.

    A study is what `sweep` or `search` ran: it holds on to its results and to the bases, experts, statistics and kept
    merges that these need. Results of `evaluate` and experts of `finetune` belong to no study until one uses them.
    """
    config = compose_one("gc", overrides, config_dir)

    found = collect_garbage(Store(config.store), delete=delete, forget=forget or (), kinds=kind or (), days=older)
    busy, forgotten = [waste.key for waste in found.busy], [record.name for record in found.forgotten]
    waste = [vars(waste) for waste in found.waste]
    payload = {**vars(found), "size": found.size, "waste": waste, "busy": busy, "forgotten": forgotten}
    terminal.answer(json, payload, *_garbage(found))


@command(PANEL, "3f2a out=best-merge", "experts:77c0 out=my-expert")
def export(key: Key, overrides: Overrides = None, json: Json = False, config_dir: ConfigDir = None) -> None:
    """Write an entry of the store as an ordinary checkpoint folder, with its model card.

    Of a merge's result the merge is made again from its recipe, and has to have the weights that were scored.
    """
    config = compose_one("export", overrides, config_dir)
    from pipelines.study.sources import access_of
    from pipelines.upkeep.export import export as write

    with terminal.listening() as progress:
        entry = write(key, config, access_of(config), progress)
    line = f"{entry.kind}:{entry.key[:10]} exported to [bold]{config.out}[/]"
    terminal.answer(json, {"folder": config.out, "kind": entry.kind, "key": entry.key}, line, soft_wrap=True)


@command(PANEL, "3f2a me/my-merge out=ready", "3f2a me/my-merge --license apache-2.0 --yes")
def push(
    key: Key,
    repo: Repo,
    overrides: Overrides = None,
    yes: Yes = False,
    private: Private = False,
    licence: Licence = None,
    json: Json = False,
    config_dir: ConfigDir = None,
) -> None:
    """Show an expert or a merge as it would go to the hub, with its card; with --yes, upload it.

    The card has base_model, the merged experts, licence and scores in the hub's form; the recipe lies beside it as a
    mergekit file, and nothing names a path of this machine. out=DIR keeps the folder that is, or would be, uploaded.
    """
    config = compose_one("push", overrides, config_dir)
    from pipelines.study.sources import access_of
    from pipelines.upkeep.push import push as put

    with terminal.listening() as progress:
        pushed = put(
            key, repo, config, access_of(config), upload=yes, private=private, licence=licence, progress=progress
        )
    files = ", ".join(f"{name} ({terminal.gigabytes(size)})" for name, size in pushed.files.items())
    last = f"uploaded to [bold]{pushed.url}[/]" if yes else "[dim]nothing was uploaded; --yes uploads it[/]"
    lines = [
        "" if json else escape(pushed.card),
        escape(f"files: {files}"),
        *(f"[yellow]{escape(n)}[/]" for n in pushed.notes),
    ]
    terminal.answer(json, vars(pushed), *lines, last, soft_wrap=True)


@command(PANEL, "--format csv", "name=quickstart out=results.parquet", "--samples answers", "--json store=/data/store")
def results(
    overrides: Overrides = None,
    form: Format = None,
    samples: Samples = None,
    json: Json = False,
    config_dir: ConfigDir = None,
) -> None:
    """Write every result of the store as a table: one row a trial and task.

    On a terminal: mean scores by all in which results differ (base, pool, training, seed, suite, few-shots, sample,
    dtype, device, batch size, engine, …), and what they share below. With --samples: prompts and answers instead.
    """
    config = compose_one("results", overrides, config_dir)
    if samples is not None:
        from pipelines.store.samples import write_samples

        count, lines = write_samples(Store(config.store), Path(samples).expanduser(), config.name)
        said = f"{lines} samples of {count} results in [bold]{escape(samples)}[/]"
        return terminal.answer(json, {"folder": samples, "results": count, "samples": lines}, said, soft_wrap=True)
    from pipelines.store.results import format_of, grouped, print_rows, result_rows, write_rows

    on_screen = form is None and config.out is None and terminal.out.is_terminal
    named = "json" if json else format_of("table" if on_screen else form, config.out)
    rows = result_rows(Store(config.store), config.name)
    if named == "table":
        return terminal.show(results_table(*grouped(rows)))
    if config.out is None:
        return print_rows(rows, named, sys.stdout)
    write_rows(rows, named, Path(config.out).expanduser())
    if not json:
        terminal.show(f"{len(rows)} rows in [bold]{config.out}[/]", soft_wrap=True)


@command(PANEL, "suite=real_mini out=mirror", "suite=in_the_wild out=/data/mirror --json")
def prefetch(overrides: Overrides = None, json: Json = False, config_dir: ConfigDir = None) -> None:
    """Copy a suite's data sets from the hub into a local mirror, for machines without a network.

    The other commands read the mirror with datasets=DIR and then fetch nothing. What is there already is not fetched
    again.
    """
    config = compose_one("prefetch", overrides, config_dir)
    if not config.out:
        raise UserError("there is no folder to put the mirror into", where="out", do="name one with out=DIR")
    if not config.online:
        raise UserError("the hub may not be asked", where="online", do="set online=true, or copy a mirror")
    from pipelines.evaluate.prefetch import prefetch as fill

    with terminal.listening() as progress:
        fetched = fill(config.suite, Path(config.out), progress=progress)
    names = ", ".join(fetched.datasets) or "none: this suite needs no hub data set"
    lines = [f"data sets in [bold]{fetched.folder}[/]: {names}"]
    for folder in fetched.by_hand:
        lines.append(f"[yellow]put by hand into {fetched.folder / folder}: its data are on no hub[/]")
    lines.append(f"[dim]use it with datasets={fetched.folder}[/]")
    terminal.answer(json, vars(fetched), *lines, soft_wrap=True)


def results_table(lines: Sequence[dict[str, Any]], same: dict[str, Any]) -> Any:
    """Mean scores; columns in which the results differ, and below them what they have in common."""
    from pipelines.store.provenance import UNKNOWN, said

    table = terminal.table(f"{sum(line['models'] for line in lines)} models", (), **PLAIN)
    for name in lines[0] if lines else ():
        table.add_column(name.replace("_", " "), overflow="fold", no_wrap=name in ("models", "mean"))
    for line in lines:
        cells = {name: UNKNOWN if value is None else escape(str(value)) for name, value in line.items()}
        cells["mean"] = "failed" if line["mean"] is None else f"{line['mean']:.4f}"
        table.add_row(*cells.values())
    table.caption, table.caption_justify = escape(said(same)), "left"
    return table


def _checks(checks: Sequence[Check], store: str) -> Iterator[Any]:
    """What is not as it should be, then the count of every state."""
    chosen = ([check for check in checks if check.state != "ok"] or checks)[:SHOWN]
    rows = [(c.kind, c.key[:10], escape(c.what), f"[{STATES[c.state]}]{c.state}[/]", escape(c.told)) for c in chosen]
    if rows:
        columns = ("kind", "key", "what", "state", "found")
        yield terminal.table(f"{len(checks)} entries of {store} checked", columns, rows)
    counts = Counter(check.state for check in checks)
    yield ", ".join(f"{counts[state]} {state}" for state in STATES if counts[state]) or "nothing to check"


def _garbage(found: Collection) -> Iterator[Any]:
    """What may go or went, by kind, and what to do next."""
    rows = [(w.kind, w.key[:10], escape(w.what), terminal.gigabytes(w.size)) for w in found.waste[:SHOWN]]
    if len(found.waste) > SHOWN:
        rows.append(("…", "", f"and {len(found.waste) - SHOWN} more", ""))
    if found.waste:
        title = "removed" if found.deleted else "what no study refers to"
        yield terminal.table(title, ("kind", "key", "what", "size"), rows)
    counts = Counter(waste.kind for waste in found.waste)
    what = ", ".join(f"{n} {kind}" for kind, n in counts.items()) or "nothing"
    done = " removed" if found.deleted else " may go"
    yield f"{what} ({terminal.gigabytes(found.size)}){done}; {found.kept} entries stay"
    for record in found.forgotten:
        yield f"study {record.name} {'is forgotten' if found.deleted else 'would be forgotten'}"
    if found.busy:
        yield f"[yellow]{len(found.busy)} left: another process holds them[/]"
    if found.waste and not found.deleted:
        yield "[dim]nothing was removed; the same command with --delete removes it[/]"
