"""Broken and hostile input, counted: how many commands end in a traceback, a hang, a kill or too much memory.

``python benchmarks/hostile.py checkpoints|overrides|stores|inputs|fuzz|sample [PART/PARTS] [k=TEXT] [--show]``
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

os.environ.update(OMP_NUM_THREADS="1", TOKENIZERS_PARALLELISM="false", HF_HUB_OFFLINE="1", COLUMNS="200")
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tests import hostile, hostile_attacks, hostile_fuzz, hostile_inputs, hostile_overrides, hostile_runs, hostile_store
from tests.cli.world import make_world

SUITE = ("suite=custom", "suite.include_path=tasks", "+suite.tasks.sums.limit=4", "suite.batch_size=4")
TRAIN = ("task.path=a.jsonl", "training.steps=1", "training.batch_size=2")
CHECKPOINT_COMMANDS = {
    "merge as expert": ("merge", "base.path=base", "experts=[bad,b]", "out=out"),
    "merge as base": ("merge", "base.path=bad", "experts=[a,b]", "out=out"),
    "evaluate": ("evaluate", "model=bad", *SUITE),
    "evaluate as expert": ("evaluate", "base.path=base", "experts=[bad,b]", *SUITE),
    "finetune": ("finetune", "base.path=bad", *TRAIN),
    "merge as pickle": ("merge", "base.path=base", "experts=[bad,b]", "out=out", "allow_pickle=true"),
    "merge by factors": ("merge", "base.path=base", "experts=[bad,lora_b]", "method=knots", "out=out"),
    "merge in core space": ("merge", "base.path=base", "experts=[bad,lora_b]", "method=core_space", "out=out"),
    "evaluate as chat": ("evaluate", "model=bad", *SUITE, "suite.chat_template=true", "allow_pickle=true"),
}

OWN = {
    "merge as pickle": "pickle", "evaluate as chat": ("template", "pickle"), "merge by factors": "adapter",
    "merge in core space": "adapter",
}  # fmt: skip
"""Commands that only some kinds of checkpoints are for."""
MORE = {
    "merge into adapter": ("merge", "base.path=base", "experts=[bad,b]", "out=out", "out_adapter=2"),
    "extract": ("extract", "base.path=base", "model=bad", "out=out", "out_adapter=2"),
    "diagnose": ("diagnose", "base.path=base", "experts=[bad,b]"),
    "geometry": ("geometry", "base.path=base", "experts=[bad,b]", "out=out"),
    "finetune beside": (
        "finetune", "base.path=base", *TRAIN, "finetuning=mergopt", "finetuning.offsets=experts",
        "finetuning.experts=[bad]",
    ),
    "landscape": (
        "landscape", "base.path=base", "experts=[bad,b]", "+landscape.tasks.x.path=a.jsonl",
        "+landscape.tasks.y.path=a.jsonl", "landscape.points=2", "landscape.examples=4", "out=out",
    ),
}  # fmt: skip
"""Commands of which every kind of checkpoint meets one."""

Case = tuple[str, hostile_runs.Ran, list[str]]


def checkpoints(world: Path, few: bool = False) -> Iterator[Case]:
    """Every kind of checkpoint in every command that reads one (with ``few`` in one command)."""
    yield from read(world, hostile_attacks.KINDS, few)


def fuzz(world: Path, few: bool = False) -> Iterator[Case]:
    """The same of kinds from another angle, most of them made by chance."""
    yield from read(world, hostile_fuzz.KINDS, few)


def read(world: Path, kinds: Mapping[str, hostile.Damage], few: bool = False) -> Iterator[Case]:
    """Checkpoints of these kinds in the commands that read one."""
    for number, kind in enumerate(mine(list(kinds))):
        commands = [c for c in CHECKPOINT_COMMANDS.items() if c[0] not in OWN or kind.startswith(OWN[c[0]])]
        commands.append(list(MORE.items())[number % len(MORE)])
        for name, args in commands[number % len(commands) :][:1] if few else commands:
            good = world / ("base" if "base" in name else "a")
            with case(world) as place:
                shutil.copytree(good, place / "bad")
                kinds[kind](place / "bad")
                yield f"{kind} · {name}", *ran(args, place)


def overrides(world: Path) -> Iterator[Case]:
    """Every hostile override and configuration folder."""
    texts = list(hostile_overrides.cases())
    files = [(name, whole) for name in hostile_overrides.YAMLS for whole in (False, True)]
    for name, made in mine([*texts, *files]):
        with case(world) as place:
            args = made if isinstance(made, tuple) else hostile_overrides.write_yaml(name, place, made)
            yield f"{name}{' yaml' if not isinstance(made, tuple) else ''}", *ran(args, place)


def inputs(world: Path) -> Iterator[Case]:
    """Every hostile task file, data file, folder of pictures, recipe and folder of another tool's results."""
    for name, args, make in mine(list(hostile_inputs.cases())):
        with case(world) as place:
            make(place)
            yield name, *ran(args, place)


