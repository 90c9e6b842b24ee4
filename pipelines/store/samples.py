"""The tables beside a result: scores by document, and prompts and answers, written as lm-eval writes them."""

from __future__ import annotations

import re
import shutil
from datetime import datetime
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from conf.errors import UserError
from pipelines.checkpoints.untrusted import check_file
from pipelines.store.integrity import Damaged, changed_file
from pipelines.store.results import entries_of
from pipelines.store.store import Entry, Store, title

SAMPLES = "samples.parquet"
"""Name of the table in a result's folder; its columns are those of ``pipelines.evaluate.samples``."""
DOCUMENTS = "documents.parquet"
"""Name of the table of scores by document; its columns are those of ``pipelines.evaluate.score``."""
TEXT, NUMBER = pa.string(), pa.float64()
COLUMNS = {
    DOCUMENTS: {"task": TEXT, "document": TEXT, "metric": TEXT, "value": NUMBER},
    SAMPLES: dict.fromkeys(("task", "document", "lm_eval_task", "sample"), TEXT),
}
LARGEST = 1 << 32
"""Bytes of a table at most."""


def read_table(store: Store, entry: Entry, name: str = DOCUMENTS) -> pa.Table:
    """A table of a result. Raises ``Damaged`` where it is not what was committed: the result is set aside."""
    try:
        return check_table(entry, name)
    except Damaged as error:
        store.set_aside(entry.folder, f"results-{entry.key}", error.what)
        raise


def check_table(entry: Entry, name: str = DOCUMENTS) -> pa.Table:
    """A table of a result; ``Damaged`` where it is not what was committed."""
    try:
        check_file(entry.folder / name, most=LARGEST)
        if changed_file(entry.folder, entry.describe(), name):
            raise ValueError("it was changed")
        table = pq.ParquetFile(entry.folder / name).read(use_threads=False)  # four times as fast as read_table
        if not COLUMNS[name].items() <= dict(zip(table.schema.names, table.schema.types)).items():
            raise ValueError("it has other columns")
    except (OSError, ValueError, pa.ArrowException) as error:
        reason = getattr(error, "strerror", None) or str(error).partition("\n")[0]
        what = f"{name} of results:{entry.key[:10]} is damaged: {reason[:200]}"
        raise Damaged(what, where=str(entry.folder), do="run the study again: that trial is scored anew") from None
    return table


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
    return len(kept), sum(_write(store, entry, out) for entry in kept)


def _write(store: Store, entry: Entry, out: Path) -> int:
    about, rows = entry.describe(), read_table(store, entry, SAMPLES).to_pylist()
    folder = out / re.sub(r"[^\w.+-]+", "_", f"{title(about)}__{entry.key[:8]}")
    folder.mkdir(parents=True)
    date = datetime.fromtimestamp(about["made"]).isoformat().replace(":", "-")
    shutil.copyfile(entry.folder / "lm_eval.json", folder / f"results_{date}.json")
    for name in dict.fromkeys(row["lm_eval_task"] for row in rows):
        lines = "".join(f"{row['sample']}\n" for row in rows if row["lm_eval_task"] == name)
        file = re.sub(r"[\"<>:/|\\?*\[\]]+", "__", name)
        (folder / f"samples_{file}_{date}.jsonl").write_text(lines, encoding="utf-8")
    return len(rows)
