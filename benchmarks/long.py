"""Long runs: memory, file handles and time a trial over thousands of trials in one process; commands on a large store.

``python benchmarks/long.py [TRIALS] [ENTRIES]`` (default 5000 and 20000)
"""

from __future__ import annotations

import gc
import hashlib
import json
import os
import shutil
import sys
import tempfile
import time
from pathlib import Path

os.environ.update(OMP_NUM_THREADS="1", TOKENIZERS_PARALLELISM="false", HF_HUB_OFFLINE="1", COLUMNS="200")
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import psutil

from conf.compose import compose
from pipelines.store.integrity import ENTRY, ZEROS
from pipelines.study.layout import lay_out
from pipelines.study.plan import make_plan
from pipelines.study.sources import access_of
from pipelines.study.sweep import run_study
from pipelines.study.trial import Trial
from pipelines.study.worker import Worker
from tests import hostile_runs
from tests.hostile_store import POOL, SUITE

PARTS = 10


def study(folder: Path, count: int) -> list[str]:
    """Overrides of a study of ``count`` merges that differ in one parameter, and of a base and two experts."""
    grid = ",".join(f"{0.1 + i / count:.6f}" for i in range(count))
    given = [text for text in (*POOL, *SUITE) if not text.startswith(("store=", "runs=", "suite.samples="))]
    method = f"+methods.ta={{method: task_arithmetic, grid: {{lambda: [{grid}]}}}}"
    return [*given, method, "name=long", f"store={folder / 'store'}", f"runs={folder / 'runs'}"]


def trials(folder: Path, count: int) -> list[Trial]:
    """The study's trials, once its base and experts are made."""
    ((config, _),) = compose(study(folder, 1))
    run_study(config)
    ((config, _),) = compose(study(folder, count))
    return [trial for trial in lay_out(config, access_of(config)).trials if trial.kind == "merge"][-count:]


def run(folder: Path, count: int) -> bool:
    """Run the trials in this process and print what each tenth took; whether all stayed flat."""
    todo, process = trials(folder, count), psutil.Process()
    ((config, _),) = compose(study(folder, 1))
    worker = Worker(access_of(config), config.executor)
    seconds, memory, handles = [], [], []
    for part in range(PARTS):
        start = time.process_time()
        own = todo[part * count // PARTS : (part + 1) * count // PARTS]
        for trial in own:
            became, reason, _ = worker.attempt(trial)
            assert became in ("done", "elsewhere"), reason
        seconds.append((time.process_time() - start) / max(1, len(own)))
        gc.collect()
        memory.append(process.memory_info().rss / 2**20)
        handles.append(process.num_fds())
    print(f"{count} trials: ms a trial (CPU) by tenth {[round(1000 * s, 1) for s in seconds]}")
    print(f"  MiB {[round(m) for m in memory]}, open files {handles}")
    return handles[-1] <= handles[1] and memory[-1] < 1.1 * memory[1] and seconds[-1] < 1.1 * seconds[1]


def fill(store: Path, count: int) -> None:
    """Copy one result until the store holds ``count``, each under a key of its own and sealed anew."""
    source = next((store / "results").iterdir())
    about = json.loads((source / ENTRY).read_text())
    for i in range(count - sum(1 for _ in (store / "results").iterdir())):
        key = hashlib.sha256(f"copy {i}".encode()).hexdigest()[:32]
        place = store / "results" / key
        shutil.copytree(source, place)
        text = json.dumps({**about, "key": key, "checksum": ZEROS}, indent=1, sort_keys=True) + "\n"
        digest = hashlib.sha256(text.encode()).hexdigest()
        (place / ENTRY).write_text(text.replace(ZEROS, digest, 1))


def commands(folder: Path, count: int, entries: int) -> None:
    """What commands take on the filled store, each in a fork of a warm process."""
    hostile_runs.SECONDS = 600.0
    hostile_runs.warm()
    fill(folder / "store", entries)
    at = f"store={folder / 'store'}"
    small = study(folder, 1)
    for args in (
        ("ls", at, "--json"), ("ls", at), ("results", "--format", "csv", at), ("gc", at), ("plan", *small),
        ("report", *small), ("plan", *study(folder, count)), ("report", *study(folder, count)),
    ):  # fmt: skip
        ran = hostile_runs.run(args, folder)
        name = " ".join(args[:3])[:40] + (" (all trials)" if any(len(text) > 20_000 for text in args) else "")
        told = ran.err[-200:] if ran.code else ""
        print(f"  {name}: {ran.seconds:.1f} s, {ran.memory >> 20} MiB, code {ran.code} {told}")


def main() -> None:
    """Run both parts; exits with 1 where the first is not flat."""
    count, entries = map(int, [*sys.argv[1:], "5000", "20000"][:2] if len(sys.argv) != 2 else [sys.argv[1], "20000"])
    with tempfile.TemporaryDirectory() as folder:
        flat = run(Path(folder), count)
        ((config, _),) = compose(study(Path(folder), count))
        start = time.process_time()
        plan = make_plan(config, access_of(config))
        print(f"plan of {plan.cached} cached trials: {time.process_time() - start:.1f} s of CPU")
        commands(Path(folder), count, entries)
    print("flat" if flat else "not flat")
    sys.exit(not flat)


if __name__ == "__main__":
    main()
