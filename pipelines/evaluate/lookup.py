"""Task names that lm-eval knows and what their files say (data set, metrics, splits, members), read without lm-eval.

lm-eval's own index parses fourteen thousand YAML files each time (many seconds); a suite names a handful. Here the
top-level ``task``, ``group``, ``tag`` and ``include`` lines are read once per installed version and cached.
"""

from __future__ import annotations

import ast
import importlib.metadata
import importlib.util
import json
import os
import re
import sys
from dataclasses import asdict, dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import yaml

from conf.errors import UserError, no_yaml
from conf.files import read_small, read_yaml
from pipelines.checkpoints.tokenizer import check_templates
from pipelines.checkpoints.untrusted import check_types

OWN_TASKS = Path(__file__).parent / "tasks"
"""Task files that come with this package."""

PACKAGED = frozenset({"json", "csv", "parquet", "text", "arrow", "pandas", "xml"})
"""Data set names that stand for a file format."""

HUB_FILE = "hf://datasets/"
"""How a task file names a single file of a hub data set."""

_DEFAULT_METRICS = {"multiple_choice": ["acc", "acc_norm"], "loglikelihood": ["perplexity", "acc"]}

TYPES: dict[str, Any] = {
    **dict.fromkeys(("metadata", "dataset_kwargs", "generation_kwargs", "fewshot_config"), dict),
    **dict.fromkeys(("output_type", "group", "dataset_path", "dataset_name", "class"), str),
    **dict.fromkeys(("test_split", "validation_split", "training_split", "fewshot_split"), str),
    **dict.fromkeys(("include", "tag", "task"), (str, list)), "filter_list": list, "metric_list": list,
    "unsafe_code": bool, "num_fewshot": int, "repeats": int,
}  # fmt: skip
"""Fields of a task file that are read here; the others are lm-eval's own, which checks them as it loads."""
TEMPLATES = ("doc_to_", "description", "gen_prefix", "target_delimiter", "process_")
LEAVES = 20_000
"""Tasks that a group holds at most."""
PARTS: dict[str, Any] = {"requires": list, "local": str, "data_files": (str, list, dict)}
"""Of its tables."""

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
        tags = {t: sorted({*self.tags.get(t, []), *other.tags.get(t, [])}) for t in {**self.tags, **other.tags}}
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
        except (UserError, UnicodeDecodeError):
            continue
        task, group = keys.get("task", []), keys.get("group", [])
        if group and "class" not in keys:
            index.groups.setdefault(group[0], str(path))
        elif len(task) == 1 and task[0] not in index.tasks:
            index.tasks[task[0]] = str(path)
            for tag in keys.get("tag", []):
                index.tags.setdefault(tag, []).append(task[0])
    return index


def _keys(path: Path, seen: set[Path]) -> dict[str, list[str]]:
    """Top-level keys of a task file, with those of the files it includes underneath."""
    if path in seen:
        return {}
    seen.add(path)
    own = {key: _values(inline, listed) for key, inline, listed in _KEYS.findall(read_small(path))}
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