@contextlib.contextmanager
def case(world: Path) -> Iterator[Path]:
    """A folder with links to all that is good."""
    place = world / "case"
    place.mkdir()
    for good in world.iterdir():
        if good != place:
            (place / good.name).symlink_to(good)
    yield place
    subprocess.run(["chmod", "-R", "u+rwX", place], check=True)
    shutil.rmtree(place)


def ran(args: Sequence[str], place: Path) -> tuple[hostile_runs.Ran, list[str]]:
    """How a command ended, and what it left that it should not."""
    before = {path.name for path in place.iterdir()}
    ended = hostile_runs.run(args, place)
    return ended, surprises(place, before, args)


def stores(world: Path) -> Iterator[Case]:
    """Every damage to a store in every command that reads one; a study run again gives what it gave before."""
    for args in (("sweep", *hostile_store.STUDY), ("search", *hostile_store.SEARCH)):
        made = hostile_runs.run(args, world)
        assert made.code == 0, made.err
    store, place = world / "store", world / "case"
    before, commands = scores(store), hostile_store.commands(store)
    for damage, name in mine([(damage, name) for damage in hostile_store.DAMAGES for name in commands]):
        place.mkdir()
        shutil.copytree(store, place / "store")
        hostile_store.DAMAGES[damage](place / "store")
        ended, found = ran(commands[name], place)
        told = [line for line in ended.err.splitlines() if line.startswith("warning: ")]
        found += ["told twice"] if len(set(told)) < len(told) else []
        if name == "sweep" and ended.code == 0 and scores(place / "store").items() < before.items():
            found.append("other scores")
        if name == "verify" and ended.code != (0 if damage in hostile_store.SOUND else 1):
            found.append(f"verify {ended.code}")
        yield f"{damage} · {name}", ended, found
        subprocess.run(["chmod", "-R", "u+rwX", place], check=True)
        shutil.rmtree(place)


def scores(store: Path) -> dict[str, str]:
    """The scores of all results that can be read, by key."""
    found = {}
    for entry in (store / "results").iterdir():
        with contextlib.suppress(OSError, ValueError, KeyError):
            found[entry.name] = str(json.loads((entry / "entry.json").read_text())["tasks"])
    return found


FAILED = ("task prompt code", "compare details others", "clip size None · finetune", "recipe cycle of", "tangent list")
"""Kinds that ended badly once, one of each sort."""


def sample(world: Path) -> Iterator[Case]:
    """A few of each, and of the stops of kills.py, for the tests."""
    from benchmarks import kills

    sys.argv[2:] = ["3/150"]
    yield from checkpoints(world, few=True)
    yield from overrides(world)
    sys.argv[2:] = ["7/997"]
    yield from stores(world)
    sys.argv[2:] = [f"k={name}" for name in FAILED]
    yield from inputs(world)
    yield from fuzz(world, few=True)
    for case, faults in kills.stops(3, 3, ("merge", "geometry", "report")):
        yield case, hostile_runs.Ran((), 0, "", "", 0.0, 0), faults


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
        hostile_inputs.more(Path(folder))
        with contextlib.suppress(KeyboardInterrupt):
            for name, ran, left in globals()[(*sys.argv[1:], "sample")[0]](Path(folder)):
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
