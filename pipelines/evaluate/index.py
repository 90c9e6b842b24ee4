"""Which task names lm-eval knows, and in which file each is defined, without importing lm-eval.

lm-eval's own index parses fourteen thousand YAML files each time (many seconds); a suite names a handful. Here the
top-level ``task``, ``group``, ``tag`` and ``include`` lines are read once per installed version and kept in the
user's cache.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import os
import re
from dataclasses import dataclass, field
from pathlib import Path

_KEYS = re.compile(
    r"^[\"']?(task|group|tag|include|class)[\"']?[ \t]*:[ \t]*([^\n#]*)(?:#[^\n]*)?\n?((?:[ \t]*- [^\n]*\n?)*)",
    re.MULTILINE,
)


@dataclass
class TaskIndex:
    """Names by kind: tasks and groups with the file that defines them, tags with the tasks that carry them."""

    tasks: dict[str, str] = field(default_factory=dict)
    groups: dict[str, str] = field(default_factory=dict)
    tags: dict[str, list[str]] = field(default_factory=dict)

    def __contains__(self, name: str) -> bool:
        return name in self.tasks or name in self.groups or name in self.tags

    def names(self) -> list[str]:
        """Every task, group and tag name."""
        return sorted({*self.tasks, *self.groups, *self.tags})

    def override(self, other: TaskIndex) -> TaskIndex:
        """This index with the other's names put over it."""
        tags = {tag: sorted({*self.tags.get(tag, []), *names}) for tag, names in {**self.tags, **other.tags}.items()}
        for tag in self.tags.keys() - other.tags.keys():
            tags[tag] = self.tags[tag]
        return TaskIndex({**self.tasks, **other.tasks}, {**self.groups, **other.groups}, tags)


def lm_eval_version() -> str:
    """Version of the installed lm-eval."""
    return importlib.metadata.version("lm_eval")


def lm_eval_tasks() -> Path:
    """Folder of the installed lm-eval's task files."""
    spec = importlib.util.find_spec("lm_eval")
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError("lm_eval is not installed")
    return Path(spec.origin).parent / "tasks"


def task_index(*include: str | Path | None) -> TaskIndex:
    """Index of the installed lm-eval, with the task files under each ``include`` folder put over it."""
    index = _installed()
    for folder in include:
        if folder is not None:
            index = index.override(scan(Path(folder)))
    return index


def scan(root: Path) -> TaskIndex:
    """Read the names defined by the YAML files under a folder (first definition wins, in path order)."""
    index = TaskIndex()
    for path in sorted(root.glob("**/*.yaml"), key=lambda p: p.as_posix()):
        if "__pycache__" in path.parts or ".ipynb_checkpoints" in path.parts:
            continue
        try:
            keys = _keys(path, set())
        except (OSError, UnicodeDecodeError):
            continue
        _enter(index, path, keys)
    return index


def _enter(index: TaskIndex, path: Path, keys: dict[str, list[str]]) -> None:
    task, group = keys.get("task", []), keys.get("group", [])
    if group and "class" not in keys:
        index.groups.setdefault(group[0], str(path))
    elif len(task) == 1 and task[0] not in index.tasks:
        index.tasks[task[0]] = str(path)
        for tag in keys.get("tag", []):
            index.tags.setdefault(tag, []).append(task[0])


def _keys(path: Path, seen: set[Path]) -> dict[str, list[str]]:
    """Top-level keys of a task file, with those of the files it includes underneath."""
    if path in seen:
        return {}
    seen.add(path)
    own: dict[str, list[str]] = {}
    for key, inline, listed in _KEYS.findall(path.read_text(encoding="utf-8")):
        own[key] = _values(inline, listed)
    merged: dict[str, list[str]] = {}
    for included in own.pop("include", []):
        if (path.parent / included).is_file():
            merged.update(_keys(path.parent / included, seen))
    return {**merged, **own}


def _values(inline: str, listed: str) -> list[str]:
    inline = inline.strip()
    if inline.startswith("["):
        parts = inline.strip("[]").split(",")
    elif inline:
        parts = [inline]
    else:
        parts = [line.strip()[2:].split(" #")[0] for line in listed.splitlines()]
    return [part.strip().strip("'\"") for part in parts if part.strip()]


def _installed() -> TaskIndex:
    root, version = lm_eval_tasks(), lm_eval_version()
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "mergebench" / f"lm_eval_{version}.json"
    try:
        kept = json.loads(cache.read_text(encoding="utf-8"))
        if kept["root"] == str(root):
            return TaskIndex(kept["tasks"], kept["groups"], kept["tags"])
    except (OSError, ValueError, KeyError):
        pass
    index = scan(root)
    try:
        cache.parent.mkdir(parents=True, exist_ok=True)
        part = cache.with_suffix(f".{os.getpid()}")
        kept = {"root": str(root), "tasks": index.tasks, "groups": index.groups, "tags": index.tags}
        part.write_text(json.dumps(kept), encoding="utf-8")
        part.replace(cache)
    except OSError:
        pass  # a cache that cannot be written costs two seconds, not the evaluation
    return index
