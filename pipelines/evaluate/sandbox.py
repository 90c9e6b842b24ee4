"""Programs that a model wrote, run in a process of their own with limits.

This keeps a clumsy program from filling memory, disk or time. It is no wall against a malicious one: it has no
isolation of network or files beyond the user's own rights. Run untrusted models in a container.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import tempfile

SECONDS = 10
"""Processor and wall-clock limit of one program."""

MEMORY = 4 << 30
"""Address space in bytes."""

WRITTEN = 16 << 20
"""Largest file, in bytes, and most output that is read."""

_LIMITED = """
import resource, sys
def limit(kind, most):
    hard = resource.getrlimit(kind)[1]
    most = most if hard == resource.RLIM_INFINITY else min(most, hard)
    resource.setrlimit(kind, (most, most))
limit(resource.RLIMIT_CPU, {seconds})
limit(resource.RLIMIT_AS, {memory})
limit(resource.RLIMIT_FSIZE, {written})
limit(resource.RLIMIT_CORE, 0)
source = open(sys.argv[1]).read()
sys.argv = ["program"]
exec(compile(source, "program", "exec"), {{"__name__": "__main__"}})
"""


def passes(program: str, seconds: int = SECONDS) -> bool:
    """Whether a Python program runs to its end without an error."""
    return outputs(program, "", seconds) is not None


def outputs(program: str, given: str = "", seconds: int = SECONDS) -> str | None:
    """What a Python program prints for the given input; None when it fails or overruns its limits."""
    with tempfile.TemporaryDirectory(prefix="program_") as folder:
        path = os.path.join(folder, "program.py")
        with open(path, "w", encoding="utf-8", errors="replace") as file:
            file.write(program)
        start = _LIMITED.format(seconds=seconds, memory=MEMORY, written=WRITTEN)
        with (
            tempfile.TemporaryFile(dir=folder) as printed,
            subprocess.Popen(
                [sys.executable, "-I", "-c", start, path],
                stdin=subprocess.PIPE,
                stdout=printed,
                stderr=subprocess.DEVNULL,
                cwd=folder,
                env={"HOME": folder, "TMPDIR": folder, "PYTHONHASHSEED": "0"},
                start_new_session=True,
            ) as process,
        ):
            try:
                process.communicate(given.encode(), timeout=seconds + 2)
            except subprocess.TimeoutExpired:
                pass
            finally:
                _end(process)
            printed.seek(0)
            text = printed.read(WRITTEN).decode(errors="replace")
    return text if process.returncode == 0 else None


def _end(process: subprocess.Popen) -> None:
    """End a program and whatever it started (its own session)."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
