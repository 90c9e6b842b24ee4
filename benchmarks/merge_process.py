"""Whole merging processes: mergebench merge against mergekit-yaml, wall time and memory; and merging against reading.

    python -m benchmarks.merge_process                   # a Llama of about 0.5e9 parameters, bf16, 4 and 12 experts
    python -m benchmarks.merge_process --billions 0.02   # small
    python -m benchmarks.merge_process --only reading    # a running program's merges against reading the same bytes

Needs about 25 GB of disk for the full size. Memory is what the process holds for itself (unique set size, sampled):
pages of mapped checkpoints, which the system can drop, do not count.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import psutil
import torch
import yaml

from mergeopt_core.merging import check_parameters, describe
from pipelines.checkpoints.checkpoint import open_checkpoint
from pipelines.merge.recipe import Recipe
from pipelines.merge.stream import Merge

CASES = [("linear", 4), ("linear", 12), ("task_arithmetic", 4), ("ties", 4), ("dare_linear", 4)]
CASES += [("model_stock", 4)]


def make_llama(folder: Path, billions: float, experts: int) -> list[Path]:
    """A random bf16 Llama and experts a small step away, as checkpoints."""
    from transformers import LlamaConfig, LlamaForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()
    hidden, layers = (1024, 34) if billions >= 0.4 else (256, 8)
    config = LlamaConfig(
        vocab_size=32000, hidden_size=hidden, intermediate_size=hidden * 11 // 4, num_hidden_layers=layers,
        num_attention_heads=hidden // 64, num_key_value_heads=hidden // 64,
    )  # fmt: skip
    model = LlamaForCausalLM(config).to(torch.bfloat16)
    print(f"{sum(p.numel() for p in model.parameters()) / 1e6:.0f}M parameters")
    paths = [folder / "base", *(folder / f"expert{k}" for k in range(experts))]
    for path in paths:
        model.save_pretrained(path, max_shard_size="500MB")
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter) * 2e-3)
    return paths


def line(what: str, theirs: tuple[float, float], mine: tuple[float, float]) -> None:
    ratio = theirs[0] / mine[0]
    verdict = "met" if ratio >= 1 else "MISSED"
    memory = f"peak {theirs[1]:.2f} GB, {mine[1]:.2f} GB"
    print(f"{what:<32} {theirs[0]:7.1f} s {mine[0]:7.1f} s {ratio:6.2f}×  bar 1× {verdict}  {memory}", flush=True)


def peak(command: list[str]) -> tuple[float, float]:
    """Wall seconds of a process, and in a second run (sampling slows it down) its largest unique set size in GB."""
    start = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    seconds, most = time.perf_counter() - start, 0.0
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    watched = psutil.Process(process.pid)
    while process.poll() is None:
        with contextlib.suppress(psutil.Error):
            most = max(most, watched.memory_full_info().uss / 1e9)
        time.sleep(0.05)
    return seconds, most


def processes(folder: Path, models: list[Path]) -> None:
    """Each case once by each program, bf16 in and out, float32 arithmetic."""
    base, *experts = models
    programs = Path(sys.executable).parent
    for method, count in CASES:
        chosen = [str(path) for path in experts[:count]]
        given = {k: v for k, v in check_parameters(method, {}, count).items() if k in ("weight", "density")}
        document = {"merge_method": method, "dtype": "float32", "out_dtype": "bfloat16"}
        document["models"] = [{"model": path, "parameters": given} for path in chosen]
        document |= {"base_model": str(base)} if describe(method).needs_base else {}
        (folder / "config.yaml").write_text(yaml.safe_dump(document))
        theirs = peak([str(programs / "mergekit-yaml"), str(folder / "config.yaml"), str(folder / "theirs")])
        call = [
            sys.executable,
            "-c",
            "from cli.app import main; main()",
            "merge",
            f"base.path={base}",
            f"method={method}",
        ]
        places = [f"out={folder / 'ours'}", f"store={folder / 'store'}"]
        mine = peak([*call, f"experts=[{','.join(chosen)}]", *places])
        line(f"{method}, {count} experts", theirs, mine)
        for made in ("theirs", "ours"):
            assert list((folder / made).glob("*.safetensors")), made
            shutil.rmtree(folder / made)


def seconds(call: Callable[[], object], count: int = 3, before: Callable[[], object] = list) -> float:
    """Median wall seconds after a first call that warms up; ``before`` comes before each and is not timed."""
    taken = []
    for _ in range(count + 1):
        before()
        start = time.perf_counter()
        call()
        taken.append(time.perf_counter() - start)
    return statistics.median(taken[1:])


def read(folders: list[Path]) -> None:
    """All bytes of the checkpoints' weights, a piece at a time into one piece of memory."""
    piece = memoryview(bytearray(1 << 22))
    for folder in folders:
        for file in sorted(folder.glob("*.safetensors")):
            with open(file, "rb", buffering=0) as opened:
                while opened.readinto(piece):
                    pass


def merged(recipe: Recipe, paths: list[Path]) -> None:
    """Every tensor of a merge in memory, checkpoints opened anew."""
    base, *experts = (open_checkpoint(str(path)) for path in paths)
    for _ in Merge(recipe, base, experts, [str(path) for path in paths[1:]]).tensors():
        pass


def forget(folders: list[Path]) -> None:
    """Ask the system to drop what it holds of the checkpoints' files, so that they come from the disk."""
    os.sync()
    for file in (file for folder in folders for file in folder.glob("*.safetensors")):
        with open(file, "rb") as opened:
            os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def reading(models: list[Path]) -> None:
    """Elementwise methods in a running program against reading the same files, from the disk and from memory."""
    print("\nin a running program: seconds of reading the files, of merging them")
    for count in (4, 12):
        paths = models[: 1 + count]
        for method in ("linear", "task_arithmetic", "dare"):
            with_base = paths if describe(method).needs_base else paths[1:]
            recipe = Recipe(str(paths[0]), tuple(map(str, paths[1:])), method, {}, dtype="bfloat16")
            for place, before in (("disk", forget), ("memory", list)):
                least = seconds(partial(read, with_base), before=partial(before, paths))
                ours = seconds(partial(merged, recipe, paths), before=partial(before, paths))
                verdict = f"bar 2× {'met' if ours <= 2 * least else 'MISSED'}"
                what = f"{method}, {count} experts, from {place}"
                print(f"{what:<40} {least:7.2f} s {ours:7.2f} s {ours / least:6.2f}×  {verdict}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--billions", type=float, default=0.5)
    parser.add_argument("--folder", help="where checkpoints are made; default: the system's temporary folder")
    parser.add_argument("--only", choices=["processes", "reading"], help="one of the two parts")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=given.folder) as name:
        models = make_llama(Path(name), given.billions, 12)
        if given.only != "reading":
            processes(Path(name), models)
        if given.only != "processes":
            reading(models)


if __name__ == "__main__":
    main()
