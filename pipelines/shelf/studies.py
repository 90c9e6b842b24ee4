"""Records of studies in the store: which entries each of them refers to, so that the rest may go."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import time
import uuid
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipelines.store import KINDS, Store, content_key

if TYPE_CHECKING:
    from conf.schema import Config
    from pipelines.plan import Plan
    from pipelines.sources import Access
    from pipelines.trial import Trial

FOLDER = "studies"
IRRELEVANT = ("store", "runs", "out", "executor", "statistics", "keep")
"""Parts of a configuration that change nothing of what a study refers to."""


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


def record_study(config: Config, plan: Plan, access: Access, kept: Sequence[str] = ()) -> Path:
    """Write what a study refers to; the same study again takes the place of its earlier record.

    Of merges these are the ``kept`` ones where only the best are kept, otherwise all of its merges that there are.
    """
    pending = [unmade.key for unmade in plan.layout.unmade if unmade.key]
    keys = trial_keys(plan.layout.trials, access.store) | {"pending": pending}
    if config.keep == "best" and kept:
        keys["merges"] = sorted(kept)
    told = {k: v for k, v in dataclasses.asdict(config).items() if k not in IRRELEVANT}
    pools: dict[str, list[str]] = {name: [] for name in config.pools}
    for planned in plan.layout.planned:
        if planned.trial is not None:
            pools[planned.pool].append(planned.trial.key)
    return write_record(access.store, plan.name, "sweep", content_key(told), keys, pools)


def trial_keys(trials: Iterable[Trial], store: Store) -> dict[str, list[str]]:
    """Keys of trials, and of the bases, experts, statistics and kept merges of the store that belong to them."""
    found: dict[str, set[str]] = {kind: set() for kind in KINDS}
    for trial in trials:
        found["results"].add(trial.key)
        found["statistics"].update(source.fingerprint for source in trial.statistics)
        for source in (trial.base, *trial.experts):
            kind, key = Path(source.path).parent.name, Path(source.path).name
            if kind in ("bases", "experts", "merges") and store.has(kind, key):
                found[kind].add(key)
        if trial.merge is not None and store.has("merges", trial.model_key):
            found["merges"].add(trial.model_key)
    return {kind: sorted(keys) for kind, keys in found.items()}


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