def user_cache() -> Path:
    """The person's own folder for what is slow to make and never changes: what is run is not taken from a store."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "mergebench"


def _installed() -> TaskIndex:
    root, version = lm_eval_tasks(), lm_eval_version()
    cache = user_cache() / f"lm_eval_{version}.json"
    try:
        cached = json.loads(cache.read_text(encoding="utf-8"))
        if cached.pop("root") == str(root):
            return TaskIndex(**cached)
    except (OSError, ValueError, TypeError, KeyError):
        pass
    index = scan(root)
    try:
        cache.parent.mkdir(parents=True, exist_ok=True)
        part = cache.with_suffix(f".{os.getpid()}")
        part.write_text(json.dumps({"root": str(root), **asdict(index)}), encoding="utf-8")
        part.replace(cache)
    except OSError:
        pass  # a cache that cannot be written costs two seconds, not the evaluation
    return index


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
    def code(self) -> set[Path]:
        """Python files that it may run: those of the functions that its YAML files name, and all beside them."""
        files: set[Path | None] = set()
        for page in _pages(self.path):
            named = re.findall(r"!function\s+[\"']?([\w.]+)\.\w+", page.read_text(encoding="utf-8"))
            files.update(page.parent.glob("*.py"), (_module(page.parent, module) for module in named))
        return {file for file in files if file is not None}

    @property
    def dataset(self) -> str | None:
        """Hub name of its data, or None where they come from other files or from code."""
        named = self.config.get("dataset_path") or self._dataset_of_class()
        if named in PACKAGED:
            return "/".join(self.hub_files[0].removeprefix(HUB_FILE).split("/")[:2]) if self.hub_files else None
        return None if not isinstance(named, str) or Path(named).is_absolute() else named

    def _dataset_of_class(self) -> str | None:
        """``DATASET_PATH`` as the source of a task's own class, or of a class that it extends there, writes it."""
        module, _, name = str(self.config.get("class", "")).removeprefix("!function ").rpartition(".")
        files = [_module(page.parent, module) for page in _pages(self.path)] if module else []
        return next((_class_dataset(ast.parse(file.read_text()), name) for file in files if file is not None), None)

    @property
    def hub_files(self) -> list[str]:
        """The single files of hub data sets among its ``data_files``."""
        files = _strings((self.config.get("dataset_kwargs") or {}).get("data_files"))
        return [name for name in files if name.startswith(HUB_FILE)]

    @property
    def files(self) -> list[str]:
        """Files and folders of this machine that its data come from, as the task file names them."""
        path, kwargs = str(self.config.get("dataset_path", "")), self.config.get("dataset_kwargs") or {}
        named = [*_strings(kwargs.get("data_files")), *_strings(kwargs.get("data_dir"))] if path in PACKAGED else []
        absolute = [name for name in (path, *_strings(kwargs)) if Path(name).is_absolute()]
        return sorted({name for name in (*named, *absolute) if "://" not in name})

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
        return [str(entry.get("name")) for entry in self.config.get("filter_list") or [{"name": "none"}]]

    @property
    def requires(self) -> list[str]:
        """Packages that scoring it needs and that do not come with this one."""
        named = (self.config.get("metadata") or {}).get("requires", [])
        return [*named, *(["tinyBenchmarks"] if self.path.parent.name == "tinyBenchmarks" else [])]

    @property
    def judged(self) -> bool:
        """Whether another model judges the answers."""
        return bool((self.config.get("metadata") or {}).get("judged"))

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
        names = (f"{wanted}_split",) if wanted is not None else ("test_split", "validation_split")
        return next(filter(None, map(self.config.get, names)), wanted)

    @property
    def splits(self) -> set[str]:
        """The splits that its file names."""
        names = ("training_split", "validation_split", "test_split", "fewshot_split")
        return {str(self.config[name]) for name in names if self.config.get(name)}


def _strings(value: Any) -> list[str]:
    """Every string in a value, a list or a dictionary of them."""
    if isinstance(value, dict):
        return _strings(list(value.values()))
    if isinstance(value, (list, tuple)):
        return [name for part in value for name in _strings(part)]
    return [value] if isinstance(value, str) else []


def groups(name: str, index: TaskIndex, found: dict[str, Path] | None = None) -> dict[str, Path]:
    """The files of the groups behind a name: itself, and the groups among its members."""
    found = {} if found is None else found
    if name in index.groups and name not in found:
        found[name] = Path(index.groups[name])
        for member in _strings([read_task_file(found[name]).get("task") or []]):
            groups(member, index, found)
    return found


