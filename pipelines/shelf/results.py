"""All results of a store as one table: a row a trial and task."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any

from conf.errors import UserError, nearest
from pipelines.shelf.studies import studies
from pipelines.store import Store

FORMATS = ("csv", "parquet", "json")
NESTED = ("studies", "parameters", "experts")
"""Columns that hold lists and tables; JSON texts in CSV and Parquet."""


def result_rows(store: Store, study: str | None = None) -> list[dict[str, Any]]:
    """One row a trial and task, by key and task: what was scored, how it was made, and the score with n and error.

    ``study`` leaves only the results of studies of that name; UserError where there is none.
    """
    records = studies(store)
    names = sorted({record.name for record in records})
    if study is not None and study not in names:
        raise UserError(f"the store knows no study {study!r}", where=str(store.root), do=nearest(study, names))
    belongs: dict[str, set[str]] = {}
    for record in records:
        for key in record.keys.get("results", []):
            belongs.setdefault(key, set()).add(record.name)
    entries = [e for e in store.entries("results") if study is None or study in belongs.get(e.key, ())]
    return [row for e in entries for row in _rows(e.describe(), sorted(belongs.get(e.key, ())))]


def _rows(about: dict[str, Any], named: list[str]) -> Iterator[dict[str, Any]]:
    recipe = about["recipe"] or {}
    model = {
        "key": about["key"],
        "studies": named,
        "kind": about["trial"],
        "method": recipe.get("method"),
        "parameters": recipe.get("parameters", {}),
        "experts": about["names"],
        "experts_merged": len(about["experts"]) if recipe else None,
        "base": about["base"]["path"],
        "seed": recipe.get("seed"),
        "weights": about.get("weights"),
        "suite": about["suite"],
        "attack": about["settings"].get("attack", "none"),
    }
    ran = {
        "device": about.get("device"),
        "seconds": sum(about.get("seconds", {}).values()),
        "made": about["made"],
    }
    for task, score in about["tasks"].items():
        told = {name: score[name] for name in ("metric", "value", "stderr", "n", "error")}
        split = about["settings"].get("tasks", {}).get(task, {}).get("split")
        yield {**model, "task": task, "split": split, **told, **ran}


def write_rows(rows: Sequence[dict[str, Any]], form: str, out: Path) -> None:
    """Write rows as csv, parquet or json; UserError for a folder that cannot be written to."""
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        if form == "parquet":
            _write_parquet(rows, out)
        else:
            with out.open("w", encoding="utf-8", newline="") as file:
                print_rows(rows, form, file)
    except OSError as error:
        raise UserError(f"cannot write {out}", where=error.strerror or "", do="name another file with out=…") from None


def print_rows(rows: Sequence[dict[str, Any]], form: str, file: IO[str]) -> None:
    """Rows as csv or json text."""
    if form == "json":
        file.write(json.dumps(rows, indent=1) + "\n")
        return
    writer = csv.DictWriter(file, list(rows[0]) if rows else ["key"], lineterminator="\n")
    writer.writeheader()
    writer.writerows(_flat(row) for row in rows)


def format_of(form: str | None, out: str | None) -> str:
    """The format that is asked for: by name, else by the file's ending, else csv."""
    named = form or (Path(out).suffix.lstrip(".") if out else "") or "csv"
    if named not in FORMATS:
        where = "--format" if form else f"out={out}"
        raise UserError(f"no format is called {named!r}", where=where, do=nearest(named, FORMATS))
    if named == "parquet" and not out:
        raise UserError("parquet is no text", where="--format parquet", do="name a file with out=FILE")
    return named


def _write_parquet(rows: Sequence[dict[str, Any]], out: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.Table.from_pylist([_flat(row) for row in rows]), out)


def _flat(row: dict[str, Any]) -> dict[str, Any]:
    return {k: json.dumps(v, ensure_ascii=False) if k in NESTED else v for k, v in row.items()}
