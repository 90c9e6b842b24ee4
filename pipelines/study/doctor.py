"""What this machine has, and what to do about what it lacks."""

from __future__ import annotations

import os
import platform
import shutil
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import psutil

from conf.schema import Config

PACKAGES = ["torch", "transformers", "mergekit", "lm-eval", "hydra-core", "omegaconf", "datasets", "peft", "pandas"]
OPTIONAL = {
    "ray": "executor=ray", "optuna": "mergebench search", "tensorboard": "training.reporters=[tensorboard]",
    "pillow": "suites and tasks of pictures",
}  # fmt: skip


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at: ``state`` is ok, note or problem."""

    subject: str
    state: str
    what: str
    do: str = ""


def examine(config: Config) -> list[Finding]:
    """Look at versions, devices, memory, disk, the hub, mirrors and the compiler."""
    checks = (_versions(), _devices(), _memory(), _disk(config), _hub(config), _mirror(config), _compiler())
    return [finding for check in checks for finding in check]


def _finding(subject: str, good: bool, what: str, do: str, otherwise: str = "problem") -> Finding:
    """Ok, or what to do about it."""
    return Finding(subject, "ok", what) if good else Finding(subject, otherwise, what, do)


def _versions() -> Iterator[Finding]:
    yield _finding("Python", sys.version_info >= (3, 10), platform.python_version(), "use Python 3.10 or newer")
    for name in ("mergebench", *PACKAGES, *OPTIONAL):
        try:
            yield Finding(name, "ok", version(name))
        except PackageNotFoundError:
            if name in OPTIONAL:
                yield Finding(name, "note", "not installed (optional)", f"needed only for {OPTIONAL[name]}")
            else:
                yield Finding(name, "problem", "not installed", "pip install mergebench")


def _devices() -> Iterator[Finding]:
    import torch

    if not torch.cuda.is_available():
        do = "everything runs on the CPU; large models need a GPU and a CUDA build of torch"
        yield Finding("GPU", "note", "none that torch can use", do)
    for index in range(torch.cuda.device_count()):
        free, total = torch.cuda.mem_get_info(index)
        what = f"{torch.cuda.get_device_name(index)}, {free / 1e9:.0f} of {total / 1e9:.0f} GB free"
        yield Finding(f"GPU {index}", "ok", what)
    yield Finding("CPU", "ok", f"{os.cpu_count()} cores, torch uses {torch.get_num_threads()} threads")


def _memory() -> Iterator[Finding]:
    memory = psutil.virtual_memory()
    what = f"{memory.available / 1e9:.1f} of {memory.total / 1e9:.1f} GB free"
    yield _finding("memory", memory.available >= 2e9, what, "close other programs")


def _disk(config: Config) -> Iterator[Finding]:
    store = Path(config.store).expanduser().absolute()
    folder = next(place for place in (store, *store.parents) if place.exists())
    free = shutil.disk_usage(folder).free
    if not os.access(folder, os.W_OK):
        yield Finding("store", "problem", f"{folder} cannot be written", "name another folder with store=DIR")
    do = "`mergebench gc`, or store=DIR on a larger disk"
    yield _finding("disk", free >= 5e9, f"{free / 1e9:.0f} GB free at {folder}", do)


def _hub(config: Config) -> Iterator[Finding]:
    subject = "Hugging Face hub"
    if not config.online or os.environ.get("HF_HUB_OFFLINE") == "1":
        yield Finding(subject, "note", "offline by choice", "hub ids work only where they are cached")
        return
    from huggingface_hub import constants, get_token

    try:
        urllib.request.urlopen(urllib.request.Request(constants.ENDPOINT, method="HEAD"), timeout=3.0).close()
    except urllib.error.HTTPError:
        pass  # it answered
    except OSError:
        advice = "use folders as checkpoints and datasets=DIR, or set online=false to skip this look"
        yield Finding(subject, "note", f"{constants.ENDPOINT} cannot be reached", advice)
        return
    known, do = ("signed in", "") if get_token() else ("no token", "`hf auth login` for gated models")
    yield Finding(subject, "ok", f"{constants.ENDPOINT} answers, {known}", do)


def _mirror(config: Config) -> Iterator[Finding]:
    if config.datasets is None:
        yield Finding("data sets", "note", "no local mirror", "datasets=DIR points stock tasks at one")
        return
    folder = Path(config.datasets)
    if not folder.is_dir():
        yield Finding("data sets", "problem", f"there is no folder {folder}", "mend datasets=DIR")
        return
    count = sum(path.is_dir() for path in folder.glob("*/*"))
    yield _finding("data sets", count > 0, f"{count} in {folder}", "lay data sets out as DIR/organisation/name")


def _compiler() -> Iterator[Finding]:
    found = shutil.which("c++") or shutil.which("g++") or shutil.which("clang++")
    do = "MergOPT draws its offsets somewhat slower without one"
    yield _finding("C++ compiler", found is not None, found or "none", do, "note")
