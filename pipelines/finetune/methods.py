"""The fine-tuning methods and their parameters, checked before anything is loaded."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from conf.errors import UserError, nearest


@dataclass(frozen=True)
class Parameter:
    """One parameter of a method: its default, what makes a value of it, and what is valid, in words."""

    default: Any
    read: Callable[[Any], Any]
    valid: str


def _number(low: float, high: float = math.inf) -> Callable[[Any], float]:
    def read(value: Any) -> float:
        number = float(value)
        if isinstance(value, bool) or not low <= number <= high or math.isinf(number):
            raise ValueError
        return number

    return read


def _whole(low: int) -> Callable[[Any], int]:
    def read(value: Any) -> int:
        if isinstance(value, bool) or int(value) != float(value) or int(value) < low:
            raise ValueError
        return int(value)

    return read


def _one_of(*names: str) -> Callable[[Any], str]:
    def read(value: Any) -> str:
        if value not in names:
            raise ValueError
        return str(value)

    return read


def _numbers(value: Any) -> list[float]:
    values = [float(v) for v in value]
    if isinstance(value, str) or not values or any(not math.isfinite(v) for v in values):
        raise ValueError
    return values


def _patterns(value: Any) -> list[str]:
    if isinstance(value, str) or any(not isinstance(v, str) for v in value):
        raise ValueError
    return list(value)


def _scale(value: Any) -> float | str:
    return "fitted" if value == "fitted" else _number(0.0)(value)


def _names(*names: str) -> Parameter:
    return Parameter(names[0], _one_of(*names), " or ".join(names))


_WHERE = {
    "include": Parameter([], _patterns, "a list of name patterns"),
    "exclude": Parameter([], _patterns, "a list of name patterns"),
}
METHODS: dict[str, dict[str, Parameter]] = {
    "plain": {},
    "mergopt": {
        "alphas": Parameter([0.1, 0.2, 0.3, 0.4, 0.5, 0.6], _numbers, "a list of one number or more"),
        "max_tasks": Parameter(7, _whole(1), "a whole number, 1 or more"),
        "loc": Parameter(0.0, _number(-math.inf), "a number"),
        "scale": Parameter(5e-4, _scale, "a number, 0 or more, or fitted"),
        "distribution": _names("laplace", "gaussian"),
        "mode": _names("perturbed", "released"),
        "own_vector": _names("approximate", "exact"),
        "inner": _names("sample", "ascent"),
        "ascent_steps": Parameter(3, _whole(1), "a whole number, 1 or more"),
        "ascent_size": Parameter(0.5, _number(0.0), "a number, 0 or more"),
        "fit_start": Parameter(5e-4, _number(0.0), "a number, 0 or more"),
        "fit_memory": Parameter(0.9, _number(0.0, 1.0), "a number from 0 to 1"),
        **_WHERE,
    },
    "sam": {"rho": Parameter(0.05, _number(0.0), "a number, 0 or more"), **_WHERE},
    "asam": {
        "rho": Parameter(0.5, _number(0.0), "a number, 0 or more"),
        "eta": Parameter(0.01, _number(0.0), "a number, 0 or more"),
        "form": _names("normalised", "squared"),
        **_WHERE,
    },
    "tangent": {},
}
"""Every method with its parameters; the defaults are those of the papers."""


def check_finetuning(finetuning: dict[str, Any]) -> dict[str, Any]:
    """The complete description of a method: its name under ``method`` and each parameter that changes a number.

    Raises:
        UserError: An unknown method or parameter, with the nearest valid names, or a value that means nothing.
    """
    given = dict(finetuning)
    name = str(given.pop("method", "plain"))
    if name not in METHODS:
        raise UserError(f"unknown fine-tuning method {name!r}", where="finetuning.method", do=nearest(name, METHODS))
    known = METHODS[name]
    for key in given:
        if key not in known:
            advice = nearest(str(key), known) if known else f"{name} has no parameters"
            raise UserError(f"{name} has no parameter {key!r}", where=f"finetuning.{key}", do=advice)
    full = {key: _read(key, parameter, given.get(key, parameter.default)) for key, parameter in known.items()}
    if full.get("own_vector") == "exact" and full.get("inner") == "ascent":
        raise UserError(
            "own_vector=exact and inner=ascent do not go together", where="finetuning",
            do="choose one: the ascent moves one z, the exact own vector draws several",
        )  # fmt: skip
    return {"method": name, **_relevant(full)}


def _read(key: str, parameter: Parameter, value: Any) -> Any:
    try:
        return parameter.read(value)
    except (TypeError, ValueError):
        raise UserError(
            f"{value!r} is no value of {key}", where=f"finetuning.{key}", do=f"give {parameter.valid}"
        ) from None


def _relevant(full: dict[str, Any]) -> dict[str, Any]:
    """Without the parameters that cannot change a number, so that keys do not split over them."""
    if full.get("mode") == "released":
        return {"mode": "released"}
    idle = set()
    if full.get("inner") == "sample":
        idle |= {"ascent_steps", "ascent_size"}
    if "scale" in full and full["scale"] != "fitted":
        idle |= {"fit_start", "fit_memory"}
    if full.get("form") == "squared":
        idle |= {"eta"}
    return {key: value for key, value in full.items() if key not in idle}
