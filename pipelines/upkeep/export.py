"""An entry of the store as a checkpoint folder of its own, with its card."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from conf.errors import UserError
from conf.schema import Config
from pipelines.checkpoints.fingerprint import WeightHash
from pipelines.checkpoints.write import new_folder
from pipelines.merge.card import model_card
from pipelines.merge.recipe import Recipe
from pipelines.merge.stream import Merge
from pipelines.merge.write import write_merge
from pipelines.progress import SILENT, Progress
from pipelines.store.integrity import ENTRY
from pipelines.store.provenance import markdown, provenance, scores_markdown
from pipelines.store.records import studies
from pipelines.store.results import pools_of
from pipelines.store.store import Entry, Store, title
from pipelines.study.sources import Access, Source
from pipelines.study.trial import model_key, open_merge
from pipelines.study.worker import Worker


def export(key: str, config: Config, access: Access, progress: Progress = SILENT) -> Entry:
    """Write the checkpoint of an entry into ``config.out``; returns the entry that it was taken from.

    Bases, experts and kept merges are copied; a merge that was only scored is merged again from its recipe and has to
    have the weights that were scored. The card of a scored model tells its scores. Raises UserError for statistics,
    a folder that is not empty, and weights that are no longer what they were.
    """
    if not config.out:
        raise UserError("there is no folder to export to", where="out", do="name one with out=DIR")
    out, entry = empty_place(config.out), access.store.find(key)
    source = checkpoint_of(entry, access.store)
    with new_folder(out, size_of(source)) as beside:
        fill(entry, source, beside, out.name, config, access, progress)
    return entry


def empty_place(name: str) -> Path:
    """The path of a folder that is not there yet, or empty; UserError for another."""
    out = Path(name).expanduser()
    if out.exists() and (out.is_file() or any(out.iterdir())):
        raise UserError("the folder is not empty", where=str(out), do="name a new folder with out=DIR")
    return out


def fill(
    entry: Entry, source: Path | None, folder: Path, name: str, config: Config, access: Access, progress: Progress
) -> None:
    """Put an entry's checkpoint, and the card that calls it ``name``, into an empty folder."""
    if source is None:
        _merge_again(entry.describe(), folder, config, access, progress)
    else:
        _copy(source, folder, name)
    if entry.kind == "results":
        about, card = entry.describe(), folder / "README.md"
        how = markdown({"pool": pools_of(about["key"], studies(access.store)), **provenance(about)})
        parts = (card.read_text(encoding="utf-8").rstrip(), scores_markdown(about), how)
        card.write_text("\n\n".join(parts), encoding="utf-8")


def checkpoint_of(entry: Entry, store: Store) -> Path | None:
    """The folder that holds an entry's checkpoint; None for a merge that was not kept."""
    if entry.kind == "statistics":
        where = f"statistics:{entry.key}"
        raise UserError("statistics are no checkpoint", where=where, do="export an expert or a merge")
    about = entry.describe()
    if not store.has(entry.kind, entry.key, whole=True):
        do = "make it again by the command that made it"
        raise UserError(f"{entry.kind}:{entry.key[:10]} is damaged", where=str(entry.folder), do=do)
    if entry.kind != "results":
        return entry.folder
    if about["recipe"] is None:
        return Path(sources_of(about, store)[-1].path)
    kept = model_key(about["model"])
    return store.folder("merges", kept) if store.has("merges", kept, whole=True) else None


def size_of(folder: Path | None) -> int:
    """Bytes of a folder's files; 0 for none."""
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()) if folder else 0


def _copy(folder: Path, out: Path, name: str) -> None:
    shutil.copytree(folder, out, dirs_exist_ok=True, ignore=shutil.ignore_patterns(ENTRY))
    card = out / "README.md"
    if not card.is_file():
        card.write_text(f"---\nlibrary_name: transformers\n---\n# {name}\n\nExported from a store of mergebench.\n")


def _merge_again(about: dict[str, Any], out: Path, config: Config, access: Access, progress: Progress) -> None:
    """Merge from the recipe. UserError where the weights are not those that were scored."""
    device = Worker(access, config.executor).device
    merge = merge_of(about, access)
    merge.digest = WeightHash()
    made = write_merge(merge, out / "merge", progress, device=str(device))
    for file in made.iterdir():
        file.rename(out / file.name)
    made.rmdir()
    (out / "README.md").write_text(model_card(merge, title(about)))
    if about.get("weights") in (None, merge.digest.hexdigest()):
        return
    what = "merging again gives other weights than those that were scored"
    do = f"see `mergebench verify results:{about['key'][:8]}`; it was merged on {about['device']}"
    raise UserError(what, where=f"executor.device={config.executor.device}", do=do)


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
    information = [located(source, access.store) for source in about.get("statistics", [])]
    return open_merge(Recipe(**about["recipe"]), base, experts, information, access.open)
