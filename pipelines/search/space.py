"""What is searched: ranges and choices of a method's parameters, one for all experts or one each."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from conf.errors import UserError, nearest
from mergeopt_core.merging.info import MethodInfo, Parameter

KEYS = ("low", "high", "log", "step", "beta", "choices", "per_expert")
USUAL: dict[str, dict[str, Any]] = {
    "lambda": {"low": 0.1, "high": 1.5},
    "density": {"low": 0.05, "high": 1.0},
    "drop_rate": {"low": 0.0, "high": 0.95},
    "beta": {"low": 0.0, "high": 0.5},
    "scale": {"low": 0.25, "high": 2.0},
    "off_diagonal": {"low": 0.0, "high": 1.0},
    "common_fraction": {"low": 0.2, "high": 1.0},
    "select_topk": {"low": 0.05, "high": 1.0},
}
"""Ranges that are searched where none are named, by parameter."""
WEIGHTS = {"weight": {"low": 0.0, "high": 1.0, "per_expert": True}}
"""The same for a method that has nothing but weights."""


@dataclass(frozen=True)
class Dimension:
    """One number or word that is searched."""

    name: str
    """The parameter, or ``parameter.expert`` where each expert has its own."""
    parameter: str
    expert: int | None = None
    low: float = 0.0
    high: float = 1.0
    log: bool = False
    step: float | None = None
    beta: tuple[float, float] | None = None
    """Drawn as low + (high − low) · Beta(a, b); a sampler then moves over the distribution's quantiles."""
    choices: tuple[Any, ...] = ()
    integer: bool = False

    @property
    def range(self) -> bool:
        """Whether it is a range of numbers."""
        return not self.choices

    def value(self, raw: Any) -> Any:
        """What the method is given, from what the sampler proposed."""
        if self.beta is None:
            return raw
        from scipy.special import betaincinv

        return self.low + (self.high - self.low) * float(betaincinv(*self.beta, raw))

    def points(self, count: int) -> list[Any]:
        """What a grid tries, as the sampler proposes it: all choices, every step, or ``count`` values of the range."""
        if self.choices:
            return list(self.choices)
        if self.beta is not None:
            return [(i + 0.5) / count for i in range(count)]
        if self.step or self.integer:
            step = self.step or 1
            found = [self.low + i * step for i in range(math.floor((self.high - self.low) / step + 1e-9) + 1)]
            return [int(v) if self.integer else _clean(v) for v in found]
        if count == 1:
            return [_clean(math.sqrt(self.low * self.high) if self.log else (self.low + self.high) / 2)]
        shares = [i / (count - 1) for i in range(count)]
        if self.log:
            return [_clean(self.low * (self.high / self.low) ** share) for share in shares]
        return [_clean(self.low + (self.high - self.low) * share) for share in shares]


def make_space(space: Mapping[str, Any], info: MethodInfo, experts: Sequence[str]) -> list[Dimension]:
    """The dimensions of a search; UserError naming the nearest names for what the method does not have."""
    wanted = dict(space) or _usual(info)
    dimensions: list[Dimension] = []
    for name, entry in wanted.items():
        where = f"search.space.{name}"
        try:
            parameter = info.parameter(str(name))
        except ValueError as error:
            raise UserError(str(error), where=where, do=f"see `mergebench methods {info.name}`") from None
        dimensions += _dimensions(parameter, _entry(entry, where), experts, where)
    return dimensions


def with_values(
    method: Mapping[str, Any], dimensions: Sequence[Dimension], raw: Mapping[str, Any], experts: int
) -> dict[str, Any]:
    """The method's configuration with a proposal's values in it; what each expert has of its own becomes a list."""
    made = dict(method)
    for dimension in dimensions:
        value = dimension.value(raw[dimension.name])
        if dimension.expert is None:
            made[dimension.parameter] = value
        else:
            own = made.get(dimension.parameter)
            own = list(own) if isinstance(own, list) else [own] * experts
            own[dimension.expert] = value
            made[dimension.parameter] = own
    return made


