"""From override strings to validated configurations, through Hydra's compose API.

``compose(["+experiment=quickstart", "methods.ties.density=0.1,0.2"])`` gives two configurations: Hydra's sweep grammar
is expanded here. Whatever is misspelt becomes one ``UserError`` that names the nearest valid keys or choices and the
file in which they live.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, Union, get_args, get_origin, get_type_hints

from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import ConfigKeyError, OmegaConfBaseException
from yaml import YAMLError

from conf.errors import UserError, nearest, no_yaml
from conf.scale import apply_scale
from conf.schema import Config

FOLDER = Path(__file__).parent

SHORT = {"attack": "suite.attack"}
"""Keys that may be written without the group that they belong to."""

NUMBERLIKE = re.compile(r"(?<![^=,\[\s])(?=[\de]{8,32}(?:[,\]\s]|$))(\d+e\d+)")
"""A store key (eight digits or more) that has the form of a number, alone or in a list."""


FAULTS = (HydraException, OmegaConfBaseException, AssertionError, ValueError, TypeError, AttributeError)
"""What Hydra raises for configurations that mean nothing to it."""


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
    extra = _config_dir(config_dir)
    points = list(_sweep_points(_in_full(overrides)))
    composed = [_compose_one(point, extra) for point in points]
    for point, (config, tree) in zip(points, composed) if len(points) > 1 else ():
        own = [text for text in point if any(text not in other for other in points)]
        label = re.sub(r"[^\w.=,+@-]", "_", ",".join(own))
        config.name = f"{config.name or 'study'}/{label}"
        tree.name = config.name
    return composed


def given(overrides: Sequence[str]) -> list[tuple[str, str]]:
    """The key that each override sets (``pools.tiny`` for ``+pool@pools.tiny=tiny``), and the override."""
    return [(o.package or o.key_or_group, text) for text, o in zip(overrides, _parse(_in_full(overrides)))]


def to_yaml(tree: DictConfig) -> str:
    """The composed configuration as YAML, interpolations resolved."""
    return OmegaConf.to_yaml(tree, resolve=True)


def _config_dir(config_dir: str | None) -> Path | None:
    if config_dir is None:
        return None
    folder = Path(config_dir).resolve()
    if not folder.is_dir():
        raise UserError(f"no such folder of configurations: {config_dir}", do="name an existing one with --config-dir")
    return folder


def _in_full(overrides: Sequence[str]) -> list[str]:
    """Overrides with short keys written out, and store keys that Hydra would read as numbers (12e4567890) quoted."""
    parts = [text.partition("=") for text in overrides]
    return [SHORT.get(key, key) + equals + NUMBERLIKE.sub(r"'\1'", value) for key, equals, value in parts]


def _parse(overrides: Sequence[str]) -> list[Override]:
    parser = OverridesParser.create()
    parsed = []
    for text in overrides:
        try:
            parsed.append(parser.parse_override(text))
        except HydraException as error:
            reason = str(error).splitlines()[0]
            raise UserError(
                f"cannot read the override {text!r}", where=reason, do="write key=value, +key=value or ~key"
            ) from None
    return parsed


def _sweep_points(overrides: Sequence[str]) -> Iterator[list[str]]:
    """The product over all overrides that hold several values (``a=1,2``, ``range(…)``, ``choice(…)``)."""
    choices = []
    for text, override in zip(overrides, _parse(overrides)):
        if override.is_sweep_override():
            key = override.get_key_element()
            choices.append([[f"{key}={value}"] for value in override.sweep_string_iterator()])
        else:
            choices.append([list(_leaves(text, override))])
    for point in itertools.product(*choices):
        yield [text for texts in point for text in texts]


def _leaves(text: str, override: Override) -> Iterator[str]:
    """An override whose value is a dictionary, as one override a leaf: typed nodes take no dictionaries.

    A value inside an open dictionary (``+method.weight={a:1,b:2}``) stays whole.
    """
    value, key = override.value(), override.get_key_element()
    if not isinstance(value, dict) or not value or _is_open(override.key_or_group.split(".")[:-1]):
        yield text
        return
    for name, leaf in value.items():
        quoted = f"{key}.{name}={Override._get_value_element_as_str(leaf)}"
        yield from _leaves(quoted, OverridesParser.create().parse_override(quoted))


def _is_open(path: Sequence[str]) -> bool:
    """Whether the schema leaves the names and types below a path open."""
    kind: Any = Config
    for part in path:
        if is_dataclass(kind):
            kind = get_type_hints(kind).get(part)
            kind = get_args(kind)[0] if get_origin(kind) is Union else kind  # Suite of Optional[Suite]
        else:
            kind = (get_args(kind) or (None, Any))[1]
    return kind is Any or get_args(kind) == (str, Any)


@contextmanager
def _hydra(extra: Path | None) -> Iterator[list[str]]:
    """An initialised Hydra; yields the overrides that add the user's own folder to its search path."""
    GlobalHydra.instance().clear()
    ConfigStore.instance().store(name="schema", node=Config)
    with initialize_config_dir(config_dir=str(FOLDER.resolve()), version_base="1.3", job_name="mergebench"):
        yield [f"hydra.searchpath=['file://{extra}']"] if extra else []


