"""A study in a small world: ``+scale=tiny`` puts a small base, small experts and a local suite in place of its own.

Hydra merges dictionaries and cannot replace one, so this is done on the composed tree, after the choices of groups and
before the overrides of single values, which therefore still win. What a pool says of training stays, in the small
world's units: method, optimizer, budget, and the learning rate, batch size and MergOPT's lengths times a factor.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from itertools import takewhile
from typing import Any

from omegaconf import DictConfig, OmegaConf, open_dict

from conf.schema import Scale, Suite

Node = dict[str, Any]

LENGTHS = ("scale", "loc", "fit_start")
"""Parameters of MergOPT that are lengths in the weights' units."""


def apply_scale(tree: DictConfig, *, keep_suite: bool = False) -> None:
    """Replace pools and suite of a composed tree by those of ``tree.scale``, in place.

    Pools of the built-in base are left alone; pools that become equal (they differed in nothing but their base and
    experts) become one. The suite is left alone with ``keep_suite``; its attack stays in any case.
    """
    scale: Any = OmegaConf.to_container(tree.scale)
    small: Node = {}
    if scale["pool"] is not None:
        pools: Any = OmegaConf.to_container(tree.pools, resolve=True)
        found = {name: _small(pool, scale) if pool["base"]["path"] else pool for name, pool in pools.items()}
        tree.pools, small["pools"] = {}, dict(_distinct(found, scale["name"]))
    if scale["suite"] is not None and not keep_suite:
        small["suite"] = {**scale["suite"], "attack": tree.suite.attack}
        tree.suite = OmegaConf.structured(Suite)
    tree.scale = OmegaConf.structured(Scale(name=scale["name"]))
    with open_dict(tree):
        tree.merge_with(small)


def _small(pool: Node, scale: Node) -> Node:
    """The scale's pool, trained as this one is."""
    small = copy.deepcopy(scale["pool"])
    if not pool["tasks"]:
        return small
    batch = pool["training"]["batch_size"] * pool["training"]["accumulation"]
    small["finetuning"] = _in_units(pool["finetuning"], scale["offset"])
    small["optimizer"] |= {key: pool["optimizer"][key] for key in ("name", "momentum")}
    small["optimizer"]["lr"] = _times(pool["optimizer"]["lr"], scale["lr"])
    small["training"]["batch_size"] = max(1, round(batch * scale["batch_size"]))
    small |= {key: pool[key] for key in ("budget", "seed", "reference")}
    own = [task["finetuning"] for task in pool["tasks"].values()]
    for k, task in enumerate(small["tasks"].values()):
        task["finetuning"] = _in_units(own[k % len(own)], scale["offset"])
    return small


def _in_units(finetuning: Node, offset: float) -> Node:
    """A fine-tuning method with its lengths times a factor."""
    lengths = {key: finetuning[key] for key in LENGTHS if isinstance(finetuning.get(key), (int, float))}
    return {**finetuning, **{key: _times(value, offset) for key, value in lengths.items()}}


def _times(value: float, factor: float) -> float:
    """The product without the noise of its last digits, so that equal settings have equal keys."""
    return float(f"{value * factor:.12g}")


def _distinct(pools: dict[str, Node], fallback: str) -> Iterator[tuple[str, Node]]:
    """Each distinct pool once, under the words that the names of its equals begin with."""
    groups: list[tuple[Node, list[str]]] = []
    for name, pool in pools.items():
        same = next((names for found, names in groups if found == pool), None)
        if same is None:
            groups.append((pool, [name]))
        else:
            same.append(name)
    taken = {names[0] for _, names in groups if len(names) == 1}
    for pool, names in groups:
        name = names[0] if len(names) == 1 else _shared(names) or fallback
        name = names[0] if len(names) > 1 and name in taken else name
        taken.add(name)
        yield name, pool


def _shared(names: Sequence[str]) -> str:
    """The words that all names begin with: ``standard`` of ``standard_llama_1b`` and ``standard_qwen_4b``."""
    columns = zip(*(name.split("_") for name in names))
    return "_".join(words[0] for words in takewhile(lambda words: len(set(words)) == 1, columns))
