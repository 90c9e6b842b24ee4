"""Commands killed and stopped at random moments: repeated, they end as if undisturbed and compute nothing twice.

``python benchmarks/kills.py [COUNT] [SEED] [COMMAND …]``
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
import signal
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

os.environ.update(OMP_NUM_THREADS="1", TOKENIZERS_PARALLELISM="false", HF_HUB_OFFLINE="1", COLUMNS="200")
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tests import hostile_runs
from tests.hostile_store import KINDS, POOL, SEARCH, STUDY, SUITE

BASE = ("base=tiny", "base.hidden=16", "base.layers=1", "base.steps=1")
COMMANDS: dict[str, tuple[str, ...]] = {
    "finetune": ("finetune", *BASE, "task=skills/odd", "training.steps=3", "training.save_steps=1", "store=store"),
    "sweep": ("sweep", *STUDY),
    "search": ("search", *SEARCH, "search.trials=6"),
    "merge": ("merge", *BASE, "experts=[one,two]", "out=out", "store=store"),
    "evaluate": ("evaluate", *BASE, "experts=[one,two]", "method=ties", "suite.limit=20", "store=store"),
    "geometry": ("geometry", *STUDY, "out=out"),
    "report": ("report", *STUDY),
    "pool": (
        "sweep", *STUDY, "name=pool", "pools.p.finetuning.method=mergopt", "+pools.p.finetuning.offsets=pool",
        "+pools.p.finetuning.rounds=2", "pools.p.training.steps=3", "+pools.p.training.save_steps=1",
    ),
    "select": (
        "sweep", *POOL, *SUITE, "name=chosen", "+pools.q=${pools.p}",
        "+methods={ta: {method: task_arithmetic, grid: {lambda: [0.2, 1.0]}, select: validation}}",
    ),
    "nsga2": (
        "search", *SEARCH, "search=nsga2", "search.trials=6", "search.startup=3", "search.objectives=[add,dist]",
    ),
    "landscape": ("landscape", *STUDY, "out=out", "landscape.points=2", "landscape.examples=4"),
    "diagnose": ("diagnose", *BASE, "experts=[one,two]", "store=store"),
    "calibrate": ("calibrate", *STUDY),
    "extract": ("extract", *BASE, "model=one", "out_adapter=2", "out=out", "store=store"),
    "push": ("push", "experts:EXPERT", "me/x", "out=out", "store=store"),
    "export": ("export", "experts:EXPERT", "out=out", "store=store"),
    "verify": ("verify", "--all", "store=store"),
    "gc": ("gc", "--delete", "store=store"),
}  # fmt: skip
NEEDS = {
    "finetune": (), "sweep": (), "search": ("bases", "experts"), "nsga2": ("bases", "experts"), "merge": ("bases",),
    "evaluate": ("bases",), "pool": ("bases",), "select": ("bases", "experts"),
    "calibrate": ("bases", "experts", "statistics"),
}  # fmt: skip
"""Kinds of entries that a command's store holds before it; others: all."""
SIGNALS = (signal.SIGKILL, signal.SIGKILL, signal.SIGINT, signal.SIGTERM)


def stops(count: int, seed: int, names: Sequence[str] = tuple(COMMANDS)) -> Iterator[tuple[str, list[str]]]:
    """Stop ``count`` commands at random moments and repeat them: which, when and in time or not, and what is wrong."""
    hostile_runs.SECONDS = 120.0  # a busy machine is no hang
    draw = random.Random(seed)
    with tempfile.TemporaryDirectory() as folder:
        whole = Path(folder) / "whole"
        whole.mkdir()
        assert hostile_runs.run(COMMANDS["sweep"], whole).code == 0
        plain = {name: undisturbed(name, whole, Path(folder) / name) for name in names}
        for number in range(count):
            name = names[number % len(names)]
            seconds, expected = plain[name]
            stop, at = draw.choice(SIGNALS), draw.uniform(0.03, seconds)
            place = ready(name, whole, Path(folder) / "case")
            faults, first = stopped(name, place, stop, at, expected)
            if first.code == 0:  # it was faster than before: the next moments are earlier
                plain[name] = min(seconds, first.seconds), expected
            yield f"{name} {signal.Signals(stop).name} {f'after {at:.2f} s' if first.code else 'too late'}", faults
            shutil.rmtree(place)


