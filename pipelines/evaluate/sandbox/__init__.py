"""Programs that a model wrote, run apart from the evaluator and tested where they cannot reach.

A program runs in a process of its own. Its tests run in another, which calls the program's functions through a pipe
and compares plain values itself (judge.py). Both are kept from the rest of the machine by what the system offers
(jail.py): see ``isolation``.
"""

from __future__ import annotations

import marshal
import os
import subprocess
import sys
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

SECONDS = 10
"""Processor time of one program; two seconds more of wall-clock time."""

MEMORY = 4 << 30
"""Address space in bytes, per process."""

WRITTEN = 16 << 20
"""Largest file, in bytes, and most output; all files together may have four times as much."""

LEVELS = ("namespaces", "landlock", "none")
"""Kinds of isolation, the strongest first."""

_START = "import sys; sys.path.insert(0, sys.argv[1]); import judge; judge.main()"


@lru_cache(maxsize=1)
def isolation() -> str:
    """The strongest kind of isolation that works here, tried once.

    ``namespaces``: no network, no files but Python's own (read-only) and 64 MiB of memory, no view of other
    processes, all children ended. ``landlock``: no sockets, no signals, no files written, no processes started; files
    outside of Python's own cannot be read. ``none``: limits on time, memory and file size alone.
    """
    program = "import json\ndef f(): return json.dumps(1)"
    for level in LEVELS[:2]:
        try:
            if _run(level, SECONDS, ["f"], program=program, tests="assert f() == '1'")[:1] == b"1":
                return level
        except RuntimeError:
            continue
    return "none"


def refusal(own: bool, run_code: bool, isolate_code: bool) -> str | None:
    """Why a task must not run code that the model wrote, and what allows it; ``own``: it runs the code here."""
    if not run_code:
        return "runs code that the model wrote: allow it with suite.run_code=true"
    if isolate_code and not own:
        return "runs code that the model wrote in the evaluator's own process: allow it with suite.isolate_code=false"
    if isolate_code and isolation() == "none":
        return (
            "runs code that the model wrote, and this system isolates none (no user namespaces, no Landlock): evaluate "
            "in a container of its own, and allow it with suite.isolate_code=false"
        )
    return None


def passes(program: str, tests: str, names: Sequence[str], setup: str = "", seconds: int = SECONDS) -> bool:
    """Whether ``tests`` reach their end; they see the program's objects called ``names`` and what ``setup`` defines."""
    return _run(isolation(), seconds, names, program=program, tests=tests, setup=setup)[:1] == b"1"


def outputs(program: str, given: str = "", seconds: int = SECONDS) -> str | None:
    """What a Python program prints for the given input; None when it fails or overruns its limits."""
    verdict = _run(isolation(), seconds, program=program, given=given)
    return verdict[1:].decode(errors="replace") if verdict[:1] == b"1" else None


def _run(level: str, seconds: int, names: Sequence[str] = (), **texts: str) -> bytes:
    """b"1" where all went well and b"0" where not, then what was printed; nothing when time ran out."""
    packages = [path for path in sys.path if path.endswith(("site-packages", "dist-packages"))]
    places = ["/usr", "/bin", "/lib", "/lib64", "/nix/store", sys.base_prefix, *packages]
    paths = [os.path.abspath(path) for path in dict.fromkeys(places) if os.path.exists(path)]
    paths = [path for path in paths if not any(path.startswith(other + os.sep) for other in paths)]
    settings = [level, seconds, MEMORY, WRITTEN, os.pathsep.join(paths), os.pathsep.join(packages)]
    job = {key: text.encode(errors="replace") for key, text in texts.items()}
    process = subprocess.Popen(
        [sys.executable, "-s", "-S", "-c", _START, str(Path(__file__).parent), *map(str, settings)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={"HOME": "/tmp", "TMPDIR": "/tmp", "PYTHONHASHSEED": "0", "OPENBLAS_NUM_THREADS": "1"},
        cwd="/",
        start_new_session=True,
    )
    verdict, problem = process.communicate(marshal.dumps({**job, "names": list(names)}))
    if process.returncode == -14:
        return b""
    if process.returncode != 0 or not verdict:
        raise RuntimeError(f"the sandbox ({level}) did not start: {problem.decode(errors='replace').strip()[-300:]}")
    return verdict
