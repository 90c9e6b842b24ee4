"""Per-document scores from folders: of `lm_eval --log_samples`, of lighteval's details, and of this store."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Mapping
from numbers import Real
from pathlib import Path
from typing import Any

import pandas as pd

from conf.errors import UserError
from pipelines.checkpoints.rows import read_lines, read_parquet
from pipelines.checkpoints.untrusted import parse_json, read_json

COLUMNS = ["task", "document", "digest", "metric", "value"]
"""A line per task, document (its index) and metric; the digest of its text, where there is one, tells sets apart."""
DATE = r"(?P<task>.+)_(?P<date>\d{4}-\d\d-\d\dT[\d.:-]+)"


def read_scores(folder: Path) -> pd.DataFrame:
    """The scores in a folder, of whatever tool wrote them, with the columns ``COLUMNS``; a task's newest run.

    A metric that a result itself names first for a task comes first. Metrics that are no number per document are
    left out.

    Raises:
        UserError: for a folder without per-document scores, with those of several models, or with broken ones.
    """
    for read in (_ours, _lm_eval, _lighteval):
        try:
            frames = [frame[COLUMNS].astype({"value": float}) for frame in read(folder)]
        except (OSError, ValueError, KeyError, TypeError, AttributeError, OverflowError) as error:
            what = f"the results cannot be read: {' '.join(str(error).split())}"
            raise UserError(what, where=str(folder), do="evaluate the model again") from None
        if frames:
            return pd.concat(frames, ignore_index=True)
    do = "give a folder of `lm_eval --log_samples`, of lighteval's details, of `mergebench evaluate out=…`, or a key"
    raise UserError("no per-document scores", where=str(folder), do=do)


def _ours(folder: Path) -> Iterator[pd.DataFrame]:
    entry, documents = folder / "entry.json", folder / "documents.parquet"
    if not (entry.is_file() and documents.is_file()):
        return
    yield of_result(read_json(entry), read_parquet(documents).to_pandas())


def of_result(about: Mapping[str, Any], frame: pd.DataFrame) -> pd.DataFrame:
    """The scores of one of our results, from what its entry says and its table; each task's own metric first."""
    first = frame["metric"] == frame["task"].map({name: task["metric"] for name, task in about["tasks"].items()})
    return pd.concat([frame[first], frame[~first]]).assign(digest="")[COLUMNS]


def _lm_eval(folder: Path) -> Iterator[pd.DataFrame]:
    for task, file in _newest(folder, "samples_", ".jsonl"):
        rows: list[tuple[str, str, str, float]] = []
        for _, line in read_lines(file):
            sample = parse_json(line.encode())
            suffix = "" if sample["filter"] == "none" else f",{sample['filter']}"
            document = (str(sample["doc_id"]), str(sample.get("doc_hash", "")))
            rows += [(*document, f"{name}{suffix}", value) for name, value in _numbers(sample, sample["metrics"])]
        yield pd.DataFrame(rows, columns=COLUMNS[1:]).assign(task=task)


def _lighteval(folder: Path) -> Iterator[pd.DataFrame]:
    for task, file in _newest(folder, "details_", ".parquet"):
        frame = read_parquet(file).to_pandas()
        metric = next((name for name in ("__metric__", "metric", "metrics") if name in frame), "metrics")
        doc = next((name for name in ("__doc__", "doc") if name in frame), None)
        rows: list[tuple[str, str, str, float]] = []
        for place, scores in enumerate(frame[metric]):
            content = frame[doc].iloc[place] if doc else None
            text = content.get("query", "") if isinstance(content, Mapping) else ""
            rows += [(str(place), _digest(text), name, value) for name, value in _numbers(scores, list(scores))]
        yield pd.DataFrame(rows, columns=COLUMNS[1:]).assign(task=task)


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest() if text else ""


def _numbers(values: Mapping[str, Any], names: list[str]) -> Iterator[tuple[str, float]]:
    yield from ((name, float(values[name])) for name in names if isinstance(values.get(name), Real))


def _newest(folder: Path, start: str, ending: str) -> list[tuple[str, Path]]:
    """The newest file of each task below a folder; UserError where they are of several models."""
    found: dict[str, tuple[str, Path]] = {}
    models = set()
    for file in sorted(folder.rglob(f"{start}*{ending}")):
        matched = re.fullmatch(start + DATE + re.escape(ending), file.name)
        if matched is None:
            continue
        models.add(file.parent.parent if start == "details_" else file.parent)
        found[matched["task"]] = max(found.get(matched["task"], ("", file)), (matched["date"], file))
    if len(models) > 1:
        names = sorted(path.name for path in models)
        what = f"results of {len(names)} models, such as {names[0]} and {names[1]}"
        raise UserError(what, where=str(folder), do=f"name the folder of one, such as {folder / names[0]}")
    return [(task, file) for task, (_, file) in found.items()]


def choose_metric(task: str, frames: list[pd.DataFrame], wanted: str | None) -> str | None:
    """The metric that a task is compared by: the wanted one, else the first of the first result that all have."""
    lists = [list(dict.fromkeys(frame.loc[frame["task"] == task, "metric"])) for frame in frames]
    shared = [name for name in lists[0] if all(name in names for names in lists)]
    if wanted is not None:
        return wanted if wanted in shared else None
    return shared[0] if shared else None
