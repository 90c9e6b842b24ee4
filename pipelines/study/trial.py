"""A trial: one model (base, expert or recipe) on one suite. Its key holds what can change its number, nothing else."""

from __future__ import annotations

import dataclasses
import itertools
import math
import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from conf.errors import UserError
from conf.schema import Config, Sampler, Suite
from mergeopt_core.merging.info import MethodInfo
from mergeopt_core.merging.mergekit_api import describe
from pipelines.merge.recipe import Recipe
from pipelines.store.store import content_key, model_title
from pipelines.study.sources import VOCABULARY_FILES, Source, tokenizer_fingerprint

RESULT_VERSION = 1
"""Part of every key: raised when the same trial would give other numbers."""


def model_key(model: dict[str, Any]) -> str:
    """Content key of weights, from what a result's entry says of its model."""
    return content_key({"version": RESULT_VERSION, "model": model})


@dataclass(frozen=True)
class Trial:
    """One model on one suite.

    ``kind`` is base, expert or merge; ``base`` is the pool's base, whose tokenizer and architecture the model is read
    with; ``experts`` are the weights that are scored (one expert) or merged (in order); ``merge`` is the recipe.
    """

    kind: str
    base: Source
    experts: tuple[Source, ...]
    suite: Suite
    suite_fingerprint: dict[str, Any]
    merge: Recipe | None = None
    random: bool = True
    names: tuple[str, ...] = field(default=(), compare=False)
    statistics: tuple[Source, ...] = ()
    """What the method needs of each expert's data, in the experts' order; empty for most methods."""

    @cached_property
    def key(self) -> str:
        """Content key over weights, method, parameters, seed, dtypes, suite and evaluation settings."""
        return content_key({"version": RESULT_VERSION, "model": self._model(), "suite": self._suite()})

    @cached_property
    def model_key(self) -> str:
        """Content key of the weights alone, whatever they are scored on."""
        return model_key(self._model())

    def _model(self) -> dict[str, Any]:
        if self.kind == "base":
            return {"weights": self.base.fingerprint}
        if self.merge is None:
            return {"weights": self.experts[0].fingerprint}
        return {
            "base": self.base.fingerprint,
            "experts": [expert.fingerprint for expert in self.experts],
            "method": self.merge.method,
            "parameters": self.merge.parameters,
            "seed": self.merge.seed if self.random else None,
            "dtype": self.merge.dtype,
            "vocab": self.merge.vocab,
            "strict": self.merge.strict,
            **({"statistics": [source.fingerprint for source in self.statistics]} if self.statistics else {}),
        }

    def _suite(self) -> dict[str, Any]:
        return {**self.suite_fingerprint, "tokenizer": tokenizer_fingerprint(self.reader)}

    @property
    def reader(self) -> str:
        """Folder of the tokenizer that the model is read with: the base's, unless an expert has another vocabulary."""
        if self.kind == "expert":
            own = tokenizer_fingerprint(self.experts[0].path, VOCABULARY_FILES)
            if own and own != tokenizer_fingerprint(self.base.path, VOCABULARY_FILES):
                return self.experts[0].path
        return self.base.path

    @property
    def title(self) -> str:
        """The model's name in messages."""
        return model_title(self.kind, self.names or [self.base.path], self.merge.method if self.merge else None)

    @property
    def source(self) -> dict[str, Any]:
        """Where the weights come from, as lm-eval names a model: a checkpoint that can be loaded, or a recipe."""
        if self.merge:
            return {"model": self.title, "merge": self.merge.to_dict()}
        return {"pretrained": (self.experts[0] if self.experts else self.base).path, "dtype": self.suite.dtype}

    def about(self) -> dict[str, Any]:
        """What the store's entry says of the trial."""
        return {
            "trial": self.kind,
            "model": self._model(),
            "names": list(self.names),
            "base": dataclasses.asdict(self.base),
            "experts": [dataclasses.asdict(expert) for expert in self.experts],
            "statistics": [dataclasses.asdict(source) for source in self.statistics],
            "recipe": self.merge.to_dict() if self.merge else None,
            "suite": self.suite.name,
            "settings": self._suite(),
        }


