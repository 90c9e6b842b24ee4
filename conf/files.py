"""The door for YAML that others made: how many files, how large, how deep, and no tags but those that are asked for."""

from __future__ import annotations

import os
import stat
from collections.abc import Collection
from pathlib import Path

import yaml

from conf.errors import UserError, no_yaml

FILES, BYTES, DEPTH, PARTS = 10_000, 1 << 20, 50, 20_000
"""Files and folders in a folder of configurations; bytes of a YAML file, lists in lists, and values in it, of which
those that it repeats count each time."""
NULL = "tag:yaml.org,2002:null"


def check_files(folder: Path) -> None:
    """UserError for a folder that is none of configurations, and for the first YAML file in it that is not sound."""
    count = 0
    for place, below, files in os.walk(folder):
        count += len(below) + len(files)
        if count > FILES:
            what = f"more than {FILES} files are below it"
            raise UserError(what, where=str(folder), do="name a folder of configurations with --config-dir")
        for name in (name for name in files if name.endswith(".yaml") and Path(place) != folder):
            try:
                read_yaml(Path(place) / name)
            except yaml.YAMLError:
                continue  # told by the reader of the configuration, where this file is asked for


def read_yaml(file: Path, tags: Collection[str] = ()) -> str:
    """The text of a YAML file, once it is known to take little memory and time to load.

    Raises:
        UserError: No regular file, too large, no UTF-8, too deep, a part repeated too often, a tag not among ``tags``.
        YAMLError: No YAML.
    """
    try:
        text = read_small(file)
        _check_events(text, file, tags)
    except UnicodeDecodeError as error:
        raise no_yaml(error, str(file)) from None
    return text


def _check_events(text: str, file: Path, tags: Collection[str]) -> None:
    """UserError for a tag, and for values that lie too deep, are too many, or hold themselves."""
    sizes: dict[str, int] = {}  # values below an anchor
    open_parts: list[tuple[str, int]] = []  # anchor, and values before it
    count = 0
    for event in yaml.parse(text, Loader=yaml.CSafeLoader):
        anchor, tag = getattr(event, "anchor", None) or "", getattr(event, "tag", None)
        if isinstance(event, yaml.CollectionStartEvent):
            open_parts.append((anchor, count))
        elif isinstance(event, yaml.CollectionEndEvent):
            anchor, before = open_parts.pop()
            sizes[anchor] = count - before
        elif isinstance(event, yaml.AliasEvent):
            count += PARTS if anchor in [name for name, _ in open_parts] else sizes.get(anchor, 0)
        count += isinstance(event, yaml.NodeEvent)
        if tag and tag not in (NULL, *tags):
            what = f"a tag is {tag}"
        elif len(open_parts) > DEPTH or count > PARTS:
            what = "its parts are too many, lie too deep in one another, or are repeated too often"
        else:
            continue
        raise UserError(what, where=f"{file}:{getattr(event.start_mark, 'line', 0) + 1}", do="write plain YAML")


def read_small(file: Path) -> str:
    """The text of a regular file of at most ``BYTES``. UserError for another, or one that cannot be read."""
    try:
        found = file.stat()
        if stat.S_ISREG(found.st_mode) and found.st_size <= BYTES:
            return file.read_text(encoding="utf-8")
        why = f"it is no file, or larger than {BYTES} bytes"
    except OSError as error:
        why = str(error.strerror)
    raise UserError(f"cannot read {file.name}: {why}", where=str(file), do="mend it, or name another")
