"""From override strings to validated configurations, through Hydra's compose API.

``compose(["+experiment=quickstart", "methods.ties.density=0.1,0.2"])`` gives two configurations: Hydra's sweep grammar
is expanded here. Hydra composes the choices of groups; ``+scale=tiny`` then puts a small world in place of the study's
own; single values are merged into the typed tree last, in the order in which they are given, so that they always win.
Whatever is misspelt becomes one ``UserError`` that names the nearest valid keys or choices and the file in which they
live.
"""

from __future__ import annotations

import functools
import itertools
import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from omegaconf import DictConfig, ListConfig, OmegaConf, open_dict
from omegaconf.errors import ConfigKeyError, OmegaConfBaseException
from omegaconf.resolvers import oc
from yaml import YAMLError

from conf.errors import NAMED_SECRET, UserError, nearest, no_yaml
from conf.files import check_files
from conf.scaling import apply_scale
from conf.schema import Config
from conf.values import check_values

FOLDER = Path(__file__).parent

SHORT = {"attack": "suite.attack"}
"""Keys that may be written without the group that they belong to."""

NUMBERLIKE = re.compile(r"(?<![^=,\[\s])(?=[\de]{8,32}(?:[,\]\s]|$))(\d+e\d+)")
"""A store key (eight digits or more) that has the form of a number, alone or in a list."""

Node = dict[str, Any]

VALUES = {"Integer": "a whole number", "Float": "a number", "Boolean": "true or false"}
"""What a key of OmegaConf's kinds takes."""


def _environment(name: str, *default: str) -> str | None:
    """The value of an environment variable for ``${oc.env:NAME}``. ValueError for what may be a secret."""
    if NAMED_SECRET.search(name):
        raise ValueError(f"{name} may be a secret, and a configuration is told to others")
    return oc.env(name, *default)


OmegaConf.register_new_resolver("oc.env", _environment, replace=True)
FAULTS = (
    HydraException,
    OmegaConfBaseException,
    AssertionError,
    ValueError,
    TypeError,
    AttributeError,
    KeyError,
    RecursionError,
)
"""What Hydra raises for configurations that mean nothing to it."""

OVERRIDES = 500
"""Overrides of one command at most: each is merged into the whole configuration."""
RUNS = 10_000
"""Points of the sweep grammar at most."""


def groups(folders: Sequence[Path] = (FOLDER,)) -> dict[str, list[str]]:
    """Every config group with its choices: ``{"method": ["linear", …], "task": ["skills/add", …], …}``."""
    found: dict[str, set[str]] = {}
    for folder in folders:
        for file in folder.glob("*/**/*.yaml"):
            group, *rest = file.relative_to(folder).with_suffix("").parts
            found.setdefault(group, set()).add("/".join(rest))
    return {group: sorted(choices) for group, choices in sorted(found.items())}


def compose(overrides: Sequence[str], *, config_dir: str | None = None) -> list[tuple[Config, DictConfig]]:
    """Compose and validate one configuration for each point of the overrides' sweep grammar.

    Returns pairs of the typed configuration and the composed tree that ``--cfg`` prints. Of several, each carries the
    values that set it apart in its name (``quickstart/seed=2``).
    Raises UserError for anything misspelt, missing or of a wrong type.
    """
    folders = [FOLDER, *([Path(config_dir).resolve()] if config_dir is not None else [])]
    if not folders[-1].is_dir():
        raise UserError(f"no such folder of configurations: {config_dir}", do="name an existing one with --config-dir")
    for folder in folders[1:]:
        check_files(folder)
    if len(overrides) > OVERRIDES:
        do = "write them into a file of your own: --config-dir DIR +experiment=NAME"
        raise UserError(f"there are {len(overrides)} overrides, at most {OVERRIDES} are read", do=do)
    choices = [_values(override) for override in _parse(overrides)]
    if (runs := math.prod(map(len, choices))) > RUNS:
        raise UserError(f"the overrides ask for {runs} runs", do=f"ask for {RUNS} at most at once")
    points = [list(point) for point in itertools.product(*choices)]
    composed = [_compose_one(_parse(point), folders) for point in points]
    for point, (config, tree) in zip(points, composed) if len(points) > 1 else ():
        own = [text for text in point if any(text not in other for other in points)]
        label = re.sub(r"[^\w.=,+@-]", "_", ",".join(own))
        config.name = tree.name = f"{config.name or 'study'}/{label}"
    return composed


def given(overrides: Sequence[str]) -> list[tuple[str, str]]:
    """The key that each override sets (``pools.tiny`` for ``+pool@pools.tiny=tiny``), and the override."""
    return [(o.package or o.key_or_group, str(o.input_line)) for o in _parse(overrides)]