def main() -> None:
    """Print what is wrong, and how many stops came in time; exits with 1 where anything is wrong."""
    count, seed = map(int, (*sys.argv[1:], *("100", "0")[len(sys.argv) - 1 :])[:2])
    names = sys.argv[3:] or tuple(COMMANDS)
    hostile_runs.warm()
    counts: Counter[str] = Counter()
    wrong = 0
    for case, faults in stops(count, seed, names):
        counts[" ".join(case.split()[:2]) + (" too late" if "too late" in case else "")] += 1
        wrong += bool(faults)
        if faults:
            print(f"{case}: {faults}", flush=True)
    print(f"{count} stops, {wrong} wrong;", dict(sorted(counts.items())))
    sys.exit(wrong > 0)


def undisturbed(name: str, whole: Path, place: Path) -> tuple[float, dict[str, str]]:
    """How long a command takes, and what it makes."""
    ran = hostile_runs.run(command(name, ready(name, whole, place)), place)
    assert ran.code == 0, (name, ran.err)
    return ran.seconds, made(place)


def command(name: str, place: Path) -> list[str]:
    """A command's arguments, with the key of an expert where it takes one."""
    return [text.replace("EXPERT", (place / "one").resolve().name) for text in COMMANDS[name]]


def ready(name: str, whole: Path, place: Path) -> Path:
    """A folder with what a command needs."""
    place.mkdir()
    (place / "store").mkdir()
    for part in (whole / "store").iterdir():
        if part.name in NEEDS.get(name, (*KINDS, "studies")):
            shutil.copytree(part, place / "store" / part.name)
    for given, expert in zip(("one", "two"), sorted((whole / "store" / "experts").iterdir())):
        (place / given).symlink_to(expert)
    return place


def stopped(
    name: str, place: Path, stop: int, at: float, expected: dict[str, str]
) -> tuple[list[str], hostile_runs.Ran]:
    """Stop a command, repeat it, and say what is wrong with either, and how the first one ended."""
    args = command(name, place)
    first = hostile_runs.run(args, place, stop, at)
    allowed = {signal.SIGKILL: (-9, 0), signal.SIGINT: (130, 0), signal.SIGTERM: (143, 0)}[signal.Signals(stop)]
    faults = [] if first.code in allowed else [f"code {first.code}: {first.err[-300:]}"]
    faults += ["traceback"] if "Traceback" in first.err else []
    told = [line for line in first.err.splitlines() if line.startswith("interrupted: ")]
    faults += [f"{len(told)} lines on the stop"] if stop != signal.SIGKILL and len(told) != (first.code != 0) else []
    before = ages(place)
    again = hostile_runs.run(args, place)
    faults += [] if again.code == 0 or first.code == 0 else [f"again: code {again.code}: {again.err[-300:]}"]
    faults += [f"{entry} was computed again" for entry, age in before.items() if ages(place).get(entry) != age]
    found = made(place)
    faults += [f"{part} differs" for part in expected.keys() | found.keys() if expected.get(part) != found.get(part)]
    return faults, first


def ages(place: Path) -> dict[str, float]:
    """When each entry of the store was made."""
    entries = (place / "store").glob("*/*/entry.json")
    return {str(file.parent): json.loads(file.read_bytes())["made"] for file in entries if file.parts[-3] in KINDS}


def made(place: Path) -> dict[str, str]:
    """What a command made, without times: weights, scores, documents and tables by name."""
    found: dict[str, str] = {}
    for file in sorted(place.rglob("*")):
        name = str(file.relative_to(place))
        if file.is_symlink() or not file.is_file() or name.startswith(("store/cache", "store/locks", "one", "two")):
            continue
        if file.name == "entry.json":
            about = json.loads(file.read_bytes())
            found[name] = str([about.get(field) for field in ("tasks", "weights", "fingerprint", "sha256")])
        elif file.suffix == (".csv" if name.startswith("outputs") else ".parquet") or file.suffix == ".safetensors":
            found[name] = hashlib.sha256(timeless(file)).hexdigest()
        elif "/tmp/" in name or "/damaged/" in name:
            found[f"left behind: {name}"] = ""
    return found


def timeless(file: Path) -> bytes:
    """A file's bytes; of a table without the columns of times, memory and places."""
    if file.suffix != ".csv":
        return file.read_bytes()
    import pandas as pd

    table = pd.read_csv(file)
    told = [name for name in table if not any(word in name for word in ("second", "memory", "weights"))]
    return table[told].to_csv(index=False).encode()


if __name__ == "__main__":
    main()
