"""What has to hold before a kernel runs, told with the tensor, the expert or the parameter that breaks it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from mergeopt_core.merging.info import MethodInfo, Parameter

Members = Sequence[tuple[str, Tensor]]


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
        total = torch.sum(tensor, dtype=torch.float64 if tensor.dtype == torch.float64 else torch.float32)
        if not math.isfinite(total.item()):
            bad = int((~torch.isfinite(tensor)).sum())
            if bad:
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


def unique_ids(ids: Sequence[str]) -> list[str]:
    """Expert ids with a number added where one stands twice."""
    seen: dict[str, int] = {}
    result = []
    for key in map(str, ids):
        seen[key] = seen.get(key, 0) + 1
        result.append(key if seen[key] == 1 else f"{key}#{seen[key]}")
    return result


def check_count(info: MethodInfo, experts: int) -> None:
    """Raise ValueError where a method does not take this many experts."""
    least, most = info.min_experts, info.max_experts
    if experts < least or (most is not None and experts > most):
        bounds = f"{least}" if most == least else f"{least} to {most or 'any number of'}"
        raise ValueError(f"merge method {info.name} takes {bounds} experts, not {experts}")


def by_expert(info: MethodInfo, checked: Mapping[str, Any], ids: Sequence[str]) -> dict[str, Any]:
    """Checked parameters with every per-expert one as a mapping from unique expert id to value."""
    result = dict(checked)
    for parameter in info.parameters:
        value = checked[parameter.name]
        if not parameter.per_expert:
            continue
        if isinstance(value, Mapping):
            if set(value) != set(ids):
                raise ValueError(f"{info.name}: {parameter.name} names {sorted(value)}, the experts are {list(ids)}")
            value = [value[key] for key in ids]
        elif not isinstance(value, list):
            value = [value] * len(ids)
        result[parameter.name] = dict(zip(unique_ids(ids), value))
    return result


def check_values(info: MethodInfo, parameter: Parameter, value: Any, experts: int) -> Any:
    """A parameter's value with the right type; lists and mappings only for per-expert parameters."""
    if parameter.type == "dict":
        return _check(info, parameter, value)
    if isinstance(value, Mapping):
        if not parameter.per_expert:
            raise ValueError(f"{info.name}: {parameter.name} is one {parameter.type} for all experts")
        return {str(key): _check(info, parameter, v) for key, v in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, (str, bytes)):
        if not parameter.per_expert:
            raise ValueError(f"{info.name}: {parameter.name} is one {parameter.type} for all experts")
        if len(value) != experts:
            raise ValueError(f"{info.name}: {parameter.name} has {len(value)} values for {experts} experts")
        return [_check(info, parameter, v) for v in value]
    return _check(info, parameter, value)


def _check(info: MethodInfo, parameter: Parameter, value: Any) -> Any:
    where = f"{info.name}: {parameter.name}"
    if value is None:
        if parameter.optional or parameter.default is None:
            return None
        raise ValueError(f"{where} has no value")
    if parameter.choices:
        if value not in parameter.choices:
            raise ValueError(f"{where} is one of {', '.join(parameter.choices)}, not {value!r}")
        return value
    if parameter.type == "str":
        return str(value)
    if parameter.type == "dict":
        if not isinstance(value, Mapping):
            raise ValueError(f"{where} is a mapping from names to values, not {value!r}")
        return {str(key): v for key, v in value.items()}
    if parameter.type == "bool":
        if not isinstance(value, bool):
            raise ValueError(f"{where} is true or false, not {value!r}")
        return value
    number = _number(where, parameter.type, value)
    low, high = parameter.low, parameter.high
    if (low is not None and number < low) or (high is not None and number > high):
        bounds = f"between {low} and {high}" if high is not None else f"at least {low}"
        raise ValueError(f"{where} is {bounds}, not {value!r}")
    return number


def _number(where: str, kind: str, value: Any) -> int | float:
    try:
        if isinstance(value, bool) or not math.isfinite(float(value)):
            raise ValueError
        if kind == "int":
            if float(value) != int(value):
                raise ValueError
            return int(value)
        return float(value)
    except (TypeError, ValueError):
        words = "a whole number" if kind == "int" else "a number"
        raise ValueError(f"{where} is {words}, not {value!r}") from None
