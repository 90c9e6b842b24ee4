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
from pathlib import Path
from typing import Any

from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from conf.errors import UserError, nearest
from conf.schema import Config

FOLDER = Path(__file__).parent


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

    Returns pairs of the typed configuration and the composed tree that ``--cfg`` prints.
    Raises UserError for anything misspelt, missing or of a wrong type.
    """
    extra = _config_dir(config_dir)
    return [_compose_one(point, extra) for point in _sweep_points(overrides)]


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
            choices.append([f"{key}={value}" for value in override.sweep_string_iterator()])
        else:
            choices.append([text])
    for point in itertools.product(*choices):
        yield list(point)


@contextmanager
def _hydra(extra: Path | None) -> Iterator[list[str]]:
    """An initialised Hydra; yields the overrides that add the user's own folder to its search path."""
    GlobalHydra.instance().clear()
    ConfigStore.instance().store(name="schema", node=Config)
    with initialize_config_dir(config_dir=str(FOLDER.resolve()), version_base="1.3", job_name="mergebench"):
        yield [f"hydra.searchpath=['file://{extra}']"] if extra else []


def _compose_one(overrides: list[str], extra: Path | None) -> tuple[Config, DictConfig]:
    with _hydra(extra) as search:
        try:
            tree = hydra_compose("config", overrides=[*search, *overrides])
        except (HydraException, OmegaConfBaseException) as error:
            raise _explain(overrides, extra, search, error) from None
    try:
        typed = OmegaConf.to_object(tree)
    except OmegaConfBaseException as error:
        where = getattr(error, "full_key", None) or ""
        raise UserError(
            str(error).splitlines()[0], where=str(where), do="give it a value, see `--cfg` for the rest"
        ) from None
    assert isinstance(typed, Config)
    return typed, tree


def _explain(overrides: list[str], extra: Path | None, search: list[str], error: Exception) -> UserError:
    """One line for a failed composition: what, where, and the nearest valid names."""
    folders = [FOLDER, extra] if extra else [FOLDER]
    known = groups(folders)
    parsed = _parse(overrides)
    for override in parsed:
        group = override.key_or_group
        if group in known and isinstance(override.value(), str) and override.value() not in known[group]:
            return UserError(
                f"no {group} is called {str(override.value())!r}", where=f"conf/{group}/", do=nearest(str(override.value()), known[group])
            )
    choice_overrides = [text for text, override in zip(overrides, parsed) if override.key_or_group in known]
    try:
        tree: Any = hydra_compose("config", overrides=[*search, *choice_overrides])
    except (HydraException, OmegaConfBaseException) as inner:
        return UserError(_first_cause(inner), where=" ".join(choice_overrides), do="mend the file named, or choose another")
    for text, override in zip(overrides, parsed):
        if override.key_or_group not in known and (problem := _explain_key(text, override, tree, choice_overrides, known)):
            return problem
    return UserError(_first_cause(error), where=" ".join(overrides), do="see `--cfg` for the keys there are")


def _explain_key(text: str, override: Override, tree: Any, chosen: list[str], known: dict[str, list[str]]) -> UserError | None:
    """Why a value override fails, or None when it is not the one at fault."""
    key = override.key_or_group
    parts, node = key.split("."), tree
    for depth, part in enumerate(parts):
        if not isinstance(node, DictConfig):
            return UserError(f"{'.'.join(parts[:depth])!r} is a value, not a group of keys", where=text)
        if part not in node:
            if override.is_add() and depth == len(parts) - 1 and not _typed(node):
                return None
            where = _home(parts[:depth], chosen)
            names = [str(k) for k in node] + (list(known) if depth == 0 else [])
            return UserError(f"no key is called {'.'.join(parts[: depth + 1])!r}", where=where, do=nearest(part, names))
        node = node._get_node(part) if node._get_node(part) is not None else node[part]
        node = getattr(node, "_value", lambda n=node: n)() if not isinstance(node, DictConfig) else node
    if override.is_add():
        return UserError(f"{key!r} is there already", where=text, do=f"write {key}=… without the plus sign")
    try:
        OmegaConf.update(tree, key, override.value(), force_add=False)
    except OmegaConfBaseException as error:
        return UserError(f"{text}: {str(error).splitlines()[0]}", where=_home(parts[:-1], chosen))
    return None


def _typed(node: DictConfig) -> bool:
    kind = OmegaConf.get_type(node)
    return kind is not None and kind is not dict


def _home(parents: list[str], chosen: list[str]) -> str:
    """The file in which the keys below these parents live."""
    if not parents:
        return "conf/config.yaml"
    for text in chosen:
        group, _, choice = text.lstrip("+").partition("=")
        if group == parents[0]:
            return f"conf/{group}/{choice}.yaml"
    return f"conf/{parents[0]}/" if (FOLDER / parents[0]).is_dir() else "conf/schema.py"


def _first_cause(error: BaseException) -> str:
    """The innermost message of a chain of exceptions, on one line."""
    while error.__cause__ is not None:
        error = error.__cause__
    lines = [re.sub(r"\s+", " ", line).strip() for line in str(error).splitlines()]
    return "; ".join(line for line in lines if line)[:300]
