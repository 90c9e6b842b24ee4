"""Records of studies in the store: which entries each of them refers to, so that the rest may go."""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from conf.errors import UserError
from pipelines.checkpoints.untrusted import read_json
from pipelines.store.fields import misfit
from pipelines.store.store import Entry, Store

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
    store: Store, name: str, kind: str, key: str, keys: dict[str, list[str]], pools: dict[str, list[str]] | None = None
) -> Path:
    """Write the record of a study, whose ``key`` tells it from others of its name, whole or not at all."""
    plain = re.sub(r"[^\w.-]+", "_", name)
    file = store.root / FOLDER / f"{plain}-{key[:8]}.json"
    file.parent.mkdir(exist_ok=True)
    record = {"name": name, "kind": kind, "made": time.time(), "keys": keys, "pools": pools or {}}
    with store.draft(plain) as draft:
        (draft / file.name).write_text(json.dumps(record, indent=1) + "\n")
        os.replace(draft / file.name, file)
    return file


def studies(store: Store) -> list[Record]:
    """All records, by name and age."""
    found = []
    for file in sorted((store.root / FOLDER).glob("*.json")):
        try:
            fields = read_json(file)
            if wrong := misfit(FOLDER, fields):
                raise ValueError(f"{wrong} is not what a record says")
            found.append(Record(file, **fields))
        except (UserError, TypeError, ValueError) as error:
            store.set_aside(file, f"{FOLDER}-{file.name}", f"the record of a study is damaged: {error}")
    return sorted(found, key=lambda r: (r.name, r.made))


def mean(values: Sequence[float | None]) -> float | None:
    """The mean score, of tasks or of models; None where one is missing."""
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known and len(known) == len(values) else None


def mean_score(key: str, store: Store) -> float | None:
    """Mean over the tasks of a trial's result; None where the store holds no complete one."""
    about = store.read(Entry("results", key, store.folder("results", key)))
    if about is None or about.get("incomplete"):
        return None
    return mean([task["value"] for task in about["tasks"].values()])
