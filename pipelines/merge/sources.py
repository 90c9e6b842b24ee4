"""From what a person wrote (folder or hub id) to a folder on this machine, or one line about why not."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from conf.errors import UserError

FILES = ["*.safetensors", "*.json", "*.model", "*.txt", "*.jinja", "*.tiktoken", "*.py"]
"""What is fetched of a hub model."""
LEAVE = ["*/*", "consolidated*", "*.gguf", "training_args*"]
"""What is not: other formats in subfolders, original releases beside the transformers files."""
HUB_ID = re.compile(r"^[\w\-.]+(/[\w\-.]+)?$")


def locate(path: str, *, revision: str | None = None, online: bool = True, allow_pickle: bool = False) -> Path:
    """Folder of the checkpoint that ``path`` names, fetched from the hub where it is a hub id.

    Raises ``UserError`` for a missing folder, a file, an unknown hub id, and a hub that cannot be reached.
    """
    folder = Path(path).expanduser()
    if folder.is_dir():
        return folder.resolve()
    if folder.exists():
        raise UserError(f"{path} is a file", do="give the folder that holds the model")
    if path.startswith((".", "/", "~")) or not HUB_ID.match(path):
        raise UserError(f"no such folder: {path}", do="give a folder with a model, or a hub id such as org/name")
    return _fetch(path, revision, online, allow_pickle)


def hub_id(path: str) -> bool:
    """Whether a path that a person wrote is read as a hub id: there is no such folder, and it has the form of one."""
    return not (path.startswith((".", "/", "~")) or not HUB_ID.match(path) or Path(path).exists())


def hub_is_asked(online: bool) -> bool:
    """Whether the hub may be asked: neither the configuration nor the hub client's own setting forbids it."""
    from huggingface_hub import constants

    return online and not constants.HF_HUB_OFFLINE


def _fetch(name: str, revision: str | None, online: bool, allow_pickle: bool) -> Path:
    """Snapshot of a hub model: from the local hub cache when not online."""
    from huggingface_hub import snapshot_download

    offline = not hub_is_asked(online)
    patterns = FILES + (["*.bin"] if allow_pickle else [])
    options: dict[str, Any] = {"revision": revision, "allow_patterns": patterns, "ignore_patterns": LEAVE}
    try:
        return Path(snapshot_download(name, local_files_only=offline, **options))
    except Exception as error:  # the hub client's many errors become one line each
        raise explain(name, revision, offline, error) from error


def explain(name: str, revision: str | None, offline: bool, error: Exception) -> UserError:
    """The line a person needs for what the hub client raised."""
    from huggingface_hub import errors

    if isinstance(error, errors.GatedRepoError):
        return UserError(f"{name} is gated on the hub", do="accept its terms there, then run: hf auth login")
    if isinstance(error, errors.RevisionNotFoundError):
        return UserError(
            f"{name} has no revision {revision!r} on the hub", do="give a branch, tag or commit that exists"
        )
    if isinstance(error, (errors.RepositoryNotFoundError, errors.HFValidationError)):
        return UserError(f"{name} is neither a folder here nor a model on the hub", do="check the spelling")
    if offline:
        return UserError(
            f"{name} is neither a folder here nor in the local hub cache", do="set online=true, or give a folder"
        )
    return UserError(
        f"cannot fetch {name} from the hub ({type(error).__name__})", do="check the network, or give a folder"
    )
