"""The one file that knows mergekit's API: its registry, how a kernel is called, how one is added.

``names``, ``describe``, ``check_parameters``, ``prepare`` and ``merge_tensor`` are what the rest of the program uses;
``method`` and ``fast_path`` are what kernels use to register themselves.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, Literal, get_args, get_origin

import torch
from mergekit.merge_methods import registry
from mergekit.merge_methods.base import (
    BasePolicy,
    FunctionalGroupMergeMethod,
    InputContract,
    ParameterScope,
    PerInputValues,
    PerNonBase,
    TensorGroup,
)
from mergekit.merge_methods.easy_define import merge_method
from torch import Tensor

from mergeopt_core.merging import mergekit_methods as stock
from mergeopt_core.merging.checks import check_finite, check_values, copy_buffer
from mergeopt_core.merging.info import MethodInfo, Parameter, nearest
from mergeopt_core.merging.randomness import one_thread, seeded, tensor_seed

__all__ = ["PerExpert", "TensorGroup", "check_parameters", "describe", "fast_path", "merge_tensor", "method", "names"]

PerExpert = PerNonBase
"""Annotation of a kernel's per-expert parameter: ``weight: PerExpert[float]``."""

CARRIED = ("seed", "statistics", "prepared", "cache")
"""Kernel arguments that callers pass beside the parameters; they are no part of a recipe's parameters."""


@dataclass(frozen=True)
class _Traits:
    """What a kernel declares beyond mergekit's own specification."""

    random: bool = False
    ordered: bool = False
    elementwise: bool = False
    statistics: str | None = None
    prepare: Callable[..., Any] | None = None
    choices: Mapping[str, tuple[str, ...]] | None = None


_OURS: dict[str, _Traits] = {}
_FAST: dict[str, Callable[..., Tensor]] = {}


def method(
    name: str,
    *,
    pretty: str,
    url: str,
    min_experts: int = 1,
    **traits: Any,
) -> Callable[[Callable[..., Tensor]], Callable[..., Tensor]]:
    """Decorator: put a kernel ``f(group: TensorGroup, *, …) -> Tensor`` into mergekit's registry under ``name``.

    A parameter that is called ``lambda_`` in Python is called ``lambda`` in the registry. The base is required.
    The docstring is what ``describe(name).doc`` shows.
    """

    def add(kernel: Callable[..., Tensor]) -> Callable[..., Tensor]:
        contract = InputContract(base=BasePolicy.REQUIRED, min_inputs=1 + min_experts)
        made = merge_method(kernel, name=name, pretty_name=pretty, reference_url=url, contract=contract)
        renamed = {p.name.rstrip("_"): p.name for p in made.spec.parameters}
        parameters = tuple(replace(p, name=p.name.rstrip("_")) for p in made.spec.parameters)

        def call(group: TensorGroup, **bound: Any) -> Tensor:
            return kernel(group, **{renamed[key]: value for key, value in bound.items()})

        call.__doc__ = kernel.__doc__
        if name not in {m.spec.name for m in registry.registered_methods()}:
            registry.register(FunctionalGroupMergeMethod(replace(made.spec, parameters=parameters), call))
        _OURS[name] = _Traits(**traits)
        return kernel

    return add


def fast_path(name: str) -> Callable[[Callable[..., Tensor]], Callable[..., Tensor]]:
    """Decorator: a kernel that takes a mergekit method's place in ``merge_tensor`` unless ``reference`` is set."""

    def add(kernel: Callable[..., Tensor]) -> Callable[..., Tensor]:
        _FAST[name] = kernel
        return kernel

    return add


def names() -> list[str]:
    """All merge methods: mergekit's and ours, sorted."""
    return sorted(m.spec.name for m in registry.registered_methods())


def describe(name: str) -> MethodInfo:
    """What is known of a method; ValueError with the nearest names where there is none."""
    if name not in names():
        raise ValueError(f"no merge method {name!r}: {nearest(name, names())}")
    return _describe(name)


