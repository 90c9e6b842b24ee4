"""What the norm of an update costs a merge, and geometry of 12 experts against reading and subtracting them.

    python -m benchmarks.geometry            # a model of about 20 million parameters, about two minutes
    python -m benchmarks.geometry --quick    # a million, for a look

Calls that are compared take turns within a round; numbers are medians over rounds, on one CPU thread.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from pipelines.checkpoints.checkpoint import OpenCheckpoint, open_checkpoint
from pipelines.checkpoints.fingerprint import WeightHash
from pipelines.geometry.measure import measure
from pipelines.geometry.tables import laws
from pipelines.merge.recipe import Recipe
from pipelines.merge.stream import Merge

SIZES = {"tiny": (96, 2, 50), "20M": (512, 6, 1000), "1M": (128, 4, 500)}
"""Width, layers and vocabulary."""


def save_pool(folder: Path, size: str, count: int, dtype: torch.dtype) -> tuple[OpenCheckpoint, list[OpenCheckpoint]]:
    """A random base and experts a small step away from it, on disk."""
    hidden, layers, vocabulary = SIZES[size]
    config = LlamaConfig(
        vocab_size=vocabulary, hidden_size=hidden, intermediate_size=3 * hidden, num_hidden_layers=layers,
        num_attention_heads=8, num_key_value_heads=8,
    )  # fmt: skip
    torch.manual_seed(0)
    model = LlamaForCausalLM(config)
    base = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    made = []
    for k in range(count + 1):
        if k:
            model.load_state_dict({n: t + 1e-3 * torch.randn_like(t) for n, t in base.items()})
        model.to(dtype).save_pretrained(folder / f"{k}")
        model.float()
        made.append(open_checkpoint(str(folder / f"{k}")))
    return made[0], made[1:]


def rounds(calls: dict[str, Callable[[], object]], count: int) -> dict[str, float]:
    """Median seconds of each call, taking turns."""
    taken: dict[str, list[float]] = {name: [] for name in calls}
    for turn in range(count + 1):
        for name, call in calls.items():
            start = time.process_time()
            call()
            if turn:  # the first one warms up
                taken[name].append(time.process_time() - start)
    return {name: statistics.median(times) for name, times in taken.items()}


def norms(size: str, dtype: torch.dtype, folder: Path, count: int) -> None:
    """A merge as a trial makes it, with and without the norm of its update."""
    base, experts = save_pool(folder, size, 4, dtype)
    ids = [f"e{k}" for k in range(4)]

    def merge(method: str, measured: bool) -> None:
        made = Merge(Recipe("base", tuple(ids), method), base, experts, ids, base_id="base")
        made.digest, made.origin = WeightHash(), base if measured else None
        for _ in made.tensors():
            pass

    for method in ("linear", "ties"):
        took = rounds({"without": lambda m=method: merge(m, False), "with": lambda m=method: merge(m, True)}, count)
        share = took["with"] / took["without"] - 1
        kind = str(dtype).removeprefix("torch.")
        print(f"norm, {size} {kind} {method} of 4: {took['without']:.4f} s without, {share:+.1%} with", flush=True)


def twelve(size: str, dtype: torch.dtype, folder: Path, count: int) -> None:
    """The pass over 12 experts beside reading and subtracting them, and what it holds at its peak."""
    base, experts = save_pool(folder, size, 12, dtype)
    opened = {f"e{k}": expert for k, expert in enumerate(experts)}

    def subtract() -> None:
        for name in base.header:
            origin = base.tensor(name).float()
            for expert in experts:
                expert.tensor(name).float() - origin
            for checkpoint in (base, *experts):  # as whoever holds one tensor of each has to
                checkpoint.release(name)

    quiet = {"laws": lambda: measure(base, opened, 1_000_000), "pass": lambda: measure(base, opened)}
    took = rounds({"subtract": subtract, **quiet}, count)
    kind = str(dtype).removeprefix("torch.")
    print(f"12 experts, {size} {kind}: reading and subtracting {took['subtract']:.3f} s", flush=True)
    for name, what in (("pass", "inner products"), ("laws", "and a sample of a million entries")):
        ratio = took[name] / took["subtract"]
        print(f"  {what}: {took[name]:.3f} s, {ratio:.2f}x, bar 2x {'met' if ratio <= 2 else 'MISSED'}", flush=True)
    start = time.process_time()
    laws(measure(base, opened, 1_000_000))
    print(f"  with fits and histograms of 13 vectors: {time.process_time() - start:.3f} s", flush=True)
    group = 13 * max(info.size for info in base.header.values()) / 1e6
    whole = 13 * sum(info.size for info in base.header.values()) / 1e6
    held, sampled = peak(folder, 0), peak(folder, 1_000_000)
    print(f"  one tensor of each checkpoint {group:.0f} MB, all of them {whole:.0f} MB; the pass holds {held:.0f} MB,"
          f" with the sample (12 million entries and their places: 56 MB) {sampled:.0f} MB", flush=True)  # fmt: skip


def peak(folder: Path, sample: int) -> float:
    """MB by which the resident memory of a process grows at most in the pass; mapped pages of checkpoints count too."""
    script = (
        "import re, sys; from pathlib import Path; from pipelines.checkpoints.checkpoint import open_checkpoint\n"
        "from pipelines.geometry.measure import measure\n"
        "def kilobytes(name): return int(re.search(name + r':\\s+(\\d+)', Path('/proc/self/status').read_text())[1])\n"
        "made = [open_checkpoint(str(Path(sys.argv[1]) / str(k))) for k in range(13)]\n"
        "measure(made[0], {'1': made[1]}, 1000)  # what is loaded once is no part of it\n"
        "Path('/proc/self/clear_refs').write_text('5')  # the peak begins anew\n"
        "before = kilobytes('VmRSS')\n"
        "measure(made[0], {str(k): m for k, m in enumerate(made[1:])}, int(sys.argv[2]))\n"
        "print((kilobytes('VmHWM') - before) / 1000)"
    )
    run = [sys.executable, "-c", script, str(folder), str(sample)]
    return float(subprocess.run(run, capture_output=True, text=True, check=True).stdout)


def main() -> None:
    """Run all, or a smaller model."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="a smaller model")
    size = "1M" if parser.parse_args().quick else "20M"
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as scratch:
        norms("tiny", torch.float32, Path(scratch) / "tiny", 20)
        for dtype in (torch.float32, torch.bfloat16):
            norms(size, dtype, Path(scratch) / str(dtype), 5)
            twelve(size, dtype, Path(scratch) / f"twelve {dtype}", 5)


if __name__ == "__main__":
    main()
