"""Entries of the store as people read them: a list, and a card of one."""

from __future__ import annotations

import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

from rich.markup import escape

from cli import terminal
from pipelines.store.records import mean, studies
from pipelines.store.store import KINDS, Entry, Store, title

PLAIN: dict[str, Any] = {"box": None, "pad_edge": False}
"""The look of tables with many columns."""
MOST = 1000
"""Entries of a kind in a table, the newest: a terminal takes a millisecond for each."""
DATE = "%Y-%m-%d %H:%M"


def listed(
    store: Store, kinds: Collection[str] = KINDS, texts: Sequence[str] = ()
) -> list[tuple[Entry, dict[str, Any]]]:
    """Entries of these kinds that name all the texts, the newest of a kind last, and what each says of itself.

    Of a result also its pool and provenance as plain columns.
    """
    from pipelines.store.provenance import provenance, training_told
    from pipelines.store.results import pools_of

    records, found = studies(store), []
    for entry, about in [pair for kind in KINDS if kind in kinds for pair in store.read_all(kind)]:
        if "trial" in about:
            about["provenance"] = {"pool": pools_of(entry.key, records), **provenance(about)}
        trained = (training_told(about) or {}).get("how", "")
        how = " ".join(map(str, (*about.get("provenance", {}).values(), trained)))
        if all(text.lower() in f"{entry.key} {title(about)} {how}".lower() for text in texts):
            found.append((entry, about))
    return sorted(found, key=lambda pair: (KINDS.index(pair[0].kind), pair[1]["made"]))


def entries_table(entries: Sequence[tuple[Entry, dict[str, Any]]], root: str) -> Any:
    """Entries by kind: what tells them apart in each row, and below what all of a kind share."""
    from pipelines.store.provenance import apart, said, training_told

    table = terminal.table(
        f"{len(entries)} entries in {escape(root)}", ("kind", "key", "what, how", "mean", "made"), **PLAIN
    )
    shared = []
    for kind in dict.fromkeys(entry.kind for entry, _ in entries):
        own, rows = [(entry, about) for entry, about in entries if entry.kind == kind], []
        if len(own) > MOST:
            shared.append(f"{len(own) - MOST} older {kind} are not shown: narrow them by words, or see --json")
            own = own[-MOST:]
        for _, about in own:
            how: dict[str, Any] = {"what": title(about), "pool": None, "training": None}
            how |= about.get("provenance", {})
            if kind != "results" and (trained := training_told(about)):
                how |= {"training": trained["how"], "training_seed": trained["seed"]}
            rows.append(how)
        lines, same = apart(rows, ["what", "pool", "training"])
        shared += [f"all {kind}: {text}"] if (text := said(same)) else []
        for (entry, about), line in zip(own, lines):
            made = time.strftime(DATE, time.localtime(about["made"]))
            score = mean([task["value"] for task in about.get("tasks", {}).values() if not task["error"]])
            what, told = escape(line.pop("what")), escape(said(line))
            told = f"{what}\n[dim]{told}[/]" if told else what
            table.add_row(kind, entry.key[:10], told, "" if score is None else f"{score:.4f}", made)
    table.caption, table.caption_justify = escape("\n".join(shared)), "left"
    return table


def entry_card(entry: Entry, about: Mapping[str, Any]) -> Iterator[Any]:
    """What an entry is, how it came about and, of a result, its scores."""
    yield f"[bold]{escape(title(about) or entry.key[:10])}[/]  {entry.kind}:{entry.key}"
    facts = {
        "folder": about["folder"],
        "made": time.strftime(DATE, time.localtime(about["made"])),
        "size": terminal.gigabytes(sum(file.stat().st_size for file in entry.folder.rglob("*") if file.is_file())),
        **_origin(entry, about),
        "seconds": terminal.fields_line(about.get("seconds", {})),
        "bytes": ", ".join(f"{n} {terminal.gigabytes(count)}" for n, count in about.get("bytes", {}).items()),
        "summary": terminal.fields_line(about.get("summary", {})),
        "weights": about.get("weights") or about.get("fingerprint"),
    }
    card = terminal.table("", ("", ""), show_header=False, **PLAIN)
    for name, value in facts.items():
        if value:
            card.add_row(f"[dim]{name}[/]", escape(str(value)))
    yield card
    if tasks := about.get("tasks"):
        yield _scores(tasks)


def _origin(entry: Entry, about: Mapping[str, Any]) -> dict[str, Any]:
    """Recipe, training and evaluation settings as lines, of what has them."""
    from pipelines.store.provenance import provenance, said, training_told

    facts: dict[str, Any] = {}
    if recipe := about.get("recipe"):
        parameters = " ".join(f"{name}={value}" for name, value in recipe["parameters"].items())
        facts["method"] = f"{recipe['method']} {parameters}"
    if about.get("names"):
        facts["experts"] = ", ".join(about["names"])
    if "trial" in about:
        facts |= {"how": said(provenance(about))}
    elif trained := training_told(about):
        facts |= {"base": about["base"]["path"], "training": f"{trained['how']}, seed {trained['seed']}"}
    elif spec := about.get("spec"):
        facts["made from"] = said(spec)
    return facts


def _scores(tasks: Mapping[str, Mapping[str, Any]]) -> Any:
    table = terminal.table("", ("task", "metric", "score", "stderr", "documents"), **PLAIN)
    for name, task in tasks.items():
        error = task.get("stderr")
        value = "—" if task["value"] is None else f"{task['value']:.4f}"
        cells = [f"failed: {task['error']}" if task["error"] else value]
        cells += ["" if error is None else f"{error:.4f}", str(task.get("n", ""))]
        table.add_row(escape(name), escape(str(task.get("metric", ""))), *map(escape, cells))
    average = mean([task["value"] for task in tasks.values() if not task["error"]])
    if average is not None and len(tasks) > 1:
        table.add_row("[bold]mean[/]", "", f"[bold]{average:.4f}[/]")
    return table