def leaves(name: str, index: TaskIndex, above: tuple[str, ...] = ()) -> list[Definition]:
    """The leaf tasks behind a task, group or tag name. Raises KeyError for a name that nobody defines."""
    if name in above:
        where = index.groups.get(name, "")
        raise UserError(f"{name} is among its own members", where=where, do="mend the task files")
    if name in index.groups:
        path = Path(index.groups[name])
        return _members(read_task_file(path).get("task") or [], index, path, (*above, name))
    if name in index.tasks:
        path = Path(index.tasks[name])
        return [Definition(name, path, read_task_file(path))]
    return [leaf for task in sorted(index.tags[name]) for leaf in leaves(task, index, (*above, name))]


def _members(members: Any, index: TaskIndex, path: Path, above: tuple[str, ...]) -> list[Definition]:
    found: list[Definition] = []
    for member in members if isinstance(members, list) else [members]:
        own = member if isinstance(member, dict) else {}
        name = member if isinstance(member, str) else own.get("task", own.get("group"))
        if isinstance(name, str) and name in index:
            found.extend(
                Definition(leaf.name, leaf.path, {**leaf.config, **own}) for leaf in leaves(name, index, above)
            )
        elif isinstance(name, str) and "task" in own:
            found.append(Definition(name, path, own))
        elif isinstance(own.get("task"), list):
            found.extend(_members(own["task"], index, path, above))
        if len(found) > LEAVES:
            raise UserError(f"a group holds more than {LEAVES} tasks", where=str(path), do="name single ones")
    return found


def read_task_file(path: Path) -> dict[str, Any]:
    """A task file with what it includes underneath."""
    merged = {key: value for page in _pages(path) for key, value in _content(page).items()}
    merged.pop("include", None)
    return merged


def _pages(path: Path, seen: list[Path] | None = None) -> list[Path]:
    """A task file behind those that it includes, in the order in which they take precedence."""
    seen = [] if seen is None else seen
    if path in seen:
        raise UserError(f"{path.name} is included twice, or by itself", where=str(seen[0]), do="mend the task file")
    seen.append(path)
    included = _strings(_content(path).get("include"))
    return [*(page for name in included for page in _pages((path.parent / name).resolve(), seen)), path]


def _module(folder: Path, name: str) -> Path | None:
    """File of a module as lm-eval looks for it: below the task file's folder, then where Python imports from."""
    places = [Path(root, name.replace(".", "/")) for root in (str(folder), *sys.path)]
    files = (file for place in places for file in (place.with_suffix(".py"), place / "__init__.py"))
    return next((file for file in files if file.is_file()), None)


def _class_dataset(module: ast.Module, name: str) -> str | None:
    classes = {node.name: node for node in module.body if isinstance(node, ast.ClassDef)}
    if name not in classes:
        return None
    for node in classes[name].body:
        if isinstance(node, ast.Assign) and "DATASET_PATH" in [getattr(target, "id", "") for target in node.targets]:
            return str(node.value.value) if isinstance(node.value, ast.Constant) else None
    bases = [base.id for base in classes[name].bases if isinstance(base, ast.Name)]
    return next((found for base in bases if (found := _class_dataset(module, base)) is not None), None)


def _content(path: Path) -> dict[str, Any]:
    stat = path.stat()
    return _parsed(path, stat.st_mtime_ns, stat.st_size)


@lru_cache(maxsize=4096)
def _parsed(path: Path, changed: int, size: int) -> dict[str, Any]:
    """One file by itself; read again when it has changed."""
    try:
        content = yaml.load(read_yaml(path, tags=("!function",)), Loader=_Loader)  # a safe loader
    except yaml.YAMLError as error:
        raise no_yaml(error, str(path)) from None
    if not isinstance(content, dict):
        raise UserError(f"{path.name} is no task file", where=str(path), do="see lm-eval's task guide")
    check_types(content, TYPES, path)
    check_templates({key: text for key, text in content.items() if key.startswith(TEMPLATES)}, path, "template")
    for part in ("metadata", "dataset_kwargs"):
        check_types(content.get(part) or {}, PARTS, path)
    for part in ("filter_list", "metric_list"):
        for entry in content.get(part) or ():
            check_types({part: entry}, {part: dict}, path)
    return content
