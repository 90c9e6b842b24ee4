"""Records of studies in the store: which entries each of them refers to, so that the rest may go."""

from __future__ import annotations

import json
import os
import re
import time
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from pipelines.store.store import Store

FOLDER = "studies"


@dataclass(frozen=True)
class Record:
    """A study as the store remembers it."""

    file: Path
    name: str
    kind: str
    """sweep or search."""
    made: float
    keys: dict[str, list[str]]
    """Keys that it refers to, by kind; under ``pending`` those of checkpoints that were still to be made."""
    pools: dict[str, list[str]] = field(default_factory=dict)
    """Keys of the results of each pool; empty in an older record and in that of a search."""

    @cached_property
    def results(self) -> frozenset[str]:
        """Keys of its results."""
        return frozenset(self.keys.get("results", ()))

    def all_keys(self) -> set[str]:
        """Every key that the study refers to."""
        return {key for keys in self.keys.values() for key in keys}


def write_record(
    store: Store,
    name: str,
    kind: str,
    identity: str,
    keys: Mapping[str, list[str]],
    pools: Mapping[str, list[str]] | None = None,
) -> Path:
    """Write a record beside its place and rename it, so that a reader sees all or nothing."""
    plain = re.sub(r"[^\w.-]+", "_", name)
    file = store.root / FOLDER / f"{plain}-{identity[:8]}.json"
    file.parent.mkdir(exist_ok=True)
    record: dict[str, Any] = {"name": name, "kind": kind, "made": time.time(), "keys": dict(keys)}
    record |= {"pools": dict(pools or {})}
    beside = store.root / "tmp" / f"{file.name}-{uuid.uuid4().hex[:8]}"
    beside.write_text(json.dumps(record, indent=1) + "\n")
    os.replace(beside, file)
    return file


def studies(store: Store) -> list[Record]:
    """All records, by name and age."""
    found = []
    for file in sorted((store.root / FOLDER).glob("*.json")):
        record = json.loads(file.read_text())
        told = (record["name"], record["kind"], record["made"], record["keys"], record.get("pools", {}))
        found.append(Record(file, *told))
    return sorted(found, key=lambda record: (record.name, record.made))


def mean_score(key: str, store: Store) -> float | None:
    """Mean over the tasks of a trial's result; None where the store holds no complete one."""
    if not store.has("results", key, complete=True):
        return None
    values = [task["value"] for task in store.entry("results", key).describe()["tasks"].values()]
    return sum(values) / len(values) if values and None not in values else None
