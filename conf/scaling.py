"""The small world of ``+scale=tiny``: what takes the place of a study's pools, suite, experts and tasks."""

from __future__ import annotations

import copy
import itertools
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from omegaconf import DictConfig, OmegaConf

from conf.schema import Scale, Suite

LENGTHS = ("scale", "loc", "fit_start")
"""Parameters of MergOPT that are lengths in the weights' units."""

JOINED = r"(\+| > )"
"""What stands between the experts of a subset or an order."""

Node = dict[str, Any]


def apply_scale(tree: DictConfig, *, keep_suite: bool = False) -> None:
    """Replace pools and suite of a composed tree by those of ``tree.scale``, in place.

    Hydra merges dictionaries and cannot replace one. Pools of the built-in base are left alone; pools that become equal
    (they differed in nothing but their base and experts) become one. What a pool says of training stays, in the small
    world's units. The suite is left alone with ``keep_suite``; its attack stays in any case. Experts and tasks that the
    sampler and the report name become those that stand at the same place in the small world. Attacks by a model of the
    hub are left out.
    """
    _leave_out_models(tree)
    scale: Any = OmegaConf.to_container(tree.scale)
    if scale["images"] and any(task.images for task in tree.suite.tasks.values()):
        scale |= scale["images"]
    small: Node = {}
    names: dict[str, dict[str, str]] = {}
    if scale["pool"] is not None:
        pools: Any = OmegaConf.to_container(tree.pools, resolve=True)
        experts = _places(({**pool["experts"], **pool["tasks"]} for pool in pools.values()), scale["pool"]["tasks"])
        names |= dict.fromkeys(("subsets", "experts", "subset", "order", "landscape"), experts)
        found = {name: _small(pool, scale) if pool["base"]["path"] else pool for name, pool in pools.items()}
        tree.pools, small["pools"] = {}, dict(_distinct(found, scale["name"]))
    if scale["suite"] is not None and not keep_suite:
        tasks = _places([tree.suite.tasks], scale["suite"]["tasks"])
        names |= {"tasks": tasks, "task": tasks}
        small["suite"] = {**scale["suite"], "attack": tree.suite.attack}
        tree.suite = OmegaConf.structured(Suite)
    for part in {"sampler", "report"} & set(tree):
        small[part] = _renamed(OmegaConf.to_container(tree[part]), part, names)
    for entry in small.get("sampler", {}).get("subsets", ()) if "suite" in small else ():
        if isinstance(entry, dict):
            entry.pop("suite", None)  # the small suite takes its place too
    small["landscape"] = scale["landscape"]
    tree.scale = OmegaConf.structured(Scale(name=scale["name"]))
    tree.merge_with(small)


def _leave_out_models(tree: DictConfig) -> None:
    """Take out attacks by a model, which comes from the hub, and the views that are of them."""
    gone = {attack for attack in tree.attacks if ":" in attack}
    tree.attacks = [attack for attack in tree.attacks if attack not in gone]
    for part in (tree.report.tables, tree.report.figures):
        for name in list(part):
            of = part[name].get("where", {}).get("attack", ())
            if gone & ({of} if isinstance(of, str) else {*of}):
                del part[name]


def _small(pool: Node, scale: Node) -> Node:
    """The scale's pool, trained as this one is: learning rate, batch size and MergOPT's lengths times a factor."""
    small = copy.deepcopy(scale["pool"])
    if not pool["tasks"]:
        return small
    batch = pool["training"]["batch_size"] * pool["training"]["accumulation"]
    small["finetuning"] = _in_units(pool["finetuning"], scale["offset"])
    small["optimizer"] |= {key: pool["optimizer"][key] for key in ("name", "momentum")}
    small["optimizer"]["lr"] = _times(pool["optimizer"]["lr"], scale["lr"])
    small["training"]["batch_size"] = max(1, round(batch * scale["batch_size"]))
    small |= {key: pool[key] for key in ("budget", "seed", "seeds", "reference")}
    own = [task["finetuning"] for task in pool["tasks"].values()]
    for task, finetuning in zip(small["tasks"].values(), itertools.cycle(own)):
        task["finetuning"] = _in_units(finetuning, scale["offset"])
    return small


def _places(groups: Iterable[Iterable[str]], small: Iterable[str]) -> dict[str, str]:
    """For every name of the groups the small one at its place, the first again after the last; earlier groups win."""
    found: dict[str, str] = {}
    for group in groups:
        found = dict(zip(group, itertools.cycle(small))) | found
    return found


def _renamed(node: Any, key: str, names: Mapping[str, Mapping[str, str]]) -> Any:
    """The node with every name that stands below one of the keys replaced by the key's name for it."""
    if isinstance(node, dict):
        return {below: _renamed(value, below, names) for below, value in node.items()}
    if isinstance(node, list):
        return [_renamed(value, key, names) for value in node]
    if not isinstance(node, str) or key not in names:
        return node
    return "".join(names[key].get(name, name) for name in re.split(JOINED, node))


def _in_units(finetuning: Node, offset: float) -> Node:
    """A fine-tuning method with its lengths times a factor."""
    lengths = {key: finetuning[key] for key in LENGTHS if isinstance(finetuning.get(key), (int, float))}
    return {**finetuning, **{key: _times(value, offset) for key, value in lengths.items()}}


def _times(value: float, factor: float) -> float:
    """The product without the noise of its last digits, so that equal settings have equal keys."""
    return float(f"{value * factor:.12g}")


def _distinct(pools: dict[str, Node], fallback: str) -> Iterator[tuple[str, Node]]:
    """Each distinct pool once, under the words that the names of its equals begin with."""
    equals = {name: [n for n, other in pools.items() if other == pool] for name, pool in pools.items()}
    firsts = {name: names for name, names in equals.items() if name == names[0]}
    taken = {name for name, names in firsts.items() if len(names) == 1}
    for first, names in firsts.items():
        # the words that all begin with: "standard" of standard_llama_1b and standard_qwen_4b
        columns = zip(*(name.split("_") for name in names))
        shared = "_".join(words[0] for words in itertools.takewhile(lambda words: len(set(words)) == 1, columns))
        name = first if len(names) == 1 or (shared or fallback) in taken else shared or fallback
        taken.add(name)
        yield name, pools[first]
