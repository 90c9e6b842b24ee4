"""All results of a store as one table: a row a trial and task."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any

from conf.errors import UserError, nearest
from pipelines.provenance import apart, joined, provenance
from pipelines.shelf.studies import Record, studies
from pipelines.store import Store

FORMATS = ("csv", "parquet", "json", "table")
NESTED = ("studies", "parameters", "experts")
"""Columns that hold lists and tables; JSON texts in CSV and Parquet."""
MEASURED = (
    "key", "studies", "experts", "experts_merged", "weights", "task", "split", "limit", "metric", "value", "stderr",
    "n", "error", "seconds", "made",
)  # fmt: skip
"""Columns in which results of the same kind may differ."""


def result_rows(store: Store, study: str | None = None) -> list[dict[str, Any]]:
    """One row a trial and task, by key and task: what was scored, how it was made, and the score with n and error.

    ``study`` leaves only the results of studies of that name; UserError where there is none.
    """
    records = studies(store)
    names = sorted({record.name for record in records})
    if study is not None and study not in names:
        raise UserError(f"the store knows no study {study!r}", where=str(store.root), do=nearest(study, names))
    entries = [(e, [r for r in records if e.key in r.results]) for e in store.entries("results")]
    if study is not None:
        entries = [(e, found) for e, found in entries if study in {r.name for r in found}]
    return [row for e, found in entries for row in _rows(e.describe(), found)]


def _rows(about: dict[str, Any], records: list[Record]) -> Iterator[dict[str, Any]]:
    recipe = about["recipe"] or {}
    model = {
        "key": about["key"],
        "studies": sorted({record.name for record in records}),
        "pool": pools_of(about["key"], records),
        "kind": about["trial"],
        "method": recipe.get("method"),
        "experts": about["names"],
        "experts_merged": len(about["experts"]) if recipe else None,
        "weights": about.get("weights"),
    }
    more = {"parameters": recipe.get("parameters", {}), "base_path": about["base"]["path"]}
    ran = {"seconds": sum(about.get("seconds", {}).values()), "made": about["made"]}
    for task, score in about["tasks"].items():
        told = {name: score[name] for name in ("metric", "value", "stderr", "n", "error")}
        asked = about["settings"]["tasks"].get(task, {})
        part = {"task": task, "split": asked.get("split"), "limit": asked.get("limit")}
        yield {**model, **provenance(about, task), **more, **part, **told, **ran}


def pools_of(key: str, records: Iterable[Record]) -> str | None:
    """The pools of studies that a result belongs to; None where no study says."""
    return joined(pool for record in records for pool, keys in record.pools.items() if key in keys)


def grouped(rows: Sequence[dict[str, Any]]) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Mean scores for people, and what all results have in common: models that differ in anything stand apart.

    A model's score is the mean over its suite's tasks; only merges that differ in nothing but which experts they are of
    (as many, from the same pool, trained alike) share a line.
    """
    models: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        models.setdefault(row["key"], []).append(row)
    lines: dict[str, dict[str, Any]] = {}
    for parts in models.values():
        first = parts[0]
        line = {name: first[name] for name in ("kind", "method")}
        line["of"] = len(first["experts"]) if first["kind"] == "merge" else " ".join(first["experts"])
        line |= {name: joined(_text(p[name]) for p in parts) for name in first if name not in (*line, *MEASURED)}
        line["tasks"] = len(parts)
        scores = lines.setdefault(json.dumps(line), {**line, "scores": []})["scores"]
        values = [part["value"] for part in parts]
        scores.append(sum(values) / len(values) if None not in values else None)
    for line in lines.values():
        scores = line.pop("scores")
        line |= {"models": len(scores), "mean": sum(scores) / len(scores) if None not in scores else None}
    found = sorted(lines.values(), key=lambda line: [_order(value) for value in line.values()])
    for method in {line["method"] for line in found}:
        own = [line for line in found if line["method"] == method]
        common = set.intersection(*(set(line["parameters"].split()) for line in own))
        for line in own:
            line["parameters"] = " ".join(part for part in line["parameters"].split() if part not in common)
    return apart(found, ("kind", "method", "of", "pool", "training"), ("models", "mean"))


def _order(value: Any) -> tuple[bool, float, str]:
    return (value is None, value if isinstance(value, (int, float)) else 0, str(value))


def _text(value: Any) -> Any:
    """A value that can be compared with others and read: lists and tables as ``a=1 b=2``."""
    if isinstance(value, dict):
        return " ".join(f"{name}={_text(part)}".replace(" ", "") for name, part in value.items())
    return ", ".join(map(str, value)) if isinstance(value, list) else value


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
    if named == "table" and out:
        raise UserError("a table is for the terminal", where="--format table", do="choose csv, parquet or json")
    return named


def _write_parquet(rows: Sequence[dict[str, Any]], out: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.Table.from_pylist([_flat(row) for row in rows]), out)


def _flat(row: dict[str, Any]) -> dict[str, Any]:
    return {k: json.dumps(v, ensure_ascii=False) if k in NESTED else v for k, v in row.items()}
