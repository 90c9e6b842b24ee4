"""Code that comes with a checkpoint: it runs of those that are trusted by name, and its content is known by a hash."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from conf.errors import UserError
from pipelines.checkpoints.card import base_name
from pipelines.checkpoints.untrusted import read_json


def runs_code(folder: Path | str, trust: Sequence[str]) -> bool:
    """Whether a checkpoint has code of its own for its model or tokenizer, and is trusted by hub id or folder."""
    return _trusted(folder, trust) and bool(_classes(folder))


def code_hash(folder: Path | str) -> str:
    """Hash of a checkpoint's Python files, by name and content."""
    digest = hashlib.sha256()
    for file in sorted(Path(folder).rglob("*.py")):
        digest.update(f"{file.relative_to(folder)} {hashlib.sha256(file.read_bytes()).hexdigest()}\n".encode())
    return digest.hexdigest()[:16]


def check_code(folder: Path | str, trust: Sequence[str]) -> None:
    """UserError for a checkpoint that needs code which may not run here."""
    if not (classes := _classes(folder)):
        return
    if not _trusted(folder, trust):
        from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES

        if read_json(Path(folder) / "config.json").get("model_type") not in CONFIG_MAPPING_NAMES:
            do = f"read it, and if you trust it: suite.trust_remote_code=[{_hub_id(folder) or folder}]"
            raise UserError("the model is code of its own, which is not run", where=str(folder), do=do)
    elif "--" in json.dumps(classes):
        do = "put the code beside the weights, and its module's name alone into auto_map"
        raise UserError("the model's code is that of another repository", where=str(folder), do=do)


def _classes(folder: Path | str) -> list[Any]:
    """Classes that configuration and tokenizer name in Python files."""
    files = ("config.json", "tokenizer_config.json")
    return [found for file in files if (found := read_json(Path(folder) / file).get("auto_map"))]


def _trusted(folder: Path | str, trust: Sequence[str]) -> bool:
    if not trust:
        return False
    folders = {Path(name).expanduser().resolve() for name in trust}
    return Path(folder).resolve() in folders or _hub_id(folder) in trust


def _hub_id(folder: Path | str) -> str | None:
    """The hub id of a snapshot in the hub's cache, models--ORG--NAME/snapshots/COMMIT."""
    cached = Path(folder).resolve().parent.parent
    return base_name(cached) if cached.name.startswith("models--") else None