def to_yaml(tree: DictConfig) -> str:
    """The composed configuration as YAML, interpolations resolved."""
    return OmegaConf.to_yaml(tree, resolve=True)


def _parse(overrides: Sequence[str]) -> list[Override]:
    """Overrides with short keys written out, and store keys that Hydra would read as numbers (12e4567890) quoted."""
    parsed = []
    for text in overrides:
        key, equals, value = text.partition("=")
        text = SHORT.get(key, key) + equals + NUMBERLIKE.sub(r"'\1'", value)
        try:
            parsed.append(OverridesParser.create().parse_override(text))
        except HydraException as error:
            reason = str(error).splitlines()[0] if equals else "it has no ="
            do = "write key=value, +key=value or ~key"
            raise UserError(f"cannot read the override {text!r}", where=reason, do=do) from None
    return parsed


def _values(override: Override) -> list[str]:
    """One override for each of the values that it holds (``a=1,2``, ``range(…)``, ``choice(…)``)."""
    if not override.is_sweep_override():
        return [str(override.input_line)]
    try:
        values = list(itertools.islice(override.sweep_string_iterator(), RUNS + 1))
    except FAULTS as error:
        raise UserError(f"cannot read the override {override.input_line!r}", where=str(error).split("\n")[0]) from None
    return [f"{override.get_key_element()}={value}" for value in values]


def _compose_one(overrides: Sequence[Override], folders: Sequence[Path]) -> tuple[Config, DictConfig]:
    known = groups(folders)
    choices = [o for o in overrides if o.key_or_group in known]
    for o in choices:
        group, choice = o.key_or_group, o.value()
        if isinstance(choice, str) and choice not in known[group]:
            do = nearest(choice, known[group])
            if group in ("base", "task") and ("/" in choice or Path(choice).exists()):
                do = f"{group}.path={choice} names a folder or hub id"
            raise UserError(f"no {group} is called {choice!r}", where=f"conf/{group}/", do=do)
    try:
        tree, homes = _choose(choices, folders)
        if any(o.key_or_group == "scale" for o in choices):
            for o in _parse(tree.scale.overrides):
                _set(tree, o, homes, known)
            apply_scale(tree, keep_suite="suite" in {o.get_key_element() for o in choices})
        for o in overrides:
            if o not in choices:
                _set(tree, o, homes, known)
        _pools_as_written(tree, overrides, folders)
    except (YAMLError, UnicodeDecodeError) as error:
        raise no_yaml(error, str(folders[-1])) from None
    except FAULTS as error:
        where = " ".join(str(o.input_line) for o in choices)
        raise UserError(_first_cause(error), where=where, do="mend the file named, or choose another") from None
    try:
        typed = OmegaConf.to_object(tree)
    except FAULTS as error:
        where = str(getattr(error, "full_key", None) or "")
        raise UserError(_first_cause(error), where=where, do="give it a value, see --cfg for the rest") from None
    assert isinstance(typed, Config)
    check_values(typed)
    return typed, tree


def _choose(choices: Sequence[Override], folders: Sequence[Path]) -> tuple[DictConfig, dict[str, str]]:
    """The tree of the chosen files, and the file that fills each of its nodes."""
    # A choice inside a pool comes after the pool's own, which would otherwise be merged over it.
    by_depth = sorted({o.get_key_element(): o for o in choices}.values(), key=lambda o: (o.package or "").count("."))
    texts = [f"hydra.searchpath=['file://{folder}']" for folder in folders[1:]]
    texts += [str(o.input_line) for o in by_depth]
    GlobalHydra.instance().clear()
    ConfigStore.instance().store(name="schema", node=Config)
    with initialize_config_dir(config_dir=str(FOLDER.resolve()), version_base="1.3", job_name="mergebench"):
        tree = hydra_compose("config", overrides=texts, return_hydra_config=True)
    named = tree.hydra.runtime.choices.items()
    homes = {key.split("@")[-1]: f"conf/{key.split('@')[0]}/{choice}.yaml" for key, choice in named if choice}
    OmegaConf.set_struct(tree, None)  # type: ignore[arg-type]  # dataclasses stay closed, dictionaries are open
    with open_dict(tree):
        del tree["hydra"]
    return tree, homes


def _set(tree: DictConfig, override: Override, homes: dict[str, str], known: Iterable[str]) -> None:
    """Change, add or take out one value, in place; UserError where that cannot be."""
    key, text = override.key_or_group, str(override.input_line)
    try:
        _put(tree, override, key, override.value(), homes, known)
    except ConfigKeyError as error:
        names = [f.name for f in fields(error.object_type or Config)]
        raise _unknown(str(error.full_key), names, "conf/schema.py", known) from None
    except FAULTS as error:
        where, reason = _home(key.rpartition(".")[0], homes), str(error).splitlines()[0]
        do = next((f"give {value}" for kind, value in VALUES.items() if reason.endswith(f"to {kind}")), "")
        raise UserError(f"{text}: {reason}", where=where, do=do) from None


