"""What task files say, read without lm-eval: data set, metrics, splits, members of groups and tags."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import yaml

from conf.errors import UserError, no_yaml
from pipelines.evaluate.index import TaskIndex

OWN_TASKS = Path(__file__).parent / "tasks"
"""Task files that come with this package."""

PACKAGED = frozenset({"json", "csv", "parquet", "text", "arrow", "pandas", "xml"})
"""Data set names that stand for a file format."""

HUB_FILE = "hf://datasets/"
"""How a task file names a single file of a hub data set."""

_DEFAULT_METRICS = {"multiple_choice": ["acc", "acc_norm"], "loglikelihood": ["perplexity", "acc"]}


class _Loader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]
    """YAML with functions left as their names."""


_Loader.add_multi_constructor("!", lambda loader, suffix, node: f"!{suffix} {getattr(node, 'value', '')}")


@dataclass(frozen=True)
class Definition:
    """One leaf task as its file defines it."""

    name: str
    path: Path
    config: dict[str, Any] = field(hash=False)

    @property
    def dataset(self) -> str | None:
        """Hub name of its data, or None where they come from other files or from code."""
        named = self.config.get("dataset_path")
        if named in PACKAGED:
            files = hub_files((self.config.get("dataset_kwargs") or {}).get("data_files"))
            return "/".join(files[0].removeprefix(HUB_FILE).split("/")[:2]) if files else None
        return None if not isinstance(named, str) or Path(named).is_absolute() else named

    @property
    def metrics(self) -> list[str] | None:
        """Names of its metrics, or None where only running it would tell."""
        listed = self.config.get("metric_list")
        if "class" in self.config or (listed is None and "process_results" in self.config):
            return None
        if listed is None:
            return _DEFAULT_METRICS.get(self.config.get("output_type", ""))
        names = [str(entry.get("metric", "!")) for entry in listed if isinstance(entry, dict)]
        return None if any(name.startswith("!") for name in names) else names

    @property
    def filters(self) -> list[str]:
        """Names of its filters."""
        return [entry["name"] for entry in self.config.get("filter_list") or [{"name": "none"}]]

    @property
    def requires(self) -> list[str]:
        """Packages that scoring it needs and that do not come with this one."""
        named = (self.config.get("metadata") or {}).get("requires", [])
        return [*named, *(["tinyBenchmarks"] if self.path.parent.name == "tinyBenchmarks" else [])]

    @property
    def local(self) -> str | None:
        """Folder of a mirror that its data have to be put into by hand, because no hub has them."""
        return (self.config.get("metadata") or {}).get("local")

    @property
    def own(self) -> bool:
        """Whether it is a task of ours."""
        return self.path.is_relative_to(OWN_TASKS)

    @property
    def unsafe(self) -> bool:
        """Whether it runs code that the model wrote."""
        return bool(self.config.get("unsafe_code"))

    def split(self, wanted: str | None) -> str | None:
        """Name of the split that is scored: ``wanted`` (test or validation, or a literal name), or the task's own."""
        config = self.config
        if wanted is not None:
            return config.get(f"{wanted}_split") or wanted
        return config.get("test_split") or config.get("validation_split")


def hub_files(files: Any) -> list[str]:
    """The files among ``data_files`` (a name, a list, or a dictionary of them) that lie on the hub."""
    if isinstance(files, dict):
        return [name for part in files.values() for name in hub_files(part)]
    if isinstance(files, (list, tuple)):
        return [name for part in files for name in hub_files(part)]
    return [files] if isinstance(files, str) and files.startswith(HUB_FILE) else []


def leaves(name: str, index: TaskIndex) -> list[Definition]:
    """The leaf tasks behind a task, group or tag name. Raises KeyError for a name that nobody defines."""
    if name in index.groups:
        members = _read(Path(index.groups[name])).get("task") or []
        return _members(members, index)
    if name in index.tasks:
        path = Path(index.tasks[name])
        return [Definition(name, path, _read(path))]
    return [leaf for task in sorted(index.tags[name]) for leaf in leaves(task, index)]


def _members(members: Any, index: TaskIndex) -> list[Definition]:
    found: list[Definition] = []
    for member in members if isinstance(members, list) else [members]:
        own = member if isinstance(member, dict) else {}
        name = member if isinstance(member, str) else own.get("task", own.get("group"))
        if isinstance(name, str) and name in index:
            found.extend(Definition(leaf.name, leaf.path, {**leaf.config, **own}) for leaf in leaves(name, index))
        elif isinstance(name, str) and "task" in own:
            found.append(Definition(name, Path(), own))
        elif isinstance(own.get("task"), list):
            found.extend(_members(own["task"], index))
    return found


def _read(path: Path) -> dict[str, Any]:
    """A task file with what it includes underneath."""
    stat = path.stat()
    own = dict(_parsed(path, stat.st_mtime_ns, stat.st_size))
    included = own.pop("include", [])
    merged: dict[str, Any] = {}
    for name in included if isinstance(included, list) else [included]:
        merged.update(_read((path.parent / name).resolve()))
    return {**merged, **own}


@lru_cache(maxsize=4096)
def _parsed(path: Path, changed: int, size: int) -> dict[str, Any]:
    """One file by itself; read again when it has changed."""
    try:
        with path.open("rb") as file:
            content = yaml.load(file, Loader=_Loader)  # a safe loader
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise no_yaml(error, str(path)) from None
    if not isinstance(content, dict):
        raise UserError(f"{path.name} is no task file", where=str(path), do="see lm-eval's task guide")
    return content
