"""The one file that knows mergekit's API: its registry, how a kernel is called, how one is added.

``names``, ``describe``, ``check_parameters`` and ``prepare`` are what the rest of the program uses, besides
``merge_tensor`` in run.py; ``method`` and ``fast_path`` are what kernels register themselves with.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import cache as remember
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, TypeVar

import torch
from mergekit.merge_methods import registry
from mergekit.merge_methods.base import (
    BasePolicy,
    FunctionalGroupMergeMethod,
    InputContract,
    PerInput,
    PerNonBase,
    TensorGroup,
)
from mergekit.merge_methods.easy_define import merge_method
from torch import Tensor

from mergeopt_core.merging import catalog
from mergeopt_core.merging import mergekit_methods as stock
from mergeopt_core.merging.checks import by_expert, check_count, check_values, unique_ids
from mergeopt_core.merging.info import MethodInfo, nearest
from mergeopt_core.merging.randomness import one_thread, seeded, tensor_seed

__all__ = [
    "PerExpert",
    "PerExpertOfAll",
    "TensorGroup",
    "check_parameters",
    "describe",
    "fast_path",
    "method",
    "names",
    "prepare",
]

T = TypeVar("T")
if TYPE_CHECKING:  # what a kernel is given behaves as a mapping from expert id to value
    PerExpert: TypeAlias = Mapping[Any, T]
    PerExpertOfAll: TypeAlias = Mapping[Any, T]
else:
    PerExpert = PerNonBase
    """Annotation of a kernel's per-expert parameter: ``weight: PerExpert[float]``."""
    PerExpertOfAll = PerInput
    """The same for a method that has no base."""

CARRIED = ("seed", "statistics", "prepared", "cache", "report")
"""Kernel arguments that a caller passes beside the parameters; they are no part of a recipe."""


@dataclass(frozen=True)
class Traits:
    """What a kernel declares beyond mergekit's own specification."""

    random: bool = False
    ordered: bool = False
    propagates: bool = False
    """A value that is not finite in any input always shows in the result, so inputs need no look of their own."""
    statistics: str | None = None
    prepare: Callable[..., Any] | None = None
    check: Callable[[Mapping[str, Any], int], None] | None = None
    when: Callable[[Mapping[str, Any]], bool] | None = None
    """Parameters that a fast path can serve; all where None."""


class Kernel(FunctionalGroupMergeMethod):
    """A kernel of ours as mergekit calls it: results in the inputs' dtype, whole-model passes over the given groups."""

    def __init__(self, function: Callable[..., Tensor], traits: Traits, **spec: Any):
        made = merge_method(function, **spec)
        arguments = {p.name.rstrip("_"): p.name for p in made.spec.parameters}
        parameters = tuple(replace(p, name=p.name.rstrip("_")) for p in made.spec.parameters)
        super().__init__(replace(made.spec, parameters=parameters), function)
        self.traits, self._arguments = traits, arguments

    def compute(self, group: TensorGroup, bound: Mapping[str, Any]) -> Tensor:
        """The kernel's own float32 (or float64) result.

        On one thread: a sum's bits would depend on the number of threads, and the many short operations on blocks would
        spend their time waiting for threads to meet, a long time on a busy machine.
        """
        with torch.no_grad(), one_thread():
            return self.implementation(group, **{self._arguments[key]: value for key, value in bound.items()})

    def merge_group(self, group: TensorGroup, /, **parameters: Any) -> Tensor:
        """Called by mergekit for one group."""
        return self.compute(group, parameters).to(group.entries[0].tensor.dtype)

    def _execute(
        self, groups: Sequence[TensorGroup], parameters: list[dict[str, Any]], *args: Any, **kwargs: Any
    ) -> Any:
        if self.traits.prepare and groups and parameters[0].get("prepared") is None:
            prepared = self._prepare(groups, parameters[0])
            parameters = [{**bound, "prepared": prepared} for bound in parameters]
        return super()._execute(groups, parameters, *args, **kwargs)

    def _prepare(self, groups: Sequence[TensorGroup], bound: dict[str, Any]) -> Any:
        assert self.traits.prepare is not None
        preparation = self.traits.prepare(bound, [entry.id for entry in groups[0].non_base], bound.get("seed", 0))
        for _ in range(preparation.passes if preparation else 0):
            for group in groups:
                base = group.base
                assert base is not None
                preparation.visit(group.metadata.name, base.tensor, [entry.tensor for entry in group.non_base])
            preparation.end_pass()
        return preparation.finish() if preparation else None


_OURS: dict[str, Kernel] = {}
_FAST: dict[str, Kernel] = {}


