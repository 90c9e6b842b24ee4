"""One merged tensor, for whoever holds the base's and the experts' tensors."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from mergeopt_core.merging import mergekit_api as api
from mergeopt_core.merging.info import MethodInfo
from mergeopt_core.merging.trimming import Models
from mergeopt_core.merging.updates import working_dtype
from mergeopt_core.randomness import one_thread

Members = Sequence[tuple[str, Tensor]]


class BoundMethod:
    """A merge method with its parameters for given experts: what all tensors of one merge have in common.

    ``checked`` are the parameters as ``check_parameters`` returns them, ``cache`` is a dict-like store of what does not
    depend on the subset, ``report`` takes findings by tensor name (the numerical rank of an update that leaves the
    method ill-posed). Raises ValueError where a mapping does not name the experts.
    """

    def __init__(
        self,
        name: str,
        checked: Mapping[str, Any],
        ids: Sequence[str],
        *,
        seed: int = 0,
        cache: Any = None,
        report: dict[str, Any] | None = None,
    ):
        self.info, self.keys = api.describe(name), unique_ids(ids)
        self.parameters = _by_expert(self.info, checked, ids)
        self.kernel = api.kernel_for(name, self.parameters, bool(self.parameters.pop("reference", False)))
        self.seed, self.cache, self.report = seed, cache, report

    @property
    def side_by_side(self) -> bool:
        """Whether tensors may be merged in several threads at once: not where mergekit's own code, here or in a base
        method, draws random numbers, which it takes from torch's global generator."""
        if "base_parameters" in self.parameters:
            name, given = self.parameters["base_method"], self.parameters["base_parameters"]
            inner = BoundMethod(name, api.check_parameters(name, given, len(self.keys)), self.keys)
            return inner.side_by_side
        return not self.info.random or self.kernel is not None

    @property
    def reads_factors(self) -> bool:
        """Whether ``merge`` takes low-rank factors in the place of the experts' tensors."""
        return self.info.adapters

    def factored(self, tensor_name: str, factors: Sequence[Any]) -> Any:
        """The merged update (λ in it) as factors, from those of every expert (``Low``); None for methods that
        need the entries."""
        make = self.kernel.traits.factored if self.kernel else None
        if make is None:
            return None
        given = list(zip(self.keys, factors))
        given = given if self.info.ordered else sorted(given, key=lambda pair: pair[0])
        keys, parts = zip(*given)
        return make(self.parameters, keys, parts, tensor_name, self.seed)

    def prepare(self, models: Models) -> Any:
        """What must be learnt from all tensors before the first is merged; None for most methods.

        ``models()`` iterates over name, base and experts of every tensor; it is called once per pass that is needed.
        """
        learn = self.kernel.traits.prepare if self.kernel else None
        return learn(models, self.parameters, self.keys, self.seed, self.cache) if learn else None

    def merge(
        self,
        tensor_name: str,
        base: Tensor | None,
        experts: Sequence[Tensor],
        *,
        statistics: Sequence[Tensor | None] | None = None,
        prepared: Mapping[str, Any] | None = None,
        factors: Sequence[Any] | None = None,
    ) -> Tensor:
        """One merged tensor, as ``merge_tensor`` gives it; ``prepared`` is what ``prepare`` came to.

        With ``factors`` (``Low``), which only some methods take, the experts' own tensors are not read.
        """
        info, keys, kernel = self.info, self.keys, self.kernel
        members = [(f"expert {k}", t) for k, t in zip(keys, experts)]
        members = members if base is None else [("the base", base), *members]
        tensors = [tensor for _, tensor in members]
        check_shapes(members, tensor_name)
        if not all(t.is_floating_point() for t in tensors):
            return copy_buffer(tensors, tensor_name)
        if base is None and info.base == "required":
            raise ValueError(f"merge method {info.name} needs the base of {tensor_name}")
        work = working_dtype(tensors)
        if not tensors[0].numel():
            return tensors[0].to(work)
        given = list(zip(keys, experts)) if info.ordered else sorted(zip(keys, experts), key=lambda pair: pair[0])
        passed = base if info.needs_base else None
        late = kernel is not None and kernel.traits.propagates
        with one_thread():
            if not late:
                check_finite(members, tensor_name)
            if kernel:
                group = api.make_group(passed, given, tensor_name)
                data = dict(zip(keys, statistics)) if statistics is not None else None
                more = {"seed": self.seed, "cache": self.cache, "report": self.report}
                more["factors"] = dict(zip(keys, factors)) if factors is not None else None
                result = kernel.run(group, self.parameters, statistics=data, prepared=prepared, **more)
            else:
                # mergekit's random numbers come from the generator of the tensors' device: from the CPU's everywhere
                where = torch.device("cpu") if info.random else tensors[0].device
                wide = [(key, expert.to(where, work)) for key, expert in given]
                group = api.make_group(passed.to(where, work) if passed is not None else None, wide, tensor_name)
                result = api.run_stock(info.name, group, self.parameters, self.seed).to(tensors[0].device)
            check_result(result, self.parameters, members if late else (), tensor_name)
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
    report: dict[str, Any] | None = None,
) -> Tensor:
    """One merged tensor ``[*shape]`` in float32 (float64 where an input is), the same on any number of threads.

    ``statistics`` are the experts' tensors of ``describe(name).statistics``, ``prepared`` is what ``prepare`` came to;
    ``cache`` and ``report`` are those of ``BoundMethod``, which merges many tensors with parameters checked once.
    torch's random state is left as found. Raises ValueError naming tensor and expert (or the cause) for inputs or a
    result that are not finite, differing shapes and bad parameters.
    """
    checked = api.check_parameters(name, parameters, len(experts))
    bound = BoundMethod(name, checked, ids, seed=seed, cache=cache, report=report)
    return bound.merge(tensor_name, base, experts, statistics=statistics, prepared=prepared)


