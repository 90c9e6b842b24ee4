"""Broken and hostile input, counted: how many commands end in a traceback, a hang, a kill or too much memory.

``python benchmarks/hostile.py checkpoints|overrides|sample [PART/PARTS] [--show]``
"""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

os.environ.update(OMP_NUM_THREADS="1", TOKENIZERS_PARALLELISM="false", HF_HUB_OFFLINE="1", COLUMNS="200")
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tests import hostile, hostile_overrides, hostile_runs
from tests.cli.world import make_world

SUITE = ("suite=custom", "suite.include_path=tasks", "+suite.tasks.sums.limit=4", "suite.batch_size=4")
TRAIN = ("task.path=a.jsonl", "training.steps=1", "training.batch_size=2")
CHECKPOINT_COMMANDS = {
    "merge as expert": ("merge", "base.path=base", "experts=[bad,b]", "out=out"),
    "merge as base": ("merge", "base.path=bad", "experts=[a,b]", "out=out"),
    "evaluate": ("evaluate", "model=bad", *SUITE),
    "evaluate as expert": ("evaluate", "base.path=base", "experts=[bad,b]", *SUITE),
    "finetune": ("finetune", "base.path=bad", *TRAIN),
}

Case = tuple[str, hostile_runs.Ran, list[str]]


def checkpoints(world: Path, few: bool = False) -> Iterator[Case]:
    """Every kind of checkpoint in every command that reads one (with ``few`` in one command)."""
    for number, kind in enumerate(mine(list(hostile.KINDS))):
        commands = list(CHECKPOINT_COMMANDS.items())
        for name, args in commands[number % 5 :][:1] if few else commands:
            place = world / "case"
            place.mkdir()
            for good in ("base", "a", "b", "a.jsonl", "tasks", "mine.jsonl"):
                (place / good).symlink_to(world / good)
            hostile.make(kind, world / "base" if "base" in name else world / "a", place / "bad")
            before = {path.name for path in place.iterdir()}
            ran = hostile_runs.run(args, place)
            yield f"{kind} · {name}", ran, surprises(place, before, args)
            shutil.rmtree(place)


def overrides(world: Path) -> Iterator[Case]:
    """Every hostile override and configuration folder."""
    texts = list(hostile_overrides.cases())
    files = [(name, whole) for name in hostile_overrides.YAMLS for whole in (False, True)]
    for case in mine([*texts, *files]):
        place = world / "case"
        place.mkdir()
        for good in ("base", "a", "b", "c", "a.jsonl", "tasks", "mine.jsonl", "conf"):
            (place / good).symlink_to(world / good)
        args = case[1] if isinstance(case[1], tuple) else hostile_overrides.write_yaml(case[0], place, case[1])
        before = {path.name for path in place.iterdir()}
        ran = hostile_runs.run(args, place)
        yield f"{case[0]}{' yaml' if not isinstance(case[1], tuple) else ''}", ran, surprises(place, before, args)
        shutil.rmtree(place)


def sample(world: Path) -> Iterator[Case]:
    """A few of each, for the tests."""
    sys.argv[2:] = ["3/120"]
    hostile_runs.SECONDS = 120.0  # a busy machine is no hang
    yield from checkpoints(world, few=True)
    yield from overrides(world)


def surprises(place: Path, before: set[str], args: Sequence[str]) -> list[str]:
    """What a run left that it should not: code that ran, files beside its outputs, a secret in them."""
    new = {path.name for path in place.iterdir()} - before - {"out", "outputs"}
    found = [f"left {name}" for name in new if not any(name in text for text in args)]
    for file in (file for folder in ("out", "outputs") for file in (place / folder).rglob("*") if file.is_file()):
        if file.stat().st_size < 10**7 and b"hunter2" in file.read_bytes():
            found.append(f"secret in {file.relative_to(place)}")
    return found


def mine(cases: list) -> list:
    """This process's part of the cases: PART/PARTS."""
    part, parts = map(int, next((a for a in sys.argv[2:] if "/" in a), "0/1").split("/"))
    wanted = [a[2:] for a in sys.argv[2:] if a.startswith("k=")]
    return [
        case
        for i, case in enumerate(cases)
        if i % parts == part and (not wanted or any(w in str(case) for w in wanted))
    ]


def last_lines(ran: hostile_runs.Ran) -> list[str]:
    """The error line; of a traceback also the last line of our own code in it."""
    lines = [line.strip() for line in ran.err.splitlines() if line.strip()]
    ours = [line for line in lines if line.startswith("File ") and "-packages" not in line and "_runs" not in line]
    return (ours[-1:] if ran.fault == "traceback" else []) + lines[-1:]


def main() -> None:
    """Run one set and print its counts."""
    hostile_runs.warm()
    counts: Counter[str] = Counter()
    most = slowest = 0.0
    with tempfile.TemporaryDirectory() as folder:
        make_world(Path(folder))
        for name, ran, left in globals()[sys.argv[1]](Path(folder)):
            faults = [fault for fault in (ran.fault, *left) if fault]
            counts.update(faults or [f"code {ran.code}"])
            counts["runs"] += 1
            most, slowest = max(most, ran.memory), max(slowest, ran.seconds)
            if faults or "--show" in sys.argv:
                told = f"{', '.join(faults) or ran.code} | {name} | {' | '.join(last_lines(ran))[:400]}"
                print(f"{told} | {ran.seconds:.1f} s, {ran.memory >> 20} MiB", flush=True)
    print(dict(counts), f"most memory {most / 2**30:.2f} GiB, slowest {slowest:.1f} s")
    sys.exit(any(not name.startswith("code") and name != "runs" for name in counts))


if __name__ == "__main__":
    main()
