"""All results of a store as one table: a row per trial and task."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from conf.errors import UserError, nearest
from pipelines.store.provenance import apart, asked_of, joined, provenance
from pipelines.store.records import Record, mean, studies
from pipelines.store.store import Entry, Store

if TYPE_CHECKING:
    import pandas

FORMATS = ("csv", "parquet", "json", "table")
NESTED = ("studies", "parameters", "experts")
"""Columns that hold lists and tables; JSON texts in CSV and Parquet."""
MEASURED = (
    "key", "studies", "experts", "experts_merged", "weights", "update_norm", "task", "split", "limit", "metric",
    "value", "stderr", "n", "error", "seconds", "made",
)  # fmt: skip
"""Columns in which results of the same kind may differ."""


def result_rows(store: Store, study: str | None = None) -> list[dict[str, Any]]:
    """One row per trial and task, by key and task: what was scored, how it was made, and the score with n and error."""
    return [row for entry, found in entries_of(store, study) for row in _rows(entry.describe(), found)]


def entries_of(store: Store, study: str | None = None) -> list[tuple[Entry, list[Record]]]:
    """Every result with the studies that it belongs to.

    ``study`` leaves only those of studies of that name; UserError where there is none.
    """
    records = studies(store)
    names = sorted({record.name for record in records})
    if study is not None and study not in names:
        raise UserError(f"the store knows no study {study!r}", where=str(store.root), do=nearest(study, names))
    entries = [(e, [r for r in records if e.key in r.results]) for e, _ in store.read_all("results")]
    return [(entry, found) for entry, found in entries if study is None or study in {record.name for record in found}]


def _rows(about: dict[str, Any], records: list[Record]) -> Iterator[dict[str, Any]]:
    recipe, common = about["recipe"] or {}, provenance(about)
    pool, studied = pools_of(about["key"], records), sorted({record.name for record in records})
    for task, score in about["tasks"].items():
        asked = about["settings"]["tasks"].get(task, {})
        yield {
            "key": about["key"],
            "studies": studied,
            "pool": pool,
            "kind": about["trial"],
            "method": recipe.get("method"),
            "experts": about["names"],
            "experts_merged": len(about["experts"]) if recipe else None,
            "weights": about.get("weights"),
            "update_norm": about.get("update_norm"),
            **common,
            **asked_of([task], about["settings"]),
            "parameters": recipe.get("parameters", {}),
            "base_path": about["base"]["path"],
            "task": task,
            "split": asked.get("split"),
            "limit": asked.get("limit"),
            **{name: score[name] for name in ("metric", "value", "stderr", "n", "error")},
            "seconds": sum(about.get("seconds", {}).values()),
            "made": about["made"],
        }


def pools_of(key: str, records: Iterable[Record]) -> str | None:
    """The pools of studies that a result belongs to; None where no study says."""
    return joined(pool for record in records for pool, keys in record.pools.items() if key in keys)


def grouped(rows: Sequence[dict[str, Any]]) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Mean scores for people, and what all results have in common: models that differ in anything stand apart.

    A model's score is the mean over its suite's tasks; only merges that differ in nothing but which experts they are of
    (as many, from the same pool, trained alike) share a line.
    """
    lines: dict[str, dict[str, Any]] = {}
    scores: dict[str, list[float | None]] = {}
    for _, tasks in itertools.groupby(rows, key=lambda row: row["key"]):
        parts = list(tasks)
        first = parts[0]
        line = {name: first[name] for name in ("kind", "method")}
        line["of"] = len(first["experts"]) if first["kind"] == "merge" else " ".join(first["experts"])
        line |= {name: joined(_text(p[name]) for p in parts) for name in first if name not in (*line, *MEASURED)}
        line["tasks"] = len(parts)
        lines[json.dumps(line)] = line
        scores.setdefault(json.dumps(line), []).append(mean([part["value"] for part in parts]))
    found = [{**line, "models": len(scores[key]), "mean": mean(scores[key])} for key, line in lines.items()]
    found.sort(key=lambda line: [_order(value) for value in line.values()])
    for method in {line["method"] for line in found}:
        own = [line for line in found if line["method"] == method]
        common = set.intersection(*(set(line["parameters"].split()) for line in own))
        for line in own:
            line["parameters"] = " ".join(part for part in line["parameters"].split() if part not in common) or None
    if not any(line["parameters"] for line in found):
        found = [{name: value for name, value in line.items() if name != "parameters"} for line in found]
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
            _frame(rows).to_parquet(out, index=False)
        else:
            with out.open("w", encoding="utf-8", newline="") as file:
                print_rows(rows, form, file)
    except OSError as error:
        raise UserError(f"cannot write {out}", where=error.strerror or "", do="name another file with out=…") from None


def print_rows(rows: Sequence[dict[str, Any]], form: str, file: IO[str]) -> None:
    """Rows as csv or json text."""
    if form == "json":
        file.write(json.dumps(rows, indent=1) + "\n")
    else:
        _frame(rows).to_csv(file, index=False, lineterminator="\n")


def _frame(rows: Sequence[dict[str, Any]]) -> pandas.DataFrame:
    import pandas as pd

    flat = [{k: json.dumps(v, ensure_ascii=False) if k in NESTED else v for k, v in row.items()} for row in rows]
    return pd.DataFrame(flat, columns=None if rows else ["key"], dtype=object)  # as they are: no number becomes a float


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
