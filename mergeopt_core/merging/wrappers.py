"""Methods that change another method's update: any base method with its parameters, passes and merge, and nested."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

from torch import Tensor

from mergeopt_core.merging import mergekit_api as api
from mergeopt_core.merging.matrices import join_signatures
from mergeopt_core.merging.mergekit_api import method
from mergeopt_core.merging.run import BoundMethod
from mergeopt_core.merging.trimming import Models
from mergeopt_core.merging.updates import Updates

Learn = Callable[[Models, Mapping[str, Any], "BaseMerge"], Any]
"""What a wrapper learns from all tensors: of one pass over them, its parameters, and the base method's merge."""


class BaseMerge:
    """The base method of a wrapper, with its parameters for given experts and what its own passes came to."""

    def __init__(self, parameters: Mapping[str, Any], keys: Sequence[str], seed: int):
        name, experts = parameters["base_method"], len(keys)
        checked = api.check_parameters(name, parameters["base_parameters"], experts)
        self._bound, self.prepared = BoundMethod(name, checked, keys, seed=seed), None

    def prepare(self, models: Models) -> BaseMerge:
        """Make the passes that the base method asks for."""
        self.prepared = self._bound.prepare(models)
        return self

    def update(self, name: str, base: Tensor, experts: Sequence[Tensor]) -> Tensor:
        """base_method(θ0, θ_1 … θ_K) − θ0 ``[*shape]`` in float64, so that it is not rounded to the size of θ0."""
        wide = base.double()
        return self._bound.merge(name, wide, [e.double() for e in experts], prepared=self.prepared) - wide


def depends_as_base(parameters: Mapping[str, Any], experts: int) -> tuple[bool, bool]:
    """``depends`` of a method that has a base method: that one's."""
    base = api.check_parameters(parameters["base_method"], parameters["base_parameters"], experts)
    return api.depends(parameters["base_method"], base, experts)


def wrapper_method(
    name: str, *, pretty: str, url: str, learn: Learn | None = None, check: Callable[..., None] | None = None
) -> Callable[[Any], Any]:
    """Decorator: register ``f(updates, update, …own…) -> update [*shape]``, ``update`` the base method's in float64.

    The method also gets ``base_method``, ``base_parameters`` and ``lambda``. With ``learn``, ``f`` takes
    what that came to in a pass over all tensors after ``update``.
    """

    def prepare(models: Models, parameters: Mapping[str, Any], keys: Sequence[str], seed: int, cache: Any) -> Any:
        merge = BaseMerge(parameters, keys, seed).prepare(models)
        return {"merge": merge, "learnt": learn(models, parameters, merge) if learn else None}

    def check_base(parameters: Mapping[str, Any], experts: int) -> None:
        base = parameters["base_method"]
        info = api.describe(base)
        if info.statistics or info.adapters or base == name:
            raise ValueError(f"{name}: base_method cannot be {base}")
        api.check_parameters(base, parameters["base_parameters"], experts)
        if check:
            check(parameters, experts)

    def add(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def kernel(
            updates: Updates,
            base_method: str = "task_arithmetic",
            base_parameters: Mapping[str, Any] = MappingProxyType({}),
            lambda_: float = 1.0,
            seed: int = 0,
            prepared: Any = None,
            **own: Any,
        ) -> Tensor:
            by_id = dict(zip(updates.keys, updates.experts))
            if prepared is None:
                raise ValueError(f"{updates.name}: {name} needs a pass over all tensors (see prepare)")
            update = prepared["merge"].update(updates.name, updates.base, [by_id[key] for key in updates.given])
            learnt = [prepared["learnt"]] if learn else []
            return updates.merged(function(updates, update, *learnt, **own), lambda_)

        join_signatures(kernel, function, before="seed")
        traits = {"random": True, "ordered": True, "prepare": prepare, "check": check_base, "depends": depends_as_base}
        method(name, pretty=pretty, url=url, **traits)(kernel)
        return function

    return add