@lru_cache(maxsize=None)
def _describe(name: str) -> MethodInfo:
    made = registry.get(name)
    spec, contract, traits = made.spec, made.spec.contract, _OURS.get(name)
    passes_base = contract.base in (BasePolicy.REQUIRED, BasePolicy.OPTIONAL)
    in_base = int(contract.base == BasePolicy.REQUIRED)
    most = [n for n in (contract.max_non_base, contract.max_inputs and contract.max_inputs - in_base) if n]
    parameters = [_parameter(name, p, traits) for p in spec.parameters if p.name not in CARRIED]
    if name in _FAST:
        parameters.append(Parameter("reference", "bool", False, mergekit_default=False))
    return MethodInfo(
        name=name,
        pretty=spec.pretty_name or name,
        url=spec.reference_url or "",
        doc=(getattr(made, "implementation", made).__doc__ or "" if traits else stock.EQUATIONS.get(name, "")).strip(),
        parameters=tuple(parameters),
        base=contract.base.value if passes_base else "none",
        min_experts=max(1, contract.min_inputs - in_base, contract.min_non_base or 0),
        max_experts=min(most) if most else None,
        random=traits.random if traits else name in stock.RANDOM,
        ordered=bool(traits and traits.ordered),
        statistics=traits.statistics if traits else None,
        prepares=bool(traits and traits.prepare),
        ours=traits is not None,
    )