def _put(tree: DictConfig, override: Override, key: str, value: Any, homes: Node, known: Iterable[str]) -> None:
    node: Any = tree
    in_entry = False  # of a dictionary of dataclasses: it has all its keys as soon as one of them is added
    for depth, part in enumerate(parts := key.split(".")):
        holder, parent = node, ".".join(parts[:depth])
        if isinstance(holder, ListConfig):
            break
        if not isinstance(holder, DictConfig) or holder._is_none():
            do = f"give {parent} a value as a whole"
            raise UserError(f"{parent!r} is not a group of keys", where=str(override.input_line), do=do)
        if part not in set(holder):
            if override.is_add() or override.is_force_add():
                return _merge(tree, parts, value)
            raise _unknown(f"{parent}.{part}".strip("."), holder, _home(parent, homes), known)
        in_entry |= is_dataclass(holder._metadata.element_type)
        node = holder._get_node(part)
    if override.is_delete() and not is_dataclass(OmegaConf.get_type(holder)):
        del holder[part]
    elif override.is_delete():  # a field, which may be empty
        if OmegaConf.get_type(node) is not dict:
            raise ValueError(f"{key} has to have a value")
        holder[part] = {}
    elif isinstance(value, dict) and node._is_none():
        _merge(tree, parts, value)
    elif isinstance(value, dict) and isinstance(node, DictConfig):
        for name, entry in value.items():
            _put(tree, override, f"{key}.{name}", entry, homes, known)
    elif override.is_add() and not in_entry and not isinstance(value, dict):
        do = "write it without the plus sign"
        raise UserError(f"{key!r} is there already", where=str(override.input_line), do=do)
    elif isinstance(node, ListConfig) and node is not holder and isinstance(value, (str, int, float)):
        raise UserError(f"{key} is a list", where=str(override.input_line), do=f"write '{key}=[{value}]'")
    else:
        OmegaConf.update(tree, key, value, merge=False)


def _merge(tree: DictConfig, parts: Sequence[str], value: Any) -> None:
    """Merge in a value whose parents may not be there: unlike Hydra's own ``+``, this fills in typed entries."""
    tree.merge_with(functools.reduce(lambda below, part: {part: below}, reversed(parts), value))


def _unknown(key: str, names: Iterable[Any], where: str, groups: Iterable[str]) -> UserError:
    parent, _, name = key.rpartition(".")
    known = [*map(str, names), *(() if parent else groups)]
    do = nearest(name, known) if known else f"add it with a plus sign: +{key}=…"
    return UserError(f"no key is called {key!r}", where=where, do=do)


def _home(parent: str, homes: dict[str, str]) -> str:
    """The file in which the keys below a node live: the choice that fills the node or the nearest one above it."""
    paths = list(itertools.accumulate(parent.split("."), "{}.{}".format))
    return next((homes[path] for path in reversed(paths) if path in homes), "conf/schema.py")


def _first_cause(error: BaseException) -> str:
    """The innermost message of a chain of exceptions, on one line."""
    while error.__cause__ is not None:
        error = error.__cause__
    if isinstance(error, RecursionError):
        return "values or files refer to one another in a circle, or lie too deep in one another"
    return "; ".join(" ".join(line.split()) for line in str(error).splitlines() if line.strip())[:300]


def _pools_as_written(tree: DictConfig, overrides: Sequence[Override], folders: Sequence[Path]) -> None:
    """Put the pools into the order in which they are written, where Hydra takes that of the defaults list.

    Those of the experiment's ``pools`` stand in that order, and so do those that the command line adds; every other
    pool keeps its place.
    """
    choices = [o.value() for o in overrides if o.key_or_group == "experiment"]
    files = [folder / f"experiment/{choice}.yaml" for choice in choices for folder in folders]
    texts = [file.read_text(encoding="utf-8") for file in files if file.is_file()]
    written = [[str(name) for name in OmegaConf.select(OmegaConf.create(text), "pools") or ()] for text in texts]
    known = {name for text in texts for name in re.findall(r"pools\.([^.:\s]+)", text)}.union(*written)
    added = [re.search(r"(?:^\+*|@)pools\.([^.]+)", o.get_key_element()) for o in overrides if o.is_add()]
    order = list(tree.pools)
    for names in [*written, [match[1] for match in added if match and match[1] not in known]]:
        names = [name for name in dict.fromkeys(names) if name in order]
        for place, name in zip(sorted(order.index(name) for name in names), names):
            order[place] = name
    for name in order if order != list(tree.pools) else ():
        tree.pools[name] = tree.pools.pop(name)