def prepare(
    name: str, models: Models, parameters: Mapping[str, Any], ids: Sequence[str], *, seed: int = 0, cache: Any = None
) -> Any:
    """``BoundMethod.prepare`` with parameters that are still to be checked."""
    checked = api.check_parameters(name, parameters, len(ids))
    return BoundMethod(name, checked, ids, seed=seed, cache=cache).prepare(models)


def unique_ids(ids: Sequence[str]) -> list[str]:
    """Expert ids with a number added where one stands twice."""
    seen: dict[str, int] = {}
    result = []
    for key in map(str, ids):
        seen[key] = seen.get(key, 0) + 1
        result.append(key if seen[key] == 1 else f"{key}#{seen[key]}")
    return result


def _by_expert(info: MethodInfo, checked: Mapping[str, Any], ids: Sequence[str]) -> dict[str, Any]:
    """Checked parameters with every per-expert one as a mapping from unique expert id to value."""
    result = dict(checked)
    for name in (parameter.name for parameter in info.parameters if parameter.per_expert):
        value = checked[name]
        if isinstance(value, Mapping):
            if set(value) != set(ids):
                raise ValueError(f"{info.name}: {name} names {sorted(value)}, the experts are {list(ids)}")
            value = [value[key] for key in ids]
        result[name] = dict(zip(unique_ids(ids), value if isinstance(value, list) else [value] * len(ids)))
    return result


def check_shapes(members: Members, tensor_name: str) -> None:
    """Raise ValueError naming tensor and expert where a shape differs from the first."""
    first, tensor = members[0]
    for who, other in members[1:]:
        if other.shape != tensor.shape:
            raise ValueError(f"{tensor_name}: {who} has shape {list(other.shape)}, {first} {list(tensor.shape)}")


def check_finite(members: Members, tensor_name: str) -> None:
    """Raise ValueError naming tensor and expert where a value is not finite.

    The sum of a tensor with a NaN or an infinity is never finite: one read, and a second only where that is so.
    """
    for who, tensor in members:
        total = torch.sum(tensor, dtype=working_dtype([tensor]))
        if not math.isfinite(total.item()) and (bad := int((~torch.isfinite(tensor)).sum())):
            raise ValueError(f"{tensor_name}: {who} holds {bad} values that are not finite")


def check_result(result: Tensor, parameters: Mapping[str, Any], inputs: Members, tensor_name: str) -> None:
    """Raise ValueError with the cause where a result is not finite: an input (one of those given), or the method."""
    if math.isfinite(result.sum().item()) or not (bad := int((~torch.isfinite(result)).sum())):
        return
    check_finite(inputs, tensor_name)
    weights = parameters.get("weight")
    divided = parameters.get("normalize") or parameters.get("normalize_weights")
    if divided and isinstance(weights, Mapping) and abs(sum(weights.values())) < 1e-8:
        cause = "the weights sum to zero, and the result is divided by their sum"
    else:
        cause = "values, weights or scale are too large"
    raise ValueError(f"{tensor_name}: the merge holds {bad} values that are not finite: {cause}")


def copy_buffer(tensors: Sequence[Tensor], tensor_name: str) -> Tensor:
    """A tensor of whole numbers or booleans, which cannot be averaged: a copy, if all inputs agree on it."""
    first = tensors[0]
    if any(t.dtype != first.dtype or not torch.equal(t, first) for t in tensors[1:]):
        raise ValueError(f"{tensor_name}: a {first.dtype} tensor that differs between the models cannot be merged")
    return first.clone()
