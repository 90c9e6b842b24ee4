"""What has to hold before a kernel runs, told with the tensor, the expert or the parameter that breaks it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from mergeopt_core.merging.info import MethodInfo, Parameter


def check_finite(base: Tensor | None, experts: Sequence[Tensor], tensor_name: str, ids: Sequence[str]) -> None:
    """Raise ValueError naming tensor and expert where shapes differ or a value is not finite."""
    members = ([("the base", base)] if base is not None else []) + [(f"expert {i}", t) for i, t in zip(ids, experts)]
    shape = members[0][1].shape
    for who, tensor in members:
        if tensor.shape != shape:
            raise ValueError(f"{tensor_name}: {who} has shape {list(tensor.shape)}, {members[0][0]} {list(shape)}")
        # the sum of a tensor with a NaN or an infinity is never finite: one read, and a second only where it matters
        total = torch.sum(tensor, dtype=torch.float64 if tensor.dtype == torch.float64 else torch.float32)
        if not math.isfinite(total.item()):
            bad = int((~torch.isfinite(tensor)).sum())
            if bad:
                raise ValueError(f"{tensor_name}: {who} holds {bad} values that are not finite")


def copy_buffer(tensors: Sequence[Tensor], tensor_name: str) -> Tensor:
    """A tensor of whole numbers or booleans, which cannot be averaged: a copy, if all inputs agree on it."""
    first = tensors[0]
    if any(t.dtype != first.dtype or not torch.equal(t, first) for t in tensors[1:]):
        raise ValueError(f"{tensor_name}: a {first.dtype} tensor that differs between the models cannot be merged")
    return first.clone()


def check_values(info: MethodInfo, parameter: Parameter, value: Any, experts: int) -> Any:
    """A parameter's value with the right type; lists and mappings only for per-expert parameters."""
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
        if parameter.default is None:
            return None
        raise ValueError(f"{where} has no value")
    if parameter.choices:
        if value not in parameter.choices:
            raise ValueError(f"{where} is one of {', '.join(parameter.choices)}, not {value!r}")
        return value
    if parameter.type == "str":
        return str(value)
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
