"""The door for a folder of configurations that others made: how many files, how large, how deep, and no YAML tags."""

from __future__ import annotations

import os
from pathlib import Path

import yaml

from conf.errors import UserError, no_yaml

FILES, BYTES, DEPTH, ALIASES = 10_000, 1 << 20, 50, 100
"""Files and folders in a folder of configurations; bytes of a YAML file, lists in lists, and repeated parts in it."""


def check_files(folder: Path) -> None:
    """UserError for a folder that is none of configurations, and for the first YAML file in it that is not sound."""
    count = 0
    for place, below, files in os.walk(folder):
        count += len(below) + len(files)
        if count > FILES:
            what = f"more than {FILES} files are below it"
            raise UserError(what, where=str(folder), do="name a folder of configurations with --config-dir")
        for name in (name for name in files if name.endswith(".yaml") and Path(place) != folder):
            _check_file(Path(place) / name)


def _check_file(file: Path) -> None:
    try:
        if not file.is_file() or file.stat().st_size > BYTES:
            raise UserError(f"the file is none, or larger than {BYTES} bytes", where=str(file), do="take it out")
        depth = aliases = 0
        for event in yaml.parse(file.read_text(encoding="utf-8"), Loader=yaml.CSafeLoader):
            depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
            aliases += isinstance(event, yaml.AliasEvent)
            tag = getattr(event, "tag", None)
            if depth > DEPTH or aliases > ALIASES or tag:
                what = f"a tag is {tag}" if tag else "its parts lie too deep in one another, or are repeated too often"
                raise UserError(what, where=f"{file}:{getattr(event.start_mark, 'line', 0) + 1}", do="write plain YAML")
    except UnicodeDecodeError as error:
        raise no_yaml(error, str(file)) from None
    except (yaml.YAMLError, OSError, RecursionError):
        return  # told by the reader of the configuration, where this file is asked for
