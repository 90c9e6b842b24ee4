"""Commands run in forked copies of a warm process, with limits on time and memory, and what became of them."""

from __future__ import annotations

import gc
import math
import os
import resource
import signal
import sys
import time
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

SECONDS = 20
"""Of the processor's time, at most; of the clock's, on a busy machine, ``BUSY`` times as many."""
BUSY = 6
MOST = 2 << 30
"""Bytes of resident memory that no command on a tiny model may take."""
ROOM = 6 << 30
"""Bytes of address space that a command gets beside what the warm process has mapped already."""


@dataclass(frozen=True)
class Ran:
    """How one command ended."""

    args: tuple[str, ...]
    code: int | None
    """None where it hung; negative for a signal."""
    out: str
    err: str
    seconds: float
    memory: int

    @property
    def fault(self) -> str:
        """What is wrong with the way in which it ended; empty for nothing."""
        if self.code in (None, -signal.SIGXCPU):
            return "hang"
        if "Traceback" in self.err + self.out:
            return "traceback"
        if self.code < 0:
            return f"signal {-self.code}"
        if self.memory > MOST:
            return "memory"
        lines = [line for line in self.err.splitlines() if line.startswith("error")]
        if self.code == 2 and len(lines) != 1:
            return f"{len(lines)} error lines"
        if "\x1b]" in self.out + self.err or "\x1b[31mEVIL" in self.out + self.err:
            return "escape"
        return "" if self.code in (0, 1, 2) else f"code {self.code}"


def warm() -> None:
    """Import what commands import, so that forks need not; figures are not drawn, which would take most of the time."""
    import datasets  # noqa: F401
    import lm_eval.evaluator
    import lm_eval.models.huggingface  # noqa: F401
    import peft  # noqa: F401
    import torch
    import transformers  # noqa: F401
    import vl_convert
    from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM, Trainer  # noqa: F401

    import cli.app  # noqa: F401
    import conf.compose  # noqa: F401
    import mergeopt_core.merging  # noqa: F401
    import pipelines.evaluate.evaluator
    import pipelines.finetune.train
    import pipelines.search.run
    import pipelines.study.single
    import pipelines.study.sweep
    import pipelines.upkeep.export
    import pipelines.upkeep.verify  # noqa: F401

    vl_convert.vegalite_to_svg, vl_convert.svg_to_png = (lambda spec: "<svg >"), (lambda svg, scale: b"")
    vl_convert.javascript_bundle = lambda source: ""  # V8 ends the process by SIGTRAP where its address space is short
    torch.set_num_threads(1)
    gc.collect()
    gc.freeze()  # what is there already is not touched, and so not copied, by forks


def run(args: Sequence[str], cwd: Path, stop: int = 0, at: float = math.inf, texts: Path | None = None) -> Ran:
    """Run ``mergebench ARGS`` in a fork of this process, in the folder ``cwd``, stopped by a signal ``at`` seconds."""
    out, err = ((texts or cwd) / name for name in (".out.txt", ".err.txt"))
    start = time.perf_counter()
    child = os.fork()
    if child == 0:
        _become(args, cwd, out, err)
    code: int | None = None
    usage = None
    while usage is None:
        done, status, found = os.wait4(child, os.WNOHANG)
        if done:
            code, usage = os.waitstatus_to_exitcode(status), found
        elif time.perf_counter() - start > at:
            os.kill(child, stop)
            at = math.inf
        elif time.perf_counter() - start > BUSY * SECONDS:
            os.kill(child, signal.SIGKILL)
            usage = os.wait4(child, 0)[2]
        else:
            time.sleep(0.005)
    said = [file.read_text(errors="backslashreplace") for file in (out, err)]
    for file in (out, err):
        file.unlink()
    return Ran(tuple(args), code, *said, time.perf_counter() - start, usage.ru_maxrss * 1024)


def _become(args: Sequence[str], cwd: Path, out: Path, err: Path) -> None:
    """In the fork: never returns."""
    code = 70
    try:
        os.chdir(cwd)
        for stream, file in ((1, out), (2, err)):
            os.dup2(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644), stream)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        most = pages * resource.getpagesize() + ROOM
        resource.setrlimit(resource.RLIMIT_AS, (most, most))
        resource.setrlimit(resource.RLIMIT_CPU, (int(SECONDS), int(SECONDS) + 1))
        _no_rights()
        sys.argv = ["mergebench", *args]
        sys.stdout, sys.stderr = (os.fdopen(stream, "w", buffering=1, closefd=False) for stream in (1, 2))
        from mergebench import main

        from cli import terminal

        terminal.out.file, terminal.err.file = sys.stdout, sys.stderr
        main()
        code = 0
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    except BaseException:
        traceback.print_exc(file=sys.stderr)
        code = 1
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _no_rights() -> None:
    """Take root's right to open what it may not: files without permissions are such in a test too."""
    import ctypes

    header, sets = (ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)()
    libc = ctypes.CDLL(None)
    libc.capget(header, sets)
    for place in range(3):  # effective, permitted, inheritable
        sets[place] &= ~0b110  # CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH
    libc.capset(header, sets)
