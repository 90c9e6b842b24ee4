"""A report over ten thousand trials: seconds, peak memory and bytes of the page.

    python benchmarks/report.py [--merges 10000] [--tasks 4] [--documents 200] [--out FOLDER] [--profile]

Four bases with twelve experts, seven methods, six sizes; a score a document. The trials stand in a folder of Parquet
files as in a store, and the report reads each when it needs it. Two tables and two figures are declared too.
"""

from __future__ import annotations

import argparse
import cProfile
import itertools
import pstats
import random
import resource
import tempfile
import time
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from conf.schema import FigureView, Statistics, TableView, Views
from pipelines.report import TrialRow, write_report

BASES, METHODS, SIZES = ("llama_3b", "llama_8b", "qwen_4b", "qwen_8b"), [f"method_{i}" for i in range(7)], range(2, 8)
EXPERTS = [f"expert_{i:02d}" for i in range(12)]
VIEWS = Views(
    tables={
        "above": TableView(blocks="base", average=True, columns=["n"], singles=True, measures=["above", "change"]),
        "tasks": TableView(rows=["method", "n"], blocks="base", columns=["task"], mean=True, also=["base", "experts"]),
    },
    figures={
        "accuracy": FigureView(lines=["method"], panels="base", references=["base", "best_expert"], band="std"),
        "by_task": FigureView(lines=["method"], panels=["base", "task"], references=["base"]),
    },
)


def main() -> None:
    """Make the trials, write the report, print what it took."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--merges", type=int, default=10_000)
    parser.add_argument("--tasks", type=int, default=4)
    parser.add_argument("--documents", type=int, default=200)
    parser.add_argument("--out", type=Path, default=None)
    parser.add_argument("--profile", action="store_true")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        rows = make_rows(asked.merges, asked.tasks, asked.documents, Path(folder))
        before, start, busy = _peak(), time.perf_counter(), time.process_time()
        profile = cProfile.Profile()
        if asked.profile:
            profile.enable()
        report = write_report(rows, asked.out or Path(folder) / "report", statistics=Statistics(), title="10,000",
                              views=VIEWS)  # fmt: skip
        profile.disable()
        spent, busy = time.perf_counter() - start, time.process_time() - busy
        page = report.paths["report.html"].stat().st_size
        what = f"{len(rows)} trials, {asked.tasks} tasks of {asked.documents} documents"
        print(f"{what}: {spent:.1f} s ({busy:.1f} s of CPU)")
        print(f"peak memory {_peak():.2f} GiB ({before:.2f} before), page {page / 1e6:.1f} MB")
        if asked.profile:
            pstats.Stats(profile).sort_stats("cumulative").print_stats(45)


def _read(file: Path) -> pa.Table:
    """As a result's documents are read from the store."""
    return pq.ParquetFile(file).read(use_threads=False)


def _peak() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def make_rows(merges: int, tasks: int, documents: int, folder: Path) -> list[TrialRow]:
    """Bases, experts and merges with random answers, each in a file of its own."""
    draw, pick, rows = np.random.default_rng(0), random.Random(0), []
    names = [f"task_{i}" for i in range(tasks)]
    every = len(BASES) * len(METHODS) * len(SIZES)
    for base in BASES:
        models: list[tuple[str, str | None, tuple[str, ...]]] = [("base", None, ())]
        models += [("expert", None, (name,)) for name in EXPERTS]
        for size in SIZES:
            subsets = list(itertools.combinations(EXPERTS, size))
            for subset in pick.sample(subsets, min(len(subsets), round(merges / every))):
                models += [("merge", method, subset) for method in METHODS]
        for kind, method, experts in models:
            answers = draw.random((tasks, documents)) < 0.4 + 0.01 * len(experts)
            rows.append(_row(base, kind, method, experts, names, answers, folder))
    return rows


def _row(base: str, kind: str, method: str | None, experts: tuple[str, ...], names: list[str], answers: np.ndarray,
         folder: Path) -> TrialRow:  # fmt: skip
    label = (method and f"{method} of {', '.join(experts)}") or " ".join(experts) or "base"
    file = folder / f"{abs(hash((base, label)))}.parquet"
    documents = answers.shape[1]
    columns = {
        "task": pa.array(np.repeat(names, documents)).dictionary_encode(),
        "document": np.tile(np.arange(documents), len(names)),
        "metric": pa.array(["acc"] * answers.size).dictionary_encode(),
        "value": answers.ravel().astype(float),
    }
    pq.write_table(pa.table(columns), file)
    return TrialRow(
        study="10,000", pool=base, kind=kind, method=method, label=label, experts=experts,  # type: ignore[arg-type]
        parameters={"lambda": 0.4, "density": 0.1} if method else {}, key=file.stem,
        scores=dict(zip(names, answers.mean(axis=1).tolist())), n=dict.fromkeys(names, documents),
        documents=partial(_read, file), suite="s", seconds={"merge": 1.0, "evaluate": 2.0}, base=base,
        provenance={"base": base, "training": "—", "seed": 0 if method else None},
        columns={"update_norm": float(len(experts))},
    )  # fmt: skip


if __name__ == "__main__":
    main()
