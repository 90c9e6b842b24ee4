"""Results as tables: how each came about, all of a store as one table, and what people are shown of it."""

from __future__ import annotations

import csv
import json
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from importlib.resources import files
from pathlib import Path
from typing import IO, Any

import yaml

import conf
from conf.errors import UserError, nearest
from conf.schema import Lora, Optimizer, Training
from pipelines.finetune.card import base_name
from pipelines.store.records import Record, studies
from pipelines.store.store import ENTRY, Store, content_key

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


UNKNOWN = "—"
"""What an older entry does not say, and what a checkpoint that was found does not tell."""


def provenance(about: Mapping[str, Any], task: str | None = None) -> dict[str, Any]:
    """Base, training, seeds, evaluation settings and machine of a result as plain columns.

    ``training`` and ``training_seed`` are those of the experts that the model is made of (None for a base),
    ``settings`` is a hash over all that an evaluation depends on. Where experts, or tasks (unless one is named),
    differ: all values.
    """
    settings, base = about["settings"], Path(about["base"]["path"])
    tasks = [settings["tasks"][task]] if task else list(settings["tasks"].values())
    trained = about.get("training") or [training_of(expert["path"]) for expert in about["experts"]]
    merge = about["recipe"] or {}
    return {
        "base": _entry(base).get("name") or base_name(base),
        "training": joined(t["how"] if t else UNKNOWN for t in trained),
        "training_seed": joined(t["seed"] if t else UNKNOWN for t in trained),
        "seed": about["model"].get("seed"),
        "merge_dtype": merge.get("dtype"),
        "suite": about["suite"],
        "fewshot": joined("the task's own" if t["num_fewshot"] is None else t["num_fewshot"] for t in tasks),
        "sample": joined(_sample(t, settings) for t in tasks),
        "attack": settings.get("attack", "none"),
        "chat_template": settings["chat_template"],
        "max_length": settings["max_length"],
        "dtype": settings["dtype"],
        "device": about.get("device") or UNKNOWN,
        "batch_size": about.get("batch_size") or UNKNOWN,
        "engine": _engine(about),
        "settings": content_key(settings)[:8],
    }


def training_of(folder: str) -> dict[str, Any] | None:
    """How the expert in a folder was fine-tuned (all but defaults) and its seed; None for one not made here."""
    about = _entry(Path(folder))
    if "finetuning" not in about:
        return None
    method = dict(about["finetuning"])
    name = method.pop("method", "plain")
    optimizer, training = dict(about["optimizer"]), dict(about["training"])
    batch, lora = training["batch_size"] * training["accumulation"], training.pop("lora")
    for aside in ("steps", "epochs", "batch_size", "accumulation", "save_steps", "reporters"):
        training.pop(aside)
    how = [
        _changed(name, method, _defaults(name)),
        _changed(f"{optimizer.pop('name')} lr={optimizer.pop('lr'):g}", optimizer, vars(Optimizer())),
        _changed(f"{_length(about)} of {batch}", training, vars(Training())),
        *([_changed("lora", lora, vars(Lora()))] if lora["rank"] else []),
    ]
    return {"how": ", ".join(how), "method": name, "seed": about["seed"]}


@lru_cache
def _defaults(method: str) -> dict[str, Any]:
    """The parameters of a fine-tuning method as its YAML gives them, which are the method's own defaults."""
    return yaml.safe_load((files(conf) / "finetuning" / f"{method}.yaml").read_text())


def joined(values: Iterable[Any]) -> Any:
    """The one value that all share; otherwise all that there are, as one text; None for none."""
    found = list(dict.fromkeys(value for value in values if value is not None))
    return found[0] if len(found) == 1 else " + ".join(map(str, found)) or None


def apart(
    rows: Sequence[Mapping[str, Any]], always: Collection[str], measured: Collection[str] = ()
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Rows for people, cut down to the columns that tell them apart, and what all of them share.

    Kept are the columns of ``always`` and ``measured``, and those in which rows differ that agree in all columns kept
    before but the measured ones. Of trainings only the method and what is not common to all of them is left.
    """
    parts = [text.split(", ")[1:] for row in rows for text in _trainings(row)]
    common = set.intersection(*map(set, parts)) if parts else set()
    cut = [{**row, "training": joined(_without(text, common) for text in _trainings(row))} for row in rows]
    names, same = list(always), {}
    for name in rows[0] if rows else ():
        kept = {tuple(row[n] for n in names) for row in cut}
        if len({row[name] for row in rows}) == 1:
            same[name] = rows[0][name]
        elif name not in measured and len(kept) < len({tuple(row[n] for n in (*names, name)) for row in cut}):
            names.append(name)
    if common:
        same["all training"] = ", ".join(part for part in parts[0] if part in common)
    same.pop("settings", None)
    shown = [name for name in (cut[0] if cut else ()) if name in {*names, *measured}]
    return [{name: row[name] for name in shown} for row in cut], {k: v for k, v in same.items() if k not in shown}


def _trainings(row: Mapping[str, Any]) -> list[str]:
    return row["training"].split(" + ") if row.get("training") else []


def _without(training: str, common: Collection[str]) -> str:
    method, *rest = training.split(", ")
    return ", ".join([method, *(part for part in rest if part not in common)])


def said(columns: Mapping[str, Any]) -> str:
    """Columns as one line for people, without those that are not there or switched off."""
    return ", ".join(
        f"{name.replace('_', ' ')} {value}".strip()
        for name, value in columns.items()
        if value not in (None, "", "none") and value is not False
    )


@lru_cache(maxsize=4096)
def _entry(folder: Path) -> dict[str, Any]:
    """What the entry in a folder says of itself; nothing where there is none."""
    file = folder / ENTRY
    return json.loads(file.read_text()) if file.is_file() else {}


def _length(about: Mapping[str, Any]) -> str:
    """Epochs where these were asked for, else steps (as taken, where an older entry does not say what was asked)."""
    if "epochs" not in about:
        return f"{about['summary']['steps']} steps"
    training, epochs = about["training"], about["epochs"]
    if epochs is None and training["steps"]:
        return f"{training['steps']} steps"
    return f"{training['epochs'] if epochs is None else epochs:g} epochs"


def _changed(start: str, values: Mapping[str, Any], defaults: Mapping[str, Any]) -> str:
    """A name, and the values that are not the defaults."""
    return " ".join([start, *(f"{k}={str(v).replace(' ', '')}" for k, v in values.items() if v != defaults.get(k))])


def _sample(task: Mapping[str, Any], settings: Mapping[str, Any]) -> str:
    """All documents of a split, or how many of them and how they were chosen."""
    split = f" of {task['split']}" if task.get("split") else ""
    if task["limit"] is None:
        return f"all{split}"
    count = f"{task['limit']}" if task["limit"] >= 1 else f"{task['limit']:.0%}"
    return (
        f"first {count}{split}" if task.get("sample") == "first" else f"{count}{split} drawn by seed {settings['seed']}"
    )


def _engine(about: Mapping[str, Any]) -> str:
    """What scored, and whether contexts were really computed once for all of their options."""
    settings, versions = about["settings"], about.get("versions", {})
    packages = {
        "lm_eval": settings["lm_eval"],
        "transformers": settings["transformers"],
        **versions.get("packages", {}),
    }
    parts = [f"{name} {packages[name]}" for name in ("lm_eval", "transformers", "torch") if name in packages]
    shared = versions.get("share_prefix", settings["share_prefix"])
    return ", ".join([*parts, "contexts shared" if shared else "nothing shared"])
