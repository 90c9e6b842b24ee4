"""The one file that knows mergekit's API: its registry, how a kernel is added and called, how a configuration is run.

``names``, ``describe`` and ``check_parameters`` are what the rest of the program uses, besides run.py; ``method`` and
``fast_path`` are what kernels register themselves with.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import cache as remember
from functools import wraps
from importlib.resources import files
from typing import Any, Literal, get_args, get_origin

import torch
import yaml
from mergekit.merge_methods import registry
from mergekit.merge_methods.base import (
    BasePolicy,
    FunctionalGroupMergeMethod,
    InputContract,
    PerInputValues,
    TensorGroup,
)
from mergekit.merge_methods.base import PerInput as PerExpertOfAll  # of a method that has no base
from mergekit.merge_methods.base import PerNonBase as PerExpert  # ``weight: PerExpert[float]``
from mergekit.merge_methods.easy_define import merge_method
from torch import Tensor

from mergeopt_core.merging.info import MethodInfo, Parameter, check_values, nearest
from mergeopt_core.merging.updates import Updates
from mergeopt_core.randomness import one_thread, random_state_restored, tensor_seed

__all__ = ["PerExpert", "PerExpertOfAll", "TensorGroup", "check_parameters", "describe", "fast_path", "method", "names"]

_CATALOG = yaml.safe_load(files(__package__).joinpath("catalog.yaml").read_text(encoding="utf-8"))

CARRIED = ("seed", "statistics", "prepared", "factors", "cache", "report")
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
    depends: Callable[[Mapping[str, Any], int], tuple[bool, bool]] | None = None
    """Whether the result depends on order and seed with these parameters and so many experts; None: as declared."""
    factored: Callable[..., Any] | None = None
    """The merged update of one tensor as factors, from those of every expert: f(parameters by expert, keys, parts,
    tensor, seed) (see adapters.py)."""
    drawn: Callable[[Mapping[str, Any], int, int], dict[str, float]] | None = None
    """By name, what is drawn once for the whole merge: of parameters, number of experts and seed."""


class Kernel(FunctionalGroupMergeMethod):
    """A kernel of ours as mergekit calls it: results in the inputs' dtype, whole-model passes over the given groups."""

    def __init__(self, function: Callable[..., Tensor], traits: Traits, **spec: Any):
        made = merge_method(_on_group(function), **spec)
        self.traits, self._arguments = traits, {p.name.rstrip("_"): p.name for p in made.spec.parameters}
        parameters = tuple(replace(p, name=p.name.rstrip("_")) for p in made.spec.parameters)
        super().__init__(replace(made.spec, parameters=parameters), made.implementation)

    def compute(self, group: TensorGroup, bound: Mapping[str, Any]) -> Tensor:
        """The kernel's own float32 (or float64) result.

        On one thread: a sum's bits would depend on the number of threads, and the many short operations on blocks would
        spend their time waiting for threads to meet, a long time on a busy machine.
        """
        with torch.no_grad(), one_thread():
            return self.implementation(group, **{self._arguments[key]: value for key, value in bound.items()})

    def run(self, group: TensorGroup, parameters: Mapping[str, Any], **carried: Any) -> Tensor:
        """``compute`` with parameters by expert id; the kernel takes what it declares of ``carried``."""
        given = {**parameters, **{key: value for key, value in carried.items() if key in self._arguments}}
        return self.compute(group, self._bind_parameters((group,), given)[0])

    def takes(self, argument: str) -> bool:
        """Whether the kernel declares an argument of this name."""
        return argument in self._arguments

    def merge_group(self, group: TensorGroup, /, **parameters: Any) -> Tensor:
        """Called by mergekit for one group."""
        return self.compute(group, parameters).to(group.entries[0].tensor.dtype)

    def _execute(
        self, groups: Sequence[TensorGroup], parameters: list[dict[str, Any]], *args: Any, **kwargs: Any
    ) -> Any:
        if self.traits.prepare and groups and parameters[0].get("prepared") is None:
            ids, seed = [entry.id for entry in groups[0].non_base], parameters[0].get("seed", 0)
            prepared = self.traits.prepare(lambda: map(_members, groups), parameters[0], ids, seed, None)
            parameters = [{**bound, "prepared": prepared} for bound in parameters]
        return super()._execute(groups, parameters, *args, **kwargs)


def _members(group: TensorGroup) -> tuple[str, Tensor, list[Tensor]]:
    assert group.base is not None
    return group.metadata.name or "", group.base.tensor, [entry.tensor for entry in group.non_base]