def _compose_one(overrides: list[str], extra: Path | None) -> tuple[Config, DictConfig]:
    known = groups([FOLDER, extra] if extra else [FOLDER])
    with _hydra(extra) as search:
        try:
            tree = _tree(overrides, known, search)
            _pools_as_written(tree, overrides, [FOLDER, extra] if extra else [FOLDER])
        except (YAMLError, UnicodeDecodeError) as error:
            raise no_yaml(error, str(extra)) from None
        except FAULTS as error:
            raise _explain(overrides, known, search, error) from None
    _check_keys(tree, Config, "")
    try:
        typed = OmegaConf.to_object(tree)
    except OmegaConfBaseException as error:
        where = str(getattr(error, "full_key", None) or "")
        raise UserError(_first_cause(error), where=where, do="give it a value, see --cfg for the rest") from None
    assert isinstance(typed, Config)
    return typed, tree


def _tree(overrides: list[str], known: dict[str, list[str]], search: list[str]) -> DictConfig:
    """The composed tree; a small world is put in after the choices of groups and before single values."""
    parsed = list(zip(overrides, _parse(overrides)))
    choices = {o.get_key_element(): text for text, o in parsed if o.key_or_group in known}
    values = [(text, o) for text, o in parsed if o.key_or_group not in known]
    plain = [text for text, o in values if not (o.is_add() or o.is_force_add() or o.is_delete())]
    if {"+scale", "++scale", "scale"} & choices.keys():
        tree = hydra_compose("config", overrides=[*search, *choices.values()])
        apply_scale(tree, keep_suite="suite" in choices)
        if plain:
            ConfigStore.instance().store(name="scaled", node=tree)
            tree = hydra_compose("scaled", overrides=[*search, *plain])
    else:
        tree = hydra_compose("config", overrides=[*search, *choices.values(), *plain])
    for _, override in values:
        if override.is_delete():
            _remove(tree, override)
        elif override.is_add() or override.is_force_add():
            _add(tree, override)
    return tree


def _pools_as_written(tree: DictConfig, overrides: list[str], folders: list[Path]) -> None:
    """Put the pools into the order in which they are written, where Hydra takes that of the defaults list.

    Those of the experiment's ``pools`` stand in that order, and so do those that the command line adds; every other
    pool keeps its place.
    """
    parsed = _parse(overrides)
    choices = [override.value() for override in parsed if override.key_or_group == "experiment"]
    files = [folder / f"experiment/{choice}.yaml" for choice in choices for folder in folders]
    texts = [file.read_text(encoding="utf-8") for file in files if file.is_file()]
    written = [[str(name) for name in OmegaConf.select(OmegaConf.create(text), "pools") or ()] for text in texts]
    known = {name for text in texts for name in re.findall(r"pools\.([^.:\s]+)", text)}.union(*written)
    added = [re.search(r"(?:^\+*|@)pools\.([^.]+)", o.get_key_element()) for o in parsed if o.is_add()]
    written.append([match[1] for match in added if match and match[1] not in known])
    order = list(tree.pools)
    for names in written:
        names = [name for name in dict.fromkeys(names) if name in order]
        places = sorted(order.index(name) for name in names)
        for place, name in zip(places, names):
            order[place] = name
    for name in order if order != list(tree.pools) else ():
        with open_dict(tree):
            tree.pools[name] = tree.pools.pop(name)


def _remove(tree: DictConfig, override: Override) -> None:
    """Take an entry out of a dictionary; where Hydra cannot, empty a dictionary that is a field of a dataclass."""
    parent, _, last = override.key_or_group.rpartition(".")
    node = OmegaConf.select(tree, parent) if parent else tree
    if not isinstance(node, DictConfig) or last not in node:
        raise ConfigKeyError(f"there is no {override.key_or_group} to take out")
    if not is_dataclass(OmegaConf.get_type(node)):
        with open_dict(node):
            del node[last]
    elif isinstance(node._get_node(last), DictConfig) and OmegaConf.get_type(node._get_node(last)) is dict:
        node[last] = {}
    else:
        raise ConfigKeyError(f"{override.key_or_group} has to have a value")


