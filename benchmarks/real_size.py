"""Checkpoints of real shapes: merging them to disk by each method, and what a study's trials read.

    python -m benchmarks.real_size                                  # 1B, 4 experts: mergebench merge and mergekit-yaml
    python -m benchmarks.real_size --shape 8b --experts 2 --methods linear task_arithmetic ties --alone
    python -m benchmarks.real_size --study --shape 0.1b --experts 12  # 3 methods × 10 subsets: bytes read per trial

Random bf16 weights in the shapes of Llama 3.1 and 3.2, float32 arithmetic. Memory is what a process holds for itself:
pages of mapped files, which the system can drop, do not count. Of a study, files are dropped from the system's memory
first, and the bar is 1.5 times the base's size read per trial.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import psutil
import yaml

from benchmarks.evaluate import words
from benchmarks.merge_process import forget
from benchmarks.real_models import SHAPES, word_rows, write_models
from conf.compose import compose
from conf.schema import Checkpoint, Pool, Suite, SuiteTask
from mergeopt_core.merging import check_parameters, describe, names
from pipelines.store.store import Store

METHODS = ("linear", "task_arithmetic", "ties", "dare_linear", "model_stock")
BAR = 1.5


def watched(command: Sequence[object], limit: float) -> dict[str, float]:
    """Wall and processor seconds of one process, and the most that it held for itself in GB."""
    begun, most, cpu = time.perf_counter(), 0.0, 0.0
    process = psutil.Popen([str(word) for word in command], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while process.poll() is None:
        with contextlib.suppress(psutil.Error, OSError):
            most = max(most, anonymous(process.pid))
            cpu = sum(process.cpu_times()[:2])
        if time.perf_counter() - begun > limit:
            process.kill()
            process.wait()
            return {"over": limit, "gb": most}
        time.sleep(0.2)
    return {"s": time.perf_counter() - begun, "cpu": cpu, "gb": most, "failed": process.returncode}


def anonymous(pid: int) -> float:
    """GB that a process holds and that lie in no file."""
    status = Path(f"/proc/{pid}/status").read_text().splitlines()
    return sum(int(line.split()[1]) / 1e6 for line in status if line.startswith(("RssAnon", "RssShmem")))


def merges(folder: Path, models: list[Path], methods: Sequence[str], alone: bool, limit: float) -> None:
    """Each method as a process, here and, where it has the method, by mergekit-yaml."""
    base, *experts = models
    theirs = Path(sys.executable).parent / "mergekit-yaml"
    for method in methods:
        out = folder / "merged"
        call = [sys.executable, "-c", "from cli.app import main; main()", "merge", f"base.path={base}", f"out={out}"]
        call += [f"method={method}", f"experts=[{','.join(map(str, experts))}]", f"store={folder / 'store'}"]
        told = {"here": watched(call, limit)}
        shutil.rmtree(out, ignore_errors=True)
        if not alone and not describe(method).ours:
            given = {k: v for k, v in check_parameters(method, {}, 2).items() if k in ("weight", "density")}
            document = {"merge_method": method, "dtype": "float32", "out_dtype": "bfloat16"}
            document["models"] = [{"model": str(path), "parameters": given} for path in experts]
            document |= {"base_model": str(base)} if describe(method).needs_base else {}
            (folder / "config.yaml").write_text(yaml.safe_dump(document))
            told["mergekit-yaml"] = watched([theirs, folder / "config.yaml", out], limit)
            shutil.rmtree(out, ignore_errors=True)
        for who, figures in told.items():
            shown = "  ".join(f"{name} {value:.3g}" for name, value in figures.items() if value)
            print(f"{method:16} {len(experts)} experts  {who:14} {shown}", flush=True)


def study(folder: Path, models: list[Path]) -> bool:
    """Three methods on ten subsets: bytes read per trial, and where the time goes."""
    forget(models)
    entries, seconds = trials(folder, models, ("linear", "task_arithmetic", "model_stock"), (2, 4, 6, 8, 10), 2)
    size = sum(file.stat().st_size for file in models[0].glob("*.safetensors"))
    read = sum(about["bytes"]["read"] for about in entries) / len(entries) / size
    print(f"{len(entries)} trials of {len(models) - 1} experts of {size / 1e9:.2f} GB: seconds {seconds}")
    print(f"read per trial: {read:.2f} times the base  (bar {BAR}: {'met' if read <= BAR else 'MISSED'})")
    return read <= BAR


def trials(
    folder: Path, models: list[Path], methods: Sequence[str], sizes: Sequence[int], samples: int,
    device: str = "cpu", documents: int = 4, **suite: Any,
) -> tuple[list[dict[str, Any]], dict[str, float]]:  # fmt: skip
    """A study of models on a task of random words: what the store says of its trials, and seconds by part."""
    from pipelines.study.sweep import run_study

    base, *experts = models
    word_rows(folder / "words", documents)
    ((config, _),) = compose([f"store={folder}/store", f"runs={folder}/runs", f"executor.device={device}", "name=real"])
    pool = Pool(experts={path.name: Checkpoint(str(path)) for path in experts})
    pool.base.path = str(base)
    config.pools = {"real": pool}
    config.suite = Suite(tasks={"words": SuiteTask()}, include_path=str(folder / "words"), max_length=2048, **suite)
    config.methods = {name: {"method": name} for name in methods}
    config.sampler.sizes, config.sampler.samples, config.sampler.singles = list(sizes), samples, False
    done = run_study(config)
    for failure in done.outcome.failures:
        raise RuntimeError(f"{failure.trial.title}: {failure.reason}")
    seconds = {part: round(done.seconds.get(part, 0.0), 1) for part in ("plan", "merge", "evaluate", "commit")}
    return [entry.describe() for entry in Store(config.store).entries("results")], seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", default="1b", choices=SHAPES)
    parser.add_argument("--experts", type=int, default=4)
    parser.add_argument("--layers", type=int, help="fewer than the shape has: the same largest tensors, less to do")
    parser.add_argument("--methods", nargs="+", default=METHODS, choices=names())
    parser.add_argument("--alone", action="store_true", help="without mergekit-yaml")
    parser.add_argument("--study", action="store_true")
    parser.add_argument("--limit", type=float, default=400, help="seconds of a process")
    parser.add_argument("--folder", help="where checkpoints are made; default: the system's temporary folder")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=given.folder) as name:
        folder = Path(name)
        begun = time.perf_counter()
        models = write_models(
            folder / "models", given.shape, given.experts, tokenizer=words(folder), layers=given.layers
        )
        os.sync()
        print(f"{len(models)} checkpoints of {given.shape} in {time.perf_counter() - begun:.0f} s", flush=True)
        if given.study:
            raise SystemExit(0 if study(folder, models) else 1)
        merges(folder, models, given.methods, given.alone, given.limit)


if __name__ == "__main__":
    main()