def draw_subsets(experts: Sequence[str], sampler: Sampler) -> list[tuple[str, ...]]:
    """Subsets of each size in ``sampler.sizes``, each in the pool's order.

    All C(n, k) subsets where there are at most ``samples`` of them, otherwise ``samples`` distinct ones. Asking for
    more samples later keeps the ones drawn before, so that a study can be extended. Sizes above n are left out (see
    ``left_out``).
    """
    if any(size < 1 for size in sampler.sizes) or sampler.samples < 1:
        raise UserError(
            "subset sizes and samples are at least 1", where="sampler", do="mend sampler.sizes or sampler.samples"
        )
    sizes = sampler.sizes or [len(experts)]
    return [
        subset for size in dict.fromkeys(sizes) if size <= len(experts) for subset in _of_size(experts, size, sampler)
    ]


def _of_size(experts: Sequence[str], size: int, sampler: Sampler) -> list[tuple[str, ...]]:
    if math.comb(len(experts), size) <= sampler.samples:
        return list(itertools.combinations(experts, size))
    rng = random.Random(f"subsets:{sampler.seed}:{size}:{len(experts)}")
    drawn: dict[tuple[int, ...], None] = {}
    while len(drawn) < sampler.samples:
        drawn[tuple(sorted(rng.sample(range(len(experts)), size)))] = None
    return [tuple(experts[i] for i in chosen) for chosen in drawn]


def draw_orders(subset: tuple[str, ...], sampler: Sampler) -> list[tuple[str, ...]]:
    """Orders in which a method that depends on the order merges a subset: the pool's first, then seeded others.

    All k! orders where there are at most ``orders`` of them; asking for more later keeps the ones drawn before.
    """
    if sampler.orders < 1:
        raise UserError("there is at least one order", where="sampler.orders", do="mend sampler.orders")
    drawn = {subset: None}
    if math.factorial(len(subset)) <= sampler.orders:
        return list(itertools.permutations(subset))
    rng = random.Random(f"orders:{sampler.seed}:{subset}")
    while len(drawn) < sampler.orders:
        drawn[tuple(rng.sample(subset, len(subset)))] = None
    return list(drawn)


def takes(method: MethodInfo, experts: int) -> bool:
    """Whether a method merges so many experts."""
    return method.min_experts <= experts <= (method.max_experts or experts)


def left_out(config: Config) -> tuple[list[tuple[str, str, str]], list[str]]:
    """Sizes and methods that cannot run at all (where, what, what to do), and notes on those that run in part."""
    impossible, notes = [], []
    counts = {name: len(pool.experts) + len(pool.tasks) for name, pool in config.pools.items()}
    for size in dict.fromkeys(config.sampler.sizes):
        small = [f"{name} ({n})" for name, n in counts.items() if n < size]
        if len(small) == len(counts):
            do = f"choose sizes up to {max(counts.values())}"
            impossible.append(("sampler.sizes", f"no pool has {size} experts: {', '.join(small)}", do))
        elif small:
            notes.append(f"Left out: subsets of {size} experts in {', '.join(small)}, which has fewer experts.")
    drawn = {(n, size) for n in counts.values() for size in config.sampler.sizes or [n] if size <= n}
    sizes = sorted({size for _, size in drawn})
    for label, method in config.methods.items():
        info = describe(str(method.get("method")))
        unfit = [size for size in sizes if not takes(info, size)]
        most = (
            ""
            if info.max_experts == info.min_experts
            else f" to {info.max_experts}"
            if info.max_experts
            else " or more"
        )
        wrong = f"{label} merges {info.min_experts}{most} expert{'' if (info.max_experts or 2) == 1 else 's'}"
        if sizes and unfit == sizes:
            do = f"give sampler.sizes a size that it takes, or leave it out with ~methods.{label}"
            impossible.append((f"methods.{label}", f"{wrong}, and subsets are of {_listed(sizes)}", do))
        elif unfit:
            notes.append(f"Left out: {label} of {_listed(unfit)} experts, because {wrong}.")
    return impossible, notes


def _listed(sizes: Sequence[int]) -> str:
    return ", ".join(map(str, sizes))
