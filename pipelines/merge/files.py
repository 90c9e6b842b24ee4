"""Which files of a folder hold its weights."""

from __future__ import annotations

import json
from collections.abc import Collection
from fnmatch import fnmatch
from pathlib import Path

from conf.errors import UserError

ADAPTER = "adapter_config.json"


def weight_files(folder: Path, allow_pickle: bool = False, there: Collection[str] | None = None) -> list[Path]:
    """Weight files of a checkpoint or adapter folder, sharded or single; pickled ones only where allowed.

    ``there`` are the names of files that the folder holds or will hold, for one whose weights are still elsewhere; an
    index has to be in the folder. Raises ``UserError`` where the folder is no model, a shard is missing, or only
    pickled weights are there.
    """
    names = _files_below(folder) if there is None else there
    stem = "adapter_model" if ADAPTER in names else "model"
    found = _of_kind(folder, stem, "safetensors", names)
    if found:
        return found
    pickled = _of_kind(folder, "adapter_model" if stem == "adapter_model" else "pytorch_model", "bin", names)
    if pickled and allow_pickle:
        return pickled
    if pickled:
        raise UserError(
            "weights are pickled (.bin), which can run code when loaded by other tools",
            where=str(folder),
            do="convert them to safetensors, or allow pickled weights explicitly",
        )
    shown = ", ".join(sorted(names)[:6]) or "nothing"
    raise UserError(
        f"the folder holds no model weights (it holds {shown})", where=str(folder), do="give a model folder"
    )


def _files_below(folder: Path) -> list[str]:
    return [entry.name for entry in folder.iterdir() if entry.is_file()]


def _of_kind(folder: Path, stem: str, ending: str, names: Collection[str]) -> list[Path]:
    """Files listed by the index, else the single file, else shards named i-of-n."""
    index = folder / f"{stem}.{ending}.index.json"
    if index.is_file():
        try:
            listed = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
        except (ValueError, KeyError, AttributeError) as error:
            raise UserError("the weight index cannot be read", where=str(index), do="fetch it again") from error
        return _all_there(folder, listed, names)
    if f"{stem}.{ending}" in names:
        return [folder / f"{stem}.{ending}"]
    shards = sorted(name for name in names if fnmatch(name, f"{stem}-*-of-*.{ending}"))
    if not shards:
        return []
    count = int(Path(shards[0]).stem.rsplit("-of-", 1)[1])
    return _all_there(folder, [f"{stem}-{i:05d}-of-{count:05d}.{ending}" for i in range(1, count + 1)], names)


def _all_there(folder: Path, listed: list[str], names: Collection[str]) -> list[Path]:
    missing = [name for name in listed if name not in names and not (folder / name).is_file()]
    if missing:
        raise UserError(
            f"the checkpoint is incomplete: {', '.join(missing[:3])}{' …' if len(missing) > 3 else ''} missing",
            where=str(folder),
            do="fetch it again",
        )
    return [folder / name for name in listed]


def read_json(file: Path) -> dict:
    """Fields of a JSON file; empty where there is no file; ``UserError`` where it cannot be read."""
    if not file.is_file():
        return {}
    try:
        return dict(json.loads(file.read_text(encoding="utf-8")))
    except (ValueError, TypeError) as error:
        raise UserError(f"{file.name} is no valid JSON", where=str(file.parent), do="fetch it again") from error
