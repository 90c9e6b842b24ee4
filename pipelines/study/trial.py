"""A trial: one model (base, expert or recipe) on one suite. Its key holds what can change its number, nothing else."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Generic, Protocol, TypeVar

from conf.schema import Suite
from mergeopt_core.merging.mergekit_api import describe
from pipelines.checkpoints.card import linearised_at
from pipelines.checkpoints.checkpoint import OpenCheckpoint
from pipelines.checkpoints.code import code_hash, runs_code
from pipelines.checkpoints.fingerprint import PROCESSOR_FILES, READER_FILES, VOCABULARY_FILES
from pipelines.evaluate.image_suite import of_images
from pipelines.merge.recipe import Recipe
from pipelines.merge.stream import Merge
from pipelines.store.store import content_key, model_title
from pipelines.study.information import Information
from pipelines.study.sources import Source, tokenizer_fingerprint

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
    names: tuple[str, ...] = field(default=(), compare=False)
    information: tuple[Source, ...] = ()
    """What the method needs of each expert's data, in the experts' order; empty for most methods."""

    def __post_init__(self) -> None:
        if self.merge is not None:
            object.__setattr__(self, "merge", located(self.merge, self.base, self.experts))

    @cached_property
    def key(self) -> str:
        """Content key over weights, method, parameters, seed, dtypes, suite and evaluation settings."""
        linear = {"linearised_at": self.base.fingerprint} if self.linearised else {}
        return content_key({"version": RESULT_VERSION, "model": self._model(), "suite": self._suite(), **linear})

    @cached_property
    def tangent(self) -> bool:
        """Whether all of the model's experts were trained in the tangent space at the base."""
        return bool(self.experts) and all(linearised_at(expert.path) for expert in self.experts)

    @property
    def linearised(self) -> bool:
        """Whether the model is scored as f(θ0) + J(θ − θ0) and not as an ordinary network (the base is either)."""
        choice = self.suite.linearised
        return bool(self.experts) and (self.tangent if choice == "auto" else bool(choice))

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
            "seed": self.merge.seed if describe(self.merge.method).random else None,
            "dtype": self.merge.dtype,
            "vocab": self.merge.vocab,
            "strict": self.merge.strict,
            **({"statistics": [source.fingerprint for source in self.information]} if self.information else {}),
        }

    def _suite(self) -> dict[str, Any]:
        suite, template = self.suite, self.suite.chat_template
        named = (f"additional_chat_templates/{template}.jinja",) if isinstance(template, str) else ()
        folders = dict.fromkeys((self.base.path, self.reader))
        code = [code_hash(folder) for folder in folders if runs_code(folder, suite.trust_remote_code)]
        tokenizer = tokenizer_fingerprint(self.reader, (*READER_FILES, *named))
        found = {**self.suite_fingerprint, "tokenizer": tokenizer, **({"code": code} if code else {})}
        if of_images(suite):  # the base makes the head
            found |= {"head": self.base.fingerprint, "processor": tokenizer_fingerprint(self.reader, PROCESSOR_FILES)}
        return found

    @property
    def reads(self) -> frozenset[str]:
        """Folders of the experts that it reads."""
        return frozenset(expert.path for expert in self.experts)

    @property
    def reader(self) -> str:
        """Folder of the tokenizer that the model is read with: the base's, unless an expert has another vocabulary."""
        if self.kind == "expert" and not of_images(self.suite):  # whose head is the base's
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
        path, how = (self.experts[0] if self.experts else self.base).path, self.suite.quantization
        further = {f"load_in_{how}": True} if how else {}
        further |= {"trust_remote_code": True} if "code" in self._suite() else {}
        return {"pretrained": path, "dtype": self.suite.dtype, **further}

    def about(self) -> dict[str, Any]:
        """What the store's entry says of the trial."""
        return {
            "trial": self.kind,
            "model": self._model(),
            "names": list(self.names),
            "base": dataclasses.asdict(self.base),
            "experts": [dataclasses.asdict(expert) for expert in self.experts],
            "statistics": [dataclasses.asdict(source) for source in self.information],
            "recipe": self.merge.to_dict() if self.merge else None,
            "suite": self.suite.name,
            "settings": self._suite(),
            **({"linearised": self.linearised} if self.tangent or self.linearised else {}),
        }


def located(recipe: Recipe, base: Source, experts: Sequence[Source]) -> Recipe:
    """A recipe with the folders of its checkpoints."""
    return dataclasses.replace(recipe, base=base.path, experts=tuple(expert.path for expert in experts))


def open_merge(
    recipe: Recipe,
    base: Source,
    experts: Sequence[Source],
    information: Sequence[Source],
    open: Callable[[str], OpenCheckpoint],
    cache: Any = None,
) -> Merge:
    """A recipe's merge; ``open`` opens a folder's checkpoint, ``cache`` is what merges of this base share."""
    return Merge(
        located(recipe, base, experts),
        open(base.path),
        [open(expert.path) for expert in experts],
        [expert.fingerprint for expert in experts],
        base_id=base.fingerprint,
        statistics=[Information(source) for source in information],
        cache=cache,
    )


class Work(Protocol):
    """What a worker runs: a trial, or a job that makes experts."""

    @property
    def base(self) -> Source:
        """The base that the worker reads."""

    @property
    def reads(self) -> frozenset[str]:
        """Folders of the experts that it reads."""


W = TypeVar("W", bound=Work)


@dataclass(frozen=True)
class Failure(Generic[W]):
    """A trial or job that was set aside."""

    trial: W
    reason: str


@dataclass
class Outcome(Generic[W]):
    """How a set of trials or jobs ended."""

    done: int = 0
    elsewhere: int = 0
    """Finished by another process while this one ran."""
    failures: list[Failure[W]] = field(default_factory=list)
    interrupted: bool = False
    seconds: dict[str, float] = field(default_factory=dict)
    """Wall time of the trials that were done here, by part: merge, evaluate, commit."""

    def add(self, trial: W, became: str, reason: str, seconds: Mapping[str, float]) -> None:
        """Count a trial by what became of it: done, elsewhere or failed."""
        if became == "failed":
            self.failures.append(Failure(trial, reason))
        elif became == "elsewhere":
            self.elsewhere += 1
        else:
            self.done += 1
        for part, spent in seconds.items():
            self.seconds[part] = self.seconds.get(part, 0.0) + spent

    def join(self, later: Outcome[W]) -> None:
        """Add how further trials ended."""
        self.done += later.done
        self.elsewhere += later.elsewhere
        self.failures += later.failures
        self.interrupted = self.interrupted or later.interrupted
        for part, spent in later.seconds.items():
            self.seconds[part] = self.seconds.get(part, 0.0) + spent


OnWork = Callable[[W, str, int], None]
"""Called with a trial or job, what became of it (started, done, elsewhere or failed) and the worker that has it."""
