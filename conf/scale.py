"""A study in a small world: ``+scale=tiny`` puts a small base, small experts and a local suite in place of its own.

Hydra merges dictionaries and cannot replace one, so this is done on the composed tree, after the choices of groups and
before the overrides of single values, which therefore still win. What a pool says of training stays, in the small
world's units: method, optimizer, budget, and the learning rate, batch size and MergOPT's lengths times a factor.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import takewhile
from typing import Any

from omegaconf import DictConfig, OmegaConf, open_dict

from conf.schema import Scale

LENGTHS = ("scale", "loc", "fit_start")
"""Parameters of MergOPT that are lengths in the weights' units."""


def apply_scale(tree: DictConfig, *, keep_suite: bool = False) -> None:
    """Replace pools and suite of a composed tree by those of ``tree.scale``, in place.

    Pools of the built-in base are left alone; pools that become equal (they differed in nothing but their base and
    experts) become one. The suite is left alone with ``keep_suite``; its attack stays in any case.
    """
    scale = tree.scale
    if scale.pool is not None:
        pools = {name: _small(pool, scale) if pool.base.path else pool for name, pool in tree.pools.items()}
        tree.pools = {}
        with open_dict(tree.pools):
            for name, pool in _distinct(pools, scale.name):
                tree.pools[name] = pool
    if scale.suite is not None and not keep_suite:
        attack = tree.suite.attack
        tree.suite = scale.suite
        tree.suite.attack = attack
    tree.scale = OmegaConf.structured(Scale(name=scale.name))


def _small(pool: DictConfig, scale: DictConfig) -> DictConfig:
    """The scale's pool, trained as this one is."""
    small = scale.pool.copy()
    if not pool.tasks:
        return small
    small.finetuning = _in_units(pool.finetuning, scale.offset)
    small.optimizer.name = pool.optimizer.name
    small.optimizer.momentum = pool.optimizer.momentum
    small.optimizer.lr = _times(pool.optimizer.lr, scale.lr)
    small.training.batch_size = max(1, round(pool.training.batch_size * pool.training.accumulation * scale.batch_size))
    small.budget, small.seed, small.reference = pool.budget, pool.seed, pool.reference
    own = [task.finetuning for task in pool.tasks.values()]
    for k, task in enumerate(small.tasks.values()):
        task.finetuning = _in_units(own[k % len(own)], scale.offset)
    return small


def _in_units(finetuning: DictConfig, offset: float) -> dict[str, Any]:
    """A fine-tuning method with its lengths times a factor."""
    found = {str(key): value for key, value in finetuning.items()}
    lengths = {key: found[key] for key in LENGTHS if isinstance(found.get(key), (int, float))}
    return {**found, **{key: _times(value, offset) for key, value in lengths.items()}}


def _times(value: float, factor: float) -> float:
    """The product without the noise of its last digits, so that equal settings have equal keys."""
    return float(f"{value * factor:.12g}")


def _distinct(pools: dict[Any, DictConfig], fallback: str) -> Iterator[tuple[str, DictConfig]]:
    """Each distinct pool once, under the words that the names of its equals begin with."""
    groups: list[tuple[Any, list[str]]] = []
    for name, pool in pools.items():
        content = OmegaConf.to_container(pool, resolve=True)
        same = next((names for found, names in groups if found == content), None)
        if same is None:
            groups.append((content, [str(name)]))
        else:
            same.append(str(name))
    taken = {names[0] for _, names in groups if len(names) == 1}
    for _, names in groups:
        name = names[0] if len(names) == 1 else _shared(names) or fallback
        name = names[0] if len(names) > 1 and name in taken else name
        taken.add(name)
        yield name, pools[names[0]]


def _shared(names: Sequence[str]) -> str:
    """The words that all names begin with: ``standard`` of ``standard_llama_1b`` and ``standard_qwen_4b``."""
    columns = zip(*(name.split("_") for name in names))
    return "_".join(words[0] for words in takewhile(lambda words: len(set(words)) == 1, columns))