def _usual(info: MethodInfo) -> dict[str, Any]:
    names = [p.name for p in info.parameters]
    found = {name: entry for name, entry in USUAL.items() if name in names}
    found = found or {name: entry for name, entry in WEIGHTS.items() if name in names}
    if not found:
        do = f"name ranges: +search.space.NAME.low=… +search.space.NAME.high=… (it has {', '.join(names) or 'none'})"
        raise UserError(f"{info.name} has no parameter with a usual range", where="search.space", do=do)
    return found


def _entry(entry: Any, where: str) -> dict[str, Any]:
    if isinstance(entry, (list, tuple)):
        return {"choices": list(entry)}
    if not isinstance(entry, Mapping):
        raise UserError(
            f"{entry!r} is neither a range nor choices", where=where, do="write {low:0.1,high:1} or [0.1,0.2]"
        )
    for key in entry:
        if key not in KEYS:
            raise UserError(f"a range has no {key!r}", where=where, do=nearest(str(key), KEYS))
    return dict(entry)


def _dimensions(parameter: Parameter, entry: dict[str, Any], experts: Sequence[str], where: str) -> list[Dimension]:
    each = bool(entry.get("per_expert", False))
    if each and not parameter.per_expert:
        raise UserError(f"{parameter.name} is one value for all experts", where=where, do="leave per_expert out")
    read = _choices if "choices" in entry or not _number(parameter) else _range
    fields = read(parameter, entry, where)
    if not each:
        return [Dimension(parameter.name, parameter.name, **fields)]
    return [Dimension(f"{parameter.name}.{name}", parameter.name, k, **fields) for k, name in enumerate(experts)]


def _number(parameter: Parameter) -> bool:
    return parameter.type in ("float", "int")


def _choices(parameter: Parameter, entry: dict[str, Any], where: str) -> dict[str, Any]:
    known: list[Any] = list(parameter.choices) or ([True, False] if parameter.type == "bool" else [])
    given = entry.get("choices", known)
    if not isinstance(given, (list, tuple)) or not given:
        raise UserError("there is nothing to choose from", where=where, do="write choices: [a, b]")
    for value in given:
        if known and value not in known:
            raise UserError(f"{parameter.name} cannot be {value!r}", where=where, do=nearest(str(value), known))
        if _number(parameter):
            _check_bounds(parameter, [value], where)
    return {"choices": tuple(given)}


def _range(parameter: Parameter, entry: dict[str, Any], where: str) -> dict[str, Any]:
    beta = entry.get("beta")
    low, high = entry.get("low", 0.0 if beta else None), entry.get("high", 1.0 if beta else None)
    if low is None or high is None:
        raise UserError("the range has no ends", where=where, do="give it low and high, or choices")
    _check_bounds(parameter, [low, high], where)
    if not low < high:
        raise UserError(f"the range from {low} to {high} is empty", where=where, do="give it a low below its high")
    if entry.get("log") and low <= 0:
        raise UserError(f"a logarithmic range cannot begin at {low}", where=where, do="give it a low above 0")
    if beta is not None and (not isinstance(beta, (list, tuple)) or len(beta) != 2 or min(beta) <= 0):
        raise UserError(f"beta={beta} is no Beta distribution", where=where, do="write beta: [a, b], both above 0")
    integer = parameter.type == "int"
    clash = [name for name in ("log", "step", "beta") if entry.get(name)]
    if len(clash) > 1 or (integer and beta):
        raise UserError(f"{' and '.join(clash)} do not go together", where=where, do="leave one of them out")
    return {
        "low": int(low) if integer else float(low),
        "high": int(high) if integer else float(high),
        "log": bool(entry.get("log", False)),
        "step": entry.get("step"),
        "beta": (float(beta[0]), float(beta[1])) if beta else None,
        "integer": integer,
    }


def _check_bounds(parameter: Parameter, values: Sequence[Any], where: str) -> None:
    for value in values:
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise UserError(f"{parameter.name} is a number, not {value!r}", where=where, do="give it numbers")
        low = -math.inf if parameter.low is None else parameter.low
        high = math.inf if parameter.high is None else parameter.high
        if not low <= value <= high:
            raise UserError(f"{parameter.name} cannot be {value}", where=where, do=f"it goes from {low} to {high}")


def _clean(value: float) -> float:
    """A number without the noise of its last digits."""
    return float(f"{value:.12g}")