def _add(tree: DictConfig, override: Override) -> None:
    """Add a value below ``+key``, where Hydra itself cannot add an entry to a dictionary of dataclasses."""
    *parents, last = override.key_or_group.split(".")
    node, typed = tree, False
    for part in parents:
        kind = node._metadata.element_type
        open_ended = get_origin(kind) is dict or (kind is Any and OmegaConf.get_type(node) is dict)
        if part not in node and (is_dataclass(kind) or open_ended):
            with open_dict(node):
                node[part] = OmegaConf.structured(kind) if is_dataclass(kind) else {}
        node, typed = node[part], typed or is_dataclass(kind)
    if last in node and not typed and not override.is_force_add() and not isinstance(override.value(), dict):
        raise ConfigKeyError(f"{override.key_or_group} is there already")
    kind, value = node._metadata.element_type, override.value()
    plain = value == {} and is_dataclass(kind)  # an entry with its defaults: +suite.tasks.piqa={}
    OmegaConf.update(node, last, OmegaConf.structured(kind) if plain else value, force_add=True)


def _check_keys(node: DictConfig, schema: type, prefix: str) -> None:
    """Refuse keys that the schema does not know; a plus sign can put them into the tree."""
    known = {f.name for f in fields(schema)}
    for key in map(str, node):
        if key not in known:
            raise UserError(f"no key is called {prefix + key!r}", where="conf/schema.py", do=nearest(key, known))
        child = None if OmegaConf.is_missing(node, key) else node._get_node(key)
        if isinstance(child, DictConfig) and not child._is_none():
            kind = OmegaConf.get_type(child)
            if kind is not None and is_dataclass(kind):
                _check_keys(child, kind, f"{prefix}{key}.")
            for name, entry in child.items_ex(resolve=False) if kind is dict else ():
                below = OmegaConf.get_type(entry) if isinstance(entry, DictConfig) else None
                if below is not None and is_dataclass(below):
                    _check_keys(entry, below, f"{prefix}{key}." + str(name) + ".")


def _explain(overrides: list[str], known: dict[str, list[str]], search: list[str], error: BaseException) -> UserError:
    """One line for a failed composition: what, where, and the nearest valid names."""
    parsed = _parse(overrides)
    chosen = [(text, override) for text, override in zip(overrides, parsed) if override.key_or_group in known]
    for _, override in chosen:
        group, choice = override.key_or_group, override.value()
        if isinstance(choice, str) and choice not in known[group]:
            return UserError(
                f"no {group} is called {choice!r}", where=f"conf/{group}/", do=nearest(choice, known[group])
            )
    texts = [text for text, _ in chosen]
    try:
        tree = hydra_compose("config", overrides=[*search, *texts], return_hydra_config=True)
    except FAULTS as inner:
        return UserError(_first_cause(inner), where=" ".join(texts), do="mend the file named, or choose another")
    apply_scale(tree, keep_suite="suite" in {override.get_key_element() for _, override in chosen})
    homes = {
        key.split("@")[-1]: f"conf/{key.split('@')[0]}/{choice}.yaml"
        for key, choice in tree.hydra.runtime.choices.items()
        if choice
    }
    for text, override in zip(overrides, parsed):
        if override.key_or_group not in known and (problem := _explain_key(text, override, tree, homes, known)):
            return problem
    return UserError(_first_cause(error), where=" ".join(overrides), do="see --cfg for the keys there are")


def _explain_key(
    text: str, override: Override, tree: DictConfig, homes: dict[str, str], known: dict[str, list[str]]
) -> UserError | None:
    """Why a value override fails, or None when it is not the one at fault."""
    parts, node = override.key_or_group.split("."), tree
    for depth, part in enumerate(parts):
        parent = ".".join(parts[:depth])
        if not isinstance(node, DictConfig) or node._is_none():
            return UserError(f"{parent!r} is not a group of keys", where=text, do=f"give {parent} a value as a whole")
        if part not in node:
            if override.is_add() and depth == len(parts) - 1:
                return None
            names = [str(k) for k in node if k != "hydra"] + (list(known) if depth == 0 else [])
            return UserError(
                f"no key is called {f'{parent}.{part}'.strip('.')!r}",
                where=_home(parent, homes),
                do=nearest(part, names),
            )
        node = node._get_node(part)  # type: ignore[assignment]
    if override.is_add():
        return UserError(f"{override.key_or_group!r} is there already", where=text, do="write it without the plus sign")
    try:
        OmegaConf.update(tree, override.key_or_group, override.value(), force_add=False)
    except (OmegaConfBaseException, AssertionError) as error:
        return UserError(f"{text}: {str(error).splitlines()[0]}", where=_home(".".join(parts[:-1]), homes))
    return None


def _home(parent: str, homes: dict[str, str]) -> str:
    """The file in which the keys below a node live: the choice that fills the node or the nearest one above it."""
    while parent:
        if parent in homes:
            return homes[parent]
        parent = parent.rpartition(".")[0]
    return "conf/schema.py"


def _first_cause(error: BaseException) -> str:
    """The innermost message of a chain of exceptions, on one line."""
    while error.__cause__ is not None:
        error = error.__cause__
    lines = [re.sub(r"\s+", " ", line).strip() for line in str(error).splitlines()]
    return "; ".join(line for line in lines if line)[:300]
