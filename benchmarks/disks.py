"""Commands on a disk that fills up at each of their writes: one line, and with room again they end as if undisturbed.

``python benchmarks/disks.py [STEPS] [COMMAND …]``, as root: the disk is a small tmpfs,
whose free room is grown step by step.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.kills import COMMANDS, ages, command, made, ready, undisturbed
from tests import hostile_runs


def cases(steps: int, names: Sequence[str]) -> Iterator[tuple[str, list[str]]]:
    """Each command with as much room as it takes, in ``steps`` parts from none: what is wrong with how it ends."""
    with tempfile.TemporaryDirectory() as folder:
        whole, disk = Path(folder) / "whole", Path(folder) / "disk"
        whole.mkdir()
        disk.mkdir()
        assert hostile_runs.run(COMMANDS["sweep"], whole).code == 0
        for name in names:
            place = Path(folder) / name
            _, expected = undisturbed(name, whole, place)
            start = size(ready(name, whole, Path(folder) / "start"))
            shutil.rmtree(Path(folder) / "start")
            for step in range(steps):
                room = (size(place) - start) * step // steps
                mount("size=4g", disk)
                try:
                    ready(name, whole, disk / "case")
                    mount(f"remount,size={max(4096, used(disk) + room)}", disk)
                    yield f"{name} {room >> 10} KiB", filled(name, disk, expected)
                finally:
                    subprocess.run(["umount", "-l", disk], check=True)


def filled(name: str, disk: Path, expected: dict[str, str]) -> list[str]:
    """Run a command on the small disk, and on a larger one after it."""
    first = hostile_runs.run(command(name, disk / "case"), disk / "case", texts=disk.parent)
    faults = [first.fault] if first.fault else []
    drafts = [path.name for path in (disk / "case" / "store" / "tmp").glob("*")]
    faults += [f"left {drafts}"] if drafts else []
    before = ages(disk / "case")
    mount("remount,size=4g", disk)
    again = hostile_runs.run(command(name, disk / "case"), disk / "case", texts=disk.parent)
    faults += [] if again.code == 0 else [f"again: code {again.code}: {again.err[-300:]}"]
    faults += [f"{entry} was computed again" for entry, age in before.items() if ages(disk / "case").get(entry) != age]
    found = made(disk / "case")
    return faults + [f"{part} differs" for part in expected if expected[part] != found.get(part)]


def mount(options: str, disk: Path) -> None:
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", disk], check=True)


def used(disk: Path) -> int:
    return shutil.disk_usage(disk).used


def size(folder: Path) -> int:
    """Bytes that a folder takes, by pages."""
    return sum(-(-file.lstat().st_size // 4096) * 4096 for file in folder.rglob("*") if file.is_file())


def main() -> None:
    """Print what is wrong; exits with 1 where anything is."""
    if os.geteuid():
        return print("only root can mount a small disk")
    hostile_runs.warm()
    hostile_runs.SECONDS = 120.0
    counts: Counter[str] = Counter()
    for case, faults in cases(int((*sys.argv[1:], "6")[0]), sys.argv[2:] or tuple(COMMANDS)):
        counts[f"{case.split()[0]} {'wrong' if faults else 'well'}"] += 1
        if faults:
            print(f"{case}: {faults}", flush=True)
    print(dict(sorted(counts.items())))
    sys.exit(any("wrong" in name for name in counts))


if __name__ == "__main__":
    main()