def method(name: str, *, pretty: str, url: str, min_experts: int = 1, **traits: Any) -> Callable[[Any], Any]:
    """Decorator: put a kernel ``f(group: TensorGroup, …) -> Tensor`` into mergekit's registry under ``name``.

    A parameter that is called ``lambda_`` in Python is called ``lambda`` in the registry. The base is required.
    The docstring is what ``describe(name).doc`` shows.
    """

    def add(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
        contract = InputContract(base=BasePolicy.REQUIRED, min_inputs=1 + min_experts)
        spec = {"name": name, "pretty_name": pretty, "reference_url": url, "contract": contract}
        _OURS[name] = Kernel(function, Traits(**traits), **spec)
        registry.register(_OURS[name])
        return function

    return add


def fast_path(name: str, **traits: Any) -> Callable[[Any], Any]:
    """Decorator: a kernel that takes a mergekit method's place in ``merge_tensor`` unless ``reference`` is set.

    It has the method's parameters and may have more; at their defaults its results are those of mergekit's kernel.
    """

    def add(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
        _FAST[name] = Kernel(function, Traits(**traits), name=name, contract=registry.get(name).spec.contract)
        return function

    return add


def names() -> list[str]:
    """All merge methods: mergekit's and ours, sorted."""
    return sorted(m.spec.name for m in registry.registered_methods())


def describe(name: str) -> MethodInfo:
    """What is known of a method; ValueError with the nearest names where there is none."""
    if name not in names():
        raise ValueError(f"no merge method {name!r}: {nearest(name, names())}")
    return _describe(name)


@remember
def _describe(name: str) -> MethodInfo:
    ours, fast = _OURS.get(name), _FAST.get(name)
    traits = ours.traits if ours else Traits(random=name in stock.RANDOM)
    return catalog.method_info(
        registry.get(name).spec,
        fast.spec if fast else None,
        CARRIED,
        doc=(ours.implementation.__doc__ or "") if ours else stock.EQUATIONS.get(name, ""),
        random=traits.random,
        ordered=traits.ordered,
        statistics=traits.statistics,
        prepares=traits.prepare is not None,
        ours=ours is not None,
    )


def check_parameters(
    name: str, parameters: Mapping[str, Any], experts: int, *, defaults: Literal["ours", "mergekit"] = "ours"
) -> dict[str, Any]:
    """All parameters of a method, in its own order: given ones checked and typed, the others by default.

    ``defaults="mergekit"`` fills in mergekit's own defaults, as a mergekit YAML means them.
    Raises ValueError naming the method, the parameter and the nearest valid names or values.
    """
    info = describe(name)
    for key in parameters:
        info.parameter(key)
    check_count(info, experts)
    result = {}
    for parameter in info.parameters:
        default = parameter.default
        if defaults == "mergekit" and not parameter.required:
            default = parameter.mergekit_default
        result[parameter.name] = check_values(info, parameter, parameters.get(parameter.name, default), experts)
    also = _OURS[name].traits.check if name in _OURS else None
    if also:
        also(result, experts)
    return result


def prepare(name: str, parameters: Mapping[str, Any], ids: Sequence[str], *, seed: int = 0, cache: Any = None) -> Any:
    """The passes over all tensors that a method needs before the first is merged; None for most methods.

    See ``mergeopt_core.merging.preparation.Preparation`` for how to drive it.
    """
    info = describe(name)
    checked = check_parameters(name, parameters, len(ids))
    make = _OURS[name].traits.prepare if name in _OURS else None
    return make(by_expert(info, checked, ids), unique_ids(ids), seed, cache) if make else None


def kernel_for(name: str, parameters: Mapping[str, Any], reference: bool) -> Kernel | None:
    """Our kernel of a method: ours, or the fast path of mergekit's where it can serve; None for mergekit's own."""
    kernel = _OURS.get(name) or (None if reference else _FAST.get(name))
    if kernel and kernel.traits.when and not kernel.traits.when(parameters):
        return None
    return kernel


def make_group(base: Tensor | None, experts: Sequence[tuple[str, Tensor]], name: str) -> TensorGroup:
    """The tensors that make one output as a kernel takes them: the base first where there is one."""
    tensors = ([base] if base is not None else []) + [tensor for _, tensor in experts]
    ids = (["\x00base"] if base is not None else []) + [key for key, _ in experts]
    return TensorGroup.from_tensors(tensors, ids=ids, base_index=0 if base is not None else None, name=name)


def run_kernel(kernel: Kernel, group: TensorGroup, parameters: Mapping[str, Any], carried: Mapping[str, Any]) -> Tensor:
    """The result of our kernel in float32 (float64 where an input is); it takes what it declares of ``carried``."""
    declared = {p.name for p in kernel.spec.parameters}
    bound = {**parameters, **{key: value for key, value in carried.items() if key in declared}}
    return kernel.compute(group, kernel._bind_parameters((group,), bound)[0])


def run_stock(name: str, group: TensorGroup, parameters: Mapping[str, Any], seed: int) -> Tensor:
    """The result of mergekit's own kernel, its random numbers seeded for this tensor.

    Where mergekit's kernel has no answer: a tensor that no expert changed stays as it is under ``multislerp``, and the
    only entry of a row, which has no rank in it, is kept with probability ``density`` under ``della``.
    """
    made, info = registry.get(name), describe(name)
    own = {p.name for p in made.spec.parameters}
    for parameter in info.parameters:
        if parameter.name not in own and parameters.get(parameter.name, parameter.default) != parameter.default:
            raise ValueError(f"{name}: mergekit's own kernel (reference) has no {parameter.name}")
    first, shape = group.entries[0].tensor, group.entries[0].tensor.shape
    if name == "multislerp" and group.base and all(torch.equal(entry.tensor, first) for entry in group.entries):
        return first.clone()
    if not shape:
        group = replace(group, entries=tuple(replace(e, tensor=e.tensor.view(1)) for e in group.entries))
    if name in stock.UNRANKED and (1, *shape)[-1 if len(shape) < 2 else 2] == 1:
        made = registry.get(stock.UNRANKED[name])
    bound = {p.name: parameters[p.name] for p in made.spec.parameters if p.name in parameters}
    device = group.entries[0].tensor.device
    draws = seeded(tensor_seed(seed, name, group.metadata.name), device) if info.random else nullcontext()
    try:
        with torch.no_grad(), one_thread(), draws:
            return made((group,), parameters=bound)[0].view(shape)
    except torch.OutOfMemoryError:
        raise
    except (RuntimeError, ValueError, IndexError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"{group.metadata.name}: mergekit's {name} cannot merge it: {reason}") from error