def _on_group(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """A kernel of ``updates`` as one of mergekit's group; per-expert parameters become lists in the updates' order."""
    first = next(iter(function.__annotations__))
    if first != "updates":
        return function

    @wraps(function)
    def kernel(group: TensorGroup, **given: Any) -> Tensor:
        updates = Updates(group)
        values = {k: updates.values(v) if isinstance(v, PerInputValues) else v for k, v in given.items()}
        return function(updates, **values)

    kernel.__annotations__ = {**function.__annotations__, first: TensorGroup}
    return kernel


_OURS: dict[str, Kernel] = {}
_FAST: dict[str, Kernel] = {}


def method(name: str, *, pretty: str, url: str, **traits: Any) -> Callable[[Any], Any]:
    """Decorator: put a kernel ``f(updates: Updates, …) -> Tensor`` into mergekit's registry under ``name``.

    A parameter that is called ``lambda_`` in Python is called ``lambda`` in the registry; one that is annotated
    ``PerExpert[float]`` arrives as a list in the order of the updates. The base is required. The docstring is what
    ``describe(name).doc`` shows.
    """

    def add(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
        contract = InputContract(base=BasePolicy.REQUIRED, min_inputs=2)
        spec = {"name": name, "pretty_name": pretty, "reference_url": url, "contract": contract}
        _OURS[name] = Kernel(function, Traits(**traits), **spec)
        registry.register(_OURS[name])
        return function

    return add


def fast_path(name: str, **traits: Any) -> Callable[[Any], Any]:
    """Decorator: a kernel that takes a mergekit method's place unless ``reference`` is set.

    It has the method's parameters and may have more; at their defaults its results are those of mergekit's kernel.
    Its first argument is ``updates`` as in ``method``, or mergekit's ``group``: parameters are then by expert id.
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
    spec, ours, fast, words = registry.get(name).spec, _OURS.get(name), _FAST.get(name), _words(name)
    traits = ours.traits if ours else Traits(random=words.get("random", False))
    doc = ours.implementation.__doc__ or "" if ours else words.get("doc", "")
    contract = spec.contract
    in_base = int(contract.base == BasePolicy.REQUIRED)
    most = [n for n in (contract.max_non_base, contract.max_inputs and contract.max_inputs - in_base) if n]
    theirs = {p.name: p for p in spec.parameters}
    shown = [p for p in (fast.spec if fast else spec).parameters if p.name not in CARRIED]
    parameters = [_parameter(name, p, theirs.get(p.name, p)) for p in shown]
    if fast:
        words = _CATALOG["parameters"]["reference"]["help"]
        parameters.append(Parameter("reference", "bool", False, help=words, mergekit_default=False))
    return MethodInfo(
        name=name,
        pretty=spec.pretty_name or name,
        url=spec.reference_url or "",
        doc="\n".join(line.strip() for line in doc.strip().splitlines()),
        parameters=tuple(parameters),
        base=contract.base.value if contract.base.value in ("required", "optional") else "none",
        min_experts=max(1, contract.min_inputs - in_base, contract.min_non_base or 0),
        max_experts=min(most) if most else None,
        random=traits.random,
        ordered=traits.ordered,
        statistics=traits.statistics,
        prepares=traits.prepare is not None,
        adapters=ours is not None and ours.takes("factors"),
        ours=ours is not None,
    )


def _words(method: str) -> dict[str, Any]:
    return _CATALOG["methods"].get(method, {})


def _parameter(method: str, spec: Any, theirs: Any) -> Parameter:
    """A parameter as declared, with the default and the bounds that this program gives it."""
    words = {**_CATALOG["parameters"].get(spec.name, {}), **_words(method).get("parameters", {}).get(spec.name, {})}
    kinds = [kind for kind in get_args(spec.value_type) if kind is not type(None)]
    optional = type(None) in get_args(spec.value_type)
    kind = kinds[0] if optional else spec.value_type
    choices = get_args(kind) if get_origin(kind) is Literal else ()
    origin = get_origin(kind) or kind
    mapping = isinstance(origin, type) and issubclass(origin, Mapping)
    default = None if theirs.required else theirs.default
    ours = words.get("default", default)
    if ours is None and not optional and spec.name == "weight":
        ours = 1.0  # where mergekit demands one: all experts alike
    low, high = words.get("range", (None, None))
    return Parameter(
        name=spec.name,
        type="str" if choices else "dict" if mapping else origin.__name__,
        default=dict(ours) if isinstance(ours, Mapping) else ours,
        per_expert=spec.scope.value != "shared",
        required=theirs.required,
        choices=choices,
        low=low,
        high=high,
        optional=optional,
        help=words.get("help", ""),
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
    info.check_count(experts)
    result = {}
    for parameter in info.parameters:
        mergekits = defaults == "mergekit" and not parameter.required
        default = parameter.mergekit_default if mergekits else parameter.default
        result[parameter.name] = check_values(info, parameter, parameters.get(parameter.name, default), experts)
    if name in _OURS and (check := _OURS[name].traits.check):
        check(result, experts)
    return result


def depends(name: str, parameters: Mapping[str, Any], experts: int) -> tuple[bool, bool]:
    """Whether a merge depends on the experts' order and on the seed, with these complete parameters."""
    info, own = describe(name), _OURS[name].traits.depends if name in _OURS else None
    order, seed = own(parameters, experts) if own else (True, True)
    return info.ordered and order, info.random and seed


def drawn(name: str, parameters: Mapping[str, Any], experts: int, seed: int) -> dict[str, float]:
    """By name, what a merge with these complete parameters draws once for the whole model (λ of ``mixup``)."""
    own = _OURS[name].traits.drawn if name in _OURS else None
    return own(parameters, experts, seed) if own else {}


def kernel_for(name: str, parameters: Mapping[str, Any], reference: bool) -> Kernel | None:
    """Our kernel of a method: ours, or the fast path of mergekit's where it can serve; None for mergekit's own."""
    kernel = _OURS.get(name) or (None if reference else _FAST.get(name))
    return None if kernel and kernel.traits.when and not kernel.traits.when(parameters) else kernel


def make_group(base: Tensor | None, experts: Sequence[tuple[str, Tensor]], name: str) -> TensorGroup:
    """The tensors that make one output as a kernel takes them: the base first where there is one."""
    members = [("\x00base", base)] if base is not None else []
    ids, tensors = zip(*members, *experts)
    return TensorGroup.from_tensors(tensors, ids=ids, base_index=0 if members else None, name=name)


def run_stock(name: str, group: TensorGroup, parameters: Mapping[str, Any], seed: int) -> Tensor:
    """The result of mergekit's own kernel, its random numbers seeded for this tensor.

    Where mergekit's kernel has no answer: a tensor that no expert changed stays as it is under ``multislerp``, and the
    only entry of a row, which has no rank in it, is kept with probability ``density`` under ``della``.
    """
    made, info = registry.get(name), describe(name)
    known = {p.name for p in made.spec.parameters}
    for parameter in info.parameters:
        if parameter.name not in known and parameters.get(parameter.name, parameter.default) != parameter.default:
            raise ValueError(f"{name}: mergekit's own kernel (reference) has no {parameter.name}")
    first, shape = group.entries[0].tensor, group.entries[0].tensor.shape
    if name == "multislerp" and group.base and all(torch.equal(entry.tensor, first) for entry in group.entries):
        return first.clone()
    if not shape:
        group = replace(group, entries=tuple(replace(e, tensor=e.tensor.view(1)) for e in group.entries))
    if (unranked := _words(name).get("unranked")) and (1, *shape)[-1 if len(shape) < 2 else 2] == 1:
        made = registry.get(unranked)
    bound = {p.name: parameters[p.name] for p in made.spec.parameters if p.name in parameters}
    own_seed = tensor_seed(seed, name, group.metadata.name)
    try:
        with torch.no_grad(), one_thread(), random_state_restored(own_seed) if info.random else nullcontext():
            return made((group,), parameters=bound)[0].view(shape)
    except torch.OutOfMemoryError:
        raise
    except (RuntimeError, ValueError, IndexError) as error:
        reason = str(error).splitlines()[0]
        if "allocate memory" in reason:
            raise
        raise ValueError(f"{group.metadata.name}: mergekit's {name} cannot merge it: {reason}") from error


def run_config(
    text: str, out: str, *, source: str | None = None, seed: int = 0, device: str = "cpu", lora_cache: str | None = None
) -> None:
    """Run a mergekit YAML configuration (``text``) into the folder ``out``, with all methods registered.

    ``source`` is what the card shows where that is not ``text``. mergekit keeps open checkpoints by path for as long as
    the process lives, and would read one that has been rewritten since as it was: they are forgotten before and after.
    Random states of Python, numpy and torch are left as found. Raises what mergekit raises.
    """
    from mergekit.config import MergeConfiguration  # takes seconds to import
    from mergekit.io.tasks import LoaderCache
    from mergekit.merge import run_merge
    from mergekit.options import MergeOptions

    options = MergeOptions(quiet=True, random_seed=seed, device=device, lora_merge_cache=lora_cache)
    LoaderCache.loaders.clear()
    try:
        with random_state_restored():
            config = MergeConfiguration.model_validate(yaml.safe_load(text))
            run_merge(config, out, options, config_source=source or text)
    finally:
        LoaderCache.loaders.clear()
