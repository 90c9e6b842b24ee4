"""Every experiment in miniature, one after another: its time, its trials, and that each of its views is there.

    python -m benchmarks.experiments                        # all, over one store: experts are trained once
    python -m benchmarks.experiments m3_triple in_the_wild  # some
    python -m benchmarks.experiments --store DIR suite.limit=50

Exits with 1 where an experiment fails or a view that it declares has no file, or an empty one.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from conf.compose import FOLDER, compose
from conf.schema import Views

FORMS = {"tables": ("csv", "md", "tex"), "figures": ("csv", "png", "svg")}
LANDSCAPE = ("losses.csv", "summary.csv", *(f"figures/landscape.{form}" for form in FORMS["figures"]))
EXPERIMENTS = [file.stem for file in sorted((FOLDER / "experiment").glob("*.yaml"))]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--store", type=Path)
    parser.add_argument("words", nargs="*", help="names of experiments (default: all), and overrides for each of them")
    given = parser.parse_args()
    names = [word for word in given.words if "=" not in word and "~" not in word]
    overrides = [word for word in given.words if word not in names]
    with tempfile.TemporaryDirectory() as folder:
        place = (given.store or Path(folder)).resolve()
        good = [run(name, place, overrides) for name in names or EXPERIMENTS]
    print(f"{sum(good)} of {len(good)} experiments are whole")
    sys.exit(not all(good))


def run(name: str, place: Path, overrides: list[str]) -> bool:
    """Run one experiment as a process and print what came of it; whether nothing is amiss."""
    study = [f"+experiment={name}", "+scale=tiny", f"store={place}/store", f"runs={place}/runs", *overrides]
    start = time.perf_counter()
    command = [sys.executable, "-c", "from cli.app import main; main()", "-q", "sweep", *study, "executor.device=cpu"]
    done = subprocess.run([*command, "--json"], capture_output=True, text=True)
    wall = time.perf_counter() - start
    try:
        told: dict[str, Any] = json.loads(done.stdout)[0]
    except (ValueError, IndexError):
        print(f"{name:32} FAILED in {wall:.0f} s: {(done.stderr or done.stdout).strip()[-600:]}", flush=True)
        return False
    ((config, _),) = compose(study)
    out = Path(told["folder"])
    amiss = [*lacking(config.report, out), *(f"failed: {failure['reason']}" for failure in told["failed"])]
    amiss += [f"exit code {done.returncode}"] if done.returncode else []
    files = sum(1 for file in out.rglob("*") if file.is_file())
    print(f"{name:32} {wall:6.0f} s  {told['run']:5} run  {told['cached']:5} cached  {files:4} files", flush=True)
    for line in amiss:
        print(f"    {line}", flush=True)
    return not amiss


def lacking(views: Views, out: Path) -> Iterator[str]:
    """What is not there of the views that an experiment declares, and what they put together without a word."""
    for part, declared in (("tables", views.tables), ("figures", views.figures)):
        for name in declared:
            for form in FORMS[part]:
                file = out / part / f"{name}.{form}"
                if not file.is_file() or not file.stat().st_size:
                    yield f"no {file.relative_to(out)}"
                elif form == "csv" and len(file.read_text(encoding="utf-8").splitlines()) < 2:
                    yield f"{file.relative_to(out)} has no rows"
    for file in (out / "tables" / f"{name}.md" for name in views.tables):
        if file.is_file() and (mixed := re.search("Cells are means over .*", file.read_text(encoding="utf-8"))):
            yield f"{file.name}: {mixed[0]}"
    for name in views.geometry:
        if not any(file.stat().st_size for file in (out / "geometry").rglob(f"*{name}*")):
            yield f"no geometry of {name}"
    if views.landscape and not all((out / "landscape" / file).is_file() for file in LANDSCAPE):
        yield "no landscape"


if __name__ == "__main__":
    main()
