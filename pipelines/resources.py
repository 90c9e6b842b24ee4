"""What a study needs of the machine and what there is: downloads, disk, memory, hours. Known from headers alone."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import psutil

from conf.schema import Config
from pipelines.checkpoints.headers import CODES, itemsize
from pipelines.checkpoints.hub import RemoteCheckpoint
from pipelines.sources import Access
from pipelines.study import Planned
from pipelines.trial import Trial

RESULT = 200_000
"""Bytes of one trial's result, about."""


def to_fetch(planned: Sequence[Planned], access: Access) -> list[RemoteCheckpoint]:
    """The checkpoints whose weights are still on the hub, of models that have to be run."""
    folders = dict.fromkeys(folder for p in planned for folder in p.folders)
    return [remote for folder in folders if (remote := access.hub.unfetched(folder)) is not None]


def resources(config: Config, access: Access, todo: Sequence[Planned], planned: Sequence[Planned]) -> dict[str, Any]:
    """Bytes and hours that running ``todo`` takes, and what is free.

    ``disk_needed`` holds the downloads too where the hub's cache is on the store's disk; ``fetch_free`` is what the
    cache's disk has.
    """
    remote, cache = to_fetch(todo, access), hub_cache()
    bases = dict.fromkeys(p.trial.base.path for p in planned if p.trial)
    model = max((access.headers(path).size_bytes for path in bases), default=0)
    kept = {"none": 0, "best": len(config.pools), "all": sum(p.kind == "merge" for p in todo)}.get(config.keep, 0)
    fetch = sum(checkpoint.to_fetch for checkpoint in remote)
    seconds = measured_seconds(access, config.suite.name)
    return {
        "to_fetch": [{"name": checkpoint.path, "bytes": checkpoint.to_fetch} for checkpoint in remote],
        "fetch_free": shutil.disk_usage(cache).free,
        "disk_free": shutil.disk_usage(access.store.root).free,
        "disk_needed": kept * model + len(todo) * RESULT + (fetch if same_disk(cache, access.store.root) else 0),
        "memory_free": psutil.virtual_memory().available,
        "memory_needed": max((memory(p.trial, access) for p in planned if p.trial), default=0),
        "seconds_a_trial": seconds,
        "hours": None if seconds is None else len(todo) * seconds / 3600,
    }


def short_of_disk(needs: dict[str, Any]) -> tuple[str, int, int] | None:
    """Which disk is too small, with bytes needed and free, if one is."""
    fetch = sum(checkpoint["bytes"] for checkpoint in needs["to_fetch"])
    if needs["disk_needed"] > needs["disk_free"]:
        return "the store", needs["disk_needed"], needs["disk_free"]
    if fetch > needs["fetch_free"]:
        return "the hub's cache", fetch, needs["fetch_free"]
    return None


def memory(trial: Trial, access: Access) -> int:
    """Bytes of the live model in the suite's dtype and of the largest tensor's float32 working set.

    With K experts merged that is the base's, the experts' and the merged tensor: 4·(K + 2) bytes an element.
    """
    header = access.headers(trial.base.path).header
    width = itemsize(trial.suite.dtype) if trial.suite.dtype in CODES else 4
    largest = max((info.count for info in header.values()), default=0)
    work = 4 * largest * (len(trial.experts) + 2) if trial.merge else 0
    return sum(info.count for info in header.values()) * width + work


def measured_seconds(access: Access, suite: str) -> float | None:
    """Median seconds of the latest trials of a suite, or None where nothing was measured."""
    times = []
    for entry in access.store.entries("results")[-200:]:
        about = entry.describe()
        if about.get("suite") == suite and about.get("trial") == "merge":
            times.append(sum(about.get("seconds", {}).values()))
    return sorted(times)[len(times) // 2] if times else None


def hub_cache() -> Path:
    """The folder that the hub client keeps snapshots in, or the nearest folder above it that exists."""
    from huggingface_hub import constants

    folder = Path(constants.HF_HUB_CACHE).expanduser().absolute()
    return next(place for place in (folder, *folder.parents) if place.exists())


def same_disk(a: Path, b: Path) -> bool:
    """Whether two folders share their free space."""
    return a.stat().st_dev == b.stat().st_dev
