"""From an entry of the store back to the checkpoints it names, and to the merge that its recipe makes."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from conf.errors import UserError
from pipelines.collect import open_statistics
from pipelines.merge.recipe import Recipe
from pipelines.merge.stream import Merge
from pipelines.sources import Access, Source
from pipelines.store import Store


def located(source: Mapping[str, Any], store: Store) -> Source:
    """Where recorded weights are now: in their folder, or under their key where the store has moved.

    Raises UserError where they are in neither place.
    """
    path = Path(source["path"])
    if not path.is_dir():
        path = store.folder(path.parent.name, path.name)
    if not path.is_dir():
        do = "put the checkpoint back, or make it again by the command that made it"
        raise UserError(f"{source['path']} is gone", where=str(store.root), do=do)
    return Source(str(path), source["fingerprint"])


def sources_of(about: Mapping[str, Any], store: Store) -> list[Source]:
    """The base and the experts of a result or merge, in order."""
    return [located(source, store) for source in (about["base"], *about["experts"])]


def merge_of(about: Mapping[str, Any], access: Access) -> Merge:
    """The merge that a result's or a kept merge's recipe makes, with its checkpoints open."""
    base, *experts = sources_of(about, access.store)
    recipe = dataclasses.replace(
        Recipe.from_dict(about["recipe"]), base=base.path, experts=tuple(expert.path for expert in experts)
    )
    statistics = [open_statistics(located(source, access.store)) for source in about.get("statistics", [])]
    return Merge(
        recipe,
        access.open(base.path),
        [access.open(expert.path) for expert in experts],
        [expert.fingerprint for expert in experts],
        base_id=base.fingerprint,
        statistics=statistics or None,
    )
