"""Prompts and answers that results were stored with, written as lm-eval writes them."""

from __future__ import annotations

import re
import shutil
from datetime import datetime
from pathlib import Path

import pyarrow.parquet as pq

from conf.errors import UserError
from pipelines.store.results import entries_of
from pipelines.store.store import Entry, Store, title

SAMPLES = "samples.parquet"
"""Name of the table in a result's folder; its columns are those of ``pipelines.evaluate.samples``."""


def write_samples(store: Store, out: Path, study: str | None = None) -> tuple[int, int]:
    """Write a folder for each result below ``out``, as ``lm_eval run --log_samples`` does; results and lines written.

    ``OUT/TITLE__KEY/results_DATE.json`` and ``samples_TASK_DATE.jsonl``. Raises UserError where nothing is kept.
    """
    if out.exists() and (out.is_file() or any(out.iterdir())):
        raise UserError("the folder is not empty", where=str(out), do="name a new folder with --samples DIR")
    kept = [entry for entry, _ in entries_of(store, study) if (entry.folder / SAMPLES).is_file()]
    if not kept:
        do = "score with suite.samples=all, or a number of documents"
        raise UserError("no result was stored with its answers", where=str(store.root), do=do)
    return len(kept), sum(_write(entry, out) for entry in kept)


def _write(entry: Entry, out: Path) -> int:
    about = entry.describe()
    folder = out / re.sub(r"[^\w.+-]+", "_", f"{title(about)}__{entry.key[:8]}")
    folder.mkdir(parents=True)
    date = datetime.fromtimestamp(about["made"]).isoformat().replace(":", "-")
    shutil.copyfile(entry.folder / "lm_eval.json", folder / f"results_{date}.json")
    rows = pq.read_table(entry.folder / SAMPLES).to_pylist()
    for name in dict.fromkeys(row["lm_eval_task"] for row in rows):
        lines = "".join(f"{row['sample']}\n" for row in rows if row["lm_eval_task"] == name)
        file = re.sub(r"[\"<>:/|\\?*\[\]]+", "__", name)
        (folder / f"samples_{file}_{date}.jsonl").write_text(lines, encoding="utf-8")
    return len(rows)