def _parameter(name: str, spec: Any, traits: _Traits | None) -> Parameter:
    kind, optional = spec.value_type, False
    if type(None) in get_args(kind):
        optional, kind = True, next(a for a in get_args(kind) if a is not type(None))
    choices = tuple(get_args(kind)) if get_origin(kind) is Literal else ()
    default = None if spec.required else spec.default
    ours = stock.DEFAULTS.get((name, spec.name), default)
    if ours is None and not optional and spec.name == "weight":
        ours = stock.REQUIRED_WEIGHT
    low, high = stock.RANGES.get(spec.name, (None, None))
    return Parameter(
        name=spec.name,
        type="str" if choices else getattr(kind, "__name__", str(kind)),
        default=ours,
        per_expert=spec.scope != ParameterScope.SHARED,
        required=spec.required,
        choices=choices,
        low=low,
        high=high,
        mergekit_default=default,
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
    most = info.max_experts
    if experts < info.min_experts or (most is not None and experts > most):
        bounds = (
            f"{info.min_experts}" if most == info.min_experts else f"{info.min_experts} to {most or 'any number of'}"
        )
        raise ValueError(f"merge method {name} takes {bounds} experts, not {experts}")
    result = {}
    for parameter in info.parameters:
        default = parameter.default
        if defaults == "mergekit" and not (parameter.required and parameter.mergekit_default is None):
            default = parameter.mergekit_default
        result[parameter.name] = check_values(info, parameter, parameters.get(parameter.name, default), experts)
    return result


def prepare(name: str, parameters: Mapping[str, Any], ids: Sequence[str], cache: Any = None) -> Any:
    """The passes over all tensors that a method needs before the first is merged; None for most methods.

    See ``mergeopt_core.merging.preparation.Preparation`` for how to drive it.
    """
    info = describe(name)
    checked = check_parameters(name, parameters, len(ids))
    if not info.prepares:
        return None
    make = _OURS[name].prepare
    assert make is not None
    return make(_per_expert(info, checked, ids, unique_ids(ids)), unique_ids(ids), cache)


def unique_ids(ids: Sequence[str]) -> list[str]:
    """Expert ids with a number added where one stands twice."""
    seen: dict[str, int] = {}
    result = []
    for key in map(str, ids):
        seen[key] = seen.get(key, 0) + 1
        result.append(key if seen[key] == 1 else f"{key}#{seen[key]}")
    return result


def _per_expert(
    info: MethodInfo, checked: Mapping[str, Any], ids: Sequence[str], keys: Sequence[str]
) -> dict[str, Any]:
    """Every per-expert parameter as a mapping from unique expert id to value."""
    result = dict(checked)
    for parameter in info.parameters:
        value = checked[parameter.name]
        if not parameter.per_expert:
            continue
        if isinstance(value, Mapping):
            for key in [*value, *ids]:
                if key not in value or key not in ids:
                    raise ValueError(
                        f"{info.name}: {parameter.name} names {sorted(value)}, the experts are {list(ids)}"
                    )
            value = [value[key] for key in ids]
        elif not isinstance(value, list):
            value = [value] * len(ids)
        result[parameter.name] = dict(zip(keys, value))
    return result


def merge_tensor(
    name: str,
    base: Tensor | None,
    experts: Sequence[Tensor],
    *,
    tensor_name: str,
    ids: Sequence[str],
    parameters: Mapping[str, Any],
    seed: int,
    statistics: Sequence[Tensor | None] | None = None,
    prepared: Mapping[str, Any] | None = None,
    cache: Any = None,
) -> Tensor:
    """One merged tensor ``[*shape]`` in float32 (float64 where an input is), the same on any number of threads.

    ``statistics`` are the experts' tensors of ``describe(name).statistics``, ``prepared`` what ``prepare`` came to,
    ``cache`` a dict-like store of what does not depend on the subset. torch's random state is left as found.
    Raises ValueError naming tensor and expert for non-finite values, for differing shapes and for bad parameters.
    """
    info = describe(name)
    keys = unique_ids(ids)
    tensors = [base, *experts] if base is not None else list(experts)
    if not all(t.is_floating_point() for t in tensors):
        return copy_buffer(tensors, tensor_name)
    if base is None and info.base == "required":
        raise ValueError(f"merge method {name} needs the base of {tensor_name}")
    checked = _per_expert(info, check_parameters(name, parameters, len(experts)), ids, keys)
    reference = bool(checked.pop("reference")) if name in _FAST else True
    order = list(range(len(keys))) if info.ordered else sorted(range(len(keys)), key=lambda k: keys[k])
    carried = {"seed": seed, "prepared": prepared, "cache": cache}
    if statistics is not None:
        carried["statistics"] = {keys[k]: statistics[k] for k in range(len(keys))}
    declared = {p.name for p in registry.get(name).spec.parameters}
    checked.update({key: value for key, value in carried.items() if key in declared})
    check_finite(base, experts, tensor_name, keys)
    return _run(name, info, base, [(keys[k], experts[k]) for k in order], tensor_name, checked, seed, reference)


def _run(
    name: str,
    info: MethodInfo,
    base: Tensor | None,
    experts: Sequence[tuple[str, Tensor]],
    tensor_name: str,
    bound: dict[str, Any],
    seed: int,
    reference: bool,
) -> Tensor:
    passed = base if info.needs_base else None
    members = ([("\x00base", passed)] if passed is not None else []) + list(experts)
    work = torch.float64 if any(t.dtype == torch.float64 for _, t in members) else torch.float32
    group = TensorGroup.from_tensors(
        [t.to(work) for _, t in members],
        ids=[key for key, _ in members],
        base_index=0 if passed is not None else None,
        name=tensor_name,
    )
    made = registry.get(name)
    with torch.no_grad():
        if name in stock.ELEMENTWISE or (name in _OURS and _OURS[name].elementwise):
            return made((group,), parameters=bound)[0]
        with one_thread():
            if not reference:
                return _FAST[name](group, **made._bind_parameters((group,), bound)[0])
            if not info.random:
                return made((group,), parameters=bound)[0]
            with seeded(tensor_seed(seed, name, tensor_name), group.entries[0].tensor.device):
                return made((group,), parameters=bound)[0]


def values_of(values: PerInputValues[Any] | Mapping[Any, Any], keys: Sequence[Any]) -> list[Any]:
    """A per-expert parameter as a list in the order of the given expert ids."""
    return [values[key] for key in keys]
