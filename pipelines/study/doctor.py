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

PACKAGES = (
    "mergebench",
    "torch",
    "transformers",
    "mergekit",
    "lm-eval",
    "hydra-core",
    "omegaconf",
    "datasets",
    "peft",
    "pandas",
)
OPTIONAL = {"ray": "executor=ray", "optuna": "mergebench search", "tensorboard": "training.reporters=[tensorboard]"}


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at: ``state`` is ok, note or problem."""

    subject: str
    state: str
    what: str
    do: str = ""


def examine(config: Config) -> list[Finding]:
    """Look at versions, devices, memory, disk, the hub, mirrors and the compiler."""
    checks = (_python(), _packages(), _devices(), _memory(), _disk(config), _hub(config), _mirror(config), _compiler())
    return [finding for check in checks for finding in check]


def _python() -> Iterator[Finding]:
    good = sys.version_info >= (3, 10)
    yield Finding(
        "Python", "ok" if good else "problem", platform.python_version(), "" if good else "use Python 3.10 or newer"
    )


def _packages() -> Iterator[Finding]:
    for name in PACKAGES:
        try:
            yield Finding(name, "ok", version(name))
        except PackageNotFoundError:
            yield Finding(name, "problem", "not installed", "pip install mergebench")
    for name, use in OPTIONAL.items():
        try:
            yield Finding(name, "ok", version(name))
        except PackageNotFoundError:
            yield Finding(name, "note", "not installed (optional)", f"needed only for {use}")


def _devices() -> Iterator[Finding]:
    import torch

    if not torch.cuda.is_available():
        yield Finding(
            "GPU",
            "note",
            "none that torch can use",
            "everything runs on the CPU; large models need a GPU and a CUDA build of torch",
        )
    for index in range(torch.cuda.device_count()):
        free, total = torch.cuda.mem_get_info(index)
        yield Finding(
            f"GPU {index}", "ok", f"{torch.cuda.get_device_name(index)}, {free / 1e9:.0f} of {total / 1e9:.0f} GB free"
        )
    yield Finding("CPU", "ok", f"{os.cpu_count()} cores, torch uses {torch.get_num_threads()} threads")


def _memory() -> Iterator[Finding]:
    memory = psutil.virtual_memory()
    low = memory.available < 2e9
    text = f"{memory.available / 1e9:.1f} of {memory.total / 1e9:.1f} GB free"
    yield Finding("memory", "problem" if low else "ok", text, "close other programs" if low else "")


def _disk(config: Config) -> Iterator[Finding]:
    folder = Path(config.store).expanduser().absolute()
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    if not os.access(folder, os.W_OK):
        yield Finding("store", "problem", f"{folder} cannot be written", "name another folder with store=DIR")
    low = free < 5e9
    yield Finding(
        "disk",
        "problem" if low else "ok",
        f"{free / 1e9:.0f} GB free at {folder}",
        "`mergebench gc`, or store=DIR on a larger disk" if low else "",
    )


def _hub(config: Config) -> Iterator[Finding]:
    if not config.online or os.environ.get("HF_HUB_OFFLINE") == "1":
        yield Finding("Hugging Face hub", "note", "offline by choice", "hub ids work only where they are cached")
        return
    from huggingface_hub import constants, get_token

    try:
        urllib.request.urlopen(urllib.request.Request(constants.ENDPOINT, method="HEAD"), timeout=3.0).close()
    except urllib.error.HTTPError:
        pass  # it answered
    except OSError:
        advice = "use folders as checkpoints and datasets=DIR, or set online=false to skip this look"
        yield Finding("Hugging Face hub", "note", f"{constants.ENDPOINT} cannot be reached", advice)
        return
    token = "signed in" if get_token() else "no token"
    yield Finding(
        "Hugging Face hub",
        "ok",
        f"{constants.ENDPOINT} answers, {token}",
        "" if get_token() else "`hf auth login` for gated models",
    )


def _mirror(config: Config) -> Iterator[Finding]:
    if config.datasets is None:
        yield Finding("data sets", "note", "no local mirror", "datasets=DIR points stock tasks at one")
        return
    folder = Path(config.datasets)
    if not folder.is_dir():
        yield Finding("data sets", "problem", f"there is no folder {folder}", "mend datasets=DIR")
        return
    found = sorted(p.relative_to(folder).as_posix() for p in folder.glob("*/*") if p.is_dir())
    state = "ok" if found else "problem"
    yield Finding(
        "data sets", state, f"{len(found)} in {folder}", "" if found else "lay data sets out as DIR/organisation/name"
    )


def _compiler() -> Iterator[Finding]:
    found = shutil.which("c++") or shutil.which("g++") or shutil.which("clang++")
    yield Finding(
        "C++ compiler",
        "ok" if found else "note",
        found or "none",
        "" if found else "MergOPT draws its offsets somewhat slower without one",
    )
