"""From what a person wrote (a folder or hub id) to a folder on this machine and the files in it that hold weights."""

from __future__ import annotations

import re
from collections.abc import Collection
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from conf.errors import UserError
from pipelines.checkpoints.untrusted import AGAIN, read_json

FILES = ["*.safetensors", "*.json", "*.model", "*.txt", "*.jinja", "*.tiktoken", "*.py"]
"""What is fetched of a hub model."""
LEAVE = ["*/*", "consolidated*", "*.gguf", "training_args*"]
"""What is not: other formats in subfolders, original releases beside the transformers files."""
HUB_ID = re.compile(r"^[\w\-.]+(/[\w\-.]+)?$")


def locate(path: str, *, revision: str | None = None, online: bool = True, allow_pickle: bool = False) -> Path:
    """Folder of the checkpoint that ``path`` names, fetched from the hub (or its cache) where it is a hub id.

    Raises ``UserError`` for a missing folder, a file, an unknown hub id, and a hub that cannot be reached.
    """
    folder = Path(path).expanduser()
    if folder.is_dir():
        return folder.resolve()
    if folder.exists():
        raise UserError(f"{path} is a file", do="give the folder that holds the model")
    if not hub_id(path):
        raise UserError(f"no such folder: {path}", do="give a folder with a model, or a hub id such as org/name")
    return snapshot(path, revision, FILES + (["*.bin"] if allow_pickle else []), offline=not hub_is_asked(online))


def hub_id(path: str) -> bool:
    """Whether a path that a person wrote is read as a hub id: there is no such folder, and it has the form of one."""
    return not path.startswith((".", "/", "~")) and bool(HUB_ID.match(path)) and not Path(path).exists()


def hub_is_asked(online: bool) -> bool:
    """Whether the hub may be asked: neither the configuration nor the hub client's own setting forbids it."""
    from huggingface_hub import constants

    return online and not constants.HF_HUB_OFFLINE


def snapshot(name: str, revision: str | None, patterns: list[str], offline: bool = False, bar: Any = None) -> Path:
    """Snapshot folder of a hub model with the files that match; ``bar`` is the tqdm class that the client moves."""
    from huggingface_hub import snapshot_download

    asked: dict[str, Any] = {"allow_patterns": patterns, "ignore_patterns": LEAVE, "local_files_only": offline}
    try:
        return Path(snapshot_download(name, revision=revision, tqdm_class=bar, **asked))
    except Exception as error:  # the hub client's many errors become one line each
        raise explain(name, revision, offline, error) from error


def explain(name: str, revision: str | None, offline: bool, error: Exception) -> UserError:
    """The line a person needs for what the hub client raised."""
    from huggingface_hub import errors

    if isinstance(error, errors.GatedRepoError):
        what, do = f"{name} is gated on the hub", "accept its terms there, then run: hf auth login"
    elif isinstance(error, errors.RevisionNotFoundError):
        what, do = f"{name} has no revision {revision!r} on the hub", "give a branch, tag or commit that exists"
    elif isinstance(error, (errors.RepositoryNotFoundError, errors.HFValidationError)):
        what, do = f"{name} is neither a folder here nor a model on the hub", "check the spelling"
    elif offline:
        what, do = f"{name} is neither a folder here nor in the local hub cache", "set online=true, or give a folder"
    else:
        what = f"cannot fetch {name} from the hub ({type(error).__name__})"
        do = "check the network, or give a folder"
    return UserError(what, do=do)


ADAPTER = "adapter_config.json"


def weight_files(folder: Path, allow_pickle: bool = False, there: Collection[str] | None = None) -> list[Path]:
    """Weight files of a checkpoint or adapter folder, sharded or single; pickled ones only where allowed.

    ``there`` are the names of files that the folder holds or will hold, for one whose weights are still elsewhere; an
    index has to be in the folder. Raises ``UserError`` where the folder is no model, a shard is missing, or only
    pickled weights are there.
    """
    names = [entry.name for entry in folder.iterdir() if entry.is_file()] if there is None else there
    stem = "adapter_model" if ADAPTER in names else "model"
    if found := _of_kind(folder, stem, "safetensors", names):
        return found
    pickled = _of_kind(folder, "pytorch_model" if stem == "model" else stem, "bin", names)
    if pickled and not allow_pickle:
        what = "weights are pickled (.bin), which can run code when loaded by other tools"
        do = "convert them to safetensors, or allow pickled weights explicitly"
        raise UserError(what, where=str(folder), do=do)
    if not pickled:
        shown = ", ".join(sorted(names)[:6]) or "nothing"
        what = f"the folder holds no model weights (it holds {shown})"
        raise UserError(what, where=str(folder), do="give a model folder")
    return pickled


def _of_kind(folder: Path, stem: str, ending: str, names: Collection[str]) -> list[Path]:
    """Files listed by the index, else the single file, else shards named i-of-n."""
    index = folder / f"{stem}.{ending}.index.json"
    if index.is_file():
        places = read_json(index).get("weight_map")
        if not isinstance(places, dict) or not places or not all(_plain(name) for name in places.values()):
            raise UserError("the weight index names no files of the folder", where=str(index), do=AGAIN)
        return _all_there(folder, sorted(set(places.values())), names)
    if f"{stem}.{ending}" in names:
        return [folder / f"{stem}.{ending}"]
    shards = sorted(name for name in names if fnmatch(name, f"{stem}-*-of-*.{ending}"))
    if not shards:
        return []
    told = Path(shards[0]).stem.rsplit("-of-", 1)[1]
    count = int(told) if told.isdecimal() and len(told) < 7 else 0
    if count < len(shards):
        raise UserError(f"{shards[0]} is no shard i-of-n", where=str(folder), do=AGAIN)
    return _all_there(folder, [f"{stem}-{i:05d}-of-{count:05d}.{ending}" for i in range(1, count + 1)], names)


def _plain(name: Any) -> bool:
    """Whether an index names a file in its own folder."""
    return isinstance(name, str) and name.isprintable() and 0 < len(name) < 250 and "/" not in name and "\\" not in name


def _all_there(folder: Path, listed: list[str], names: Collection[str]) -> list[Path]:
    missing = [name for name in listed if name not in names and not (folder / name).is_file()]
    if missing:
        shown = f"{', '.join(missing[:3])}{' …' if len(missing) > 3 else ''}"
        raise UserError(f"the checkpoint is incomplete: {shown} missing", where=str(folder), do=AGAIN)
    return [folder / name for name in listed]
