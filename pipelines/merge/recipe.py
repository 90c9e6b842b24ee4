"""A recipe: everything that fixes one merged model to the bit."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

import yaml

from conf.errors import UserError, nearest
from mergeopt_core import merging

DTYPES = ("auto", "float32", "float16", "bfloat16")
VOCAB = ("error", "base", "union")


@dataclass(frozen=True)
class Recipe:
    """Base, ordered experts, method, parameters, seed and dtype, and how unlike checkpoints are brought together."""

    base: str
    """Folder or hub id of the base."""
    experts: tuple[str, ...]
    """Folders or hub ids of the experts, in order."""
    method: str
    """Name in the registry of merge methods."""
    parameters: Mapping[str, Any] = field(default_factory=dict)
    """Parameters of the method; a per-expert one is a scalar, a list in the experts' order, or a mapping by expert."""
    seed: int = 0
    """Seed of random masks."""
    dtype: str = "auto"
    """Dtype of the merged weights; auto: that of the base's tensor."""
    vocab: str = "error"
    """Different vocabularies: an error, the base's, or the union of all."""
    strict: bool = True
    """Missing and extra tensors are errors; otherwise the base's stand in and extra ones are dropped."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "experts", tuple(self.experts))
        object.__setattr__(self, "parameters", dict(self.parameters))
        for name, valid in (("dtype", DTYPES), ("vocab", VOCAB)):
            if getattr(self, name) not in valid:
                raise UserError(f"{name}={getattr(self, name)} is not valid", do=nearest(getattr(self, name), valid))

    def to_dict(self) -> dict[str, Any]:
        """Plain fields, for JSON."""
        return {**dataclasses.asdict(self), "experts": list(self.experts)}

    def with_parameters(self, parameters: Mapping[str, Any]) -> Recipe:
        """The same recipe with other parameters (for example with the defaults filled in)."""
        return dataclasses.replace(self, parameters=dict(parameters))

    def mergekit_yaml(self, base_dtype: str | None = "float32", adapters: Collection[str] = ()) -> str:
        """The recipe as a mergekit configuration: float32 arithmetic, one cast to the output dtype.

        What mergekit's form cannot hold stands under ``mergebench``, which mergekit passes over and
        ``mergebench merge --mergekit-config`` reads. ``base_dtype`` is what dtype=auto comes to (None where tensors
        differ in it), ``adapters`` are the experts that are LoRA adapters.
        """
        models: list[dict[str, Any]] = [{"model": f"{self.base}+{e}" if e in adapters else e} for e in self.experts]
        shared, needs_base = {}, merging.describe(self.method).needs_base
        dtype = base_dtype if self.dtype == "auto" else self.dtype
        own: dict[str, Any] = {"seed": self.seed, "strict": self.strict}
        own |= ({} if needs_base else {"base": self.base}) | ({} if dtype else {"dtype": "auto"})
        for name, value in self.parameters.items():
            if name == "reference":
                own[name] = value
            elif isinstance(value, (list, tuple)):
                for model, one in zip(models, value):
                    model.setdefault("parameters", {})[name] = one
            elif value is not None:
                shared[name] = value
        document: dict[str, Any] = {
            "merge_method": self.method,
            **({"base_model": self.base} if needs_base else {}),
            "models": models,
            **({"parameters": shared} if shared else {}),
            "dtype": "float32",
            **({"out_dtype": dtype} if dtype else {}),
            **({"tokenizer": {"source": self.vocab}} if self.vocab != "error" else {}),
            "mergebench": own,
        }
        return yaml.safe_dump(document, sort_keys=False)
