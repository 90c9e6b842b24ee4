"""What is known about a merge method without running it (its parameters, inputs, paper), and which values are valid."""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Parameter:
    """One named, typed parameter of a merge method."""

    name: str
    type: str
    """float, int, bool, str or dict, as shown to people."""
    default: Any
    """Value that is used where none is given."""
    per_expert: bool = False
    """A scalar, a list in expert order, or a mapping from expert to value."""
    required: bool = False
    """mergekit itself has no default for it (a mergekit YAML must state it)."""
    choices: tuple[str, ...] = ()
    """The valid words of a parameter that is a choice."""
    low: float | None = None
    """Smallest valid value."""
    high: float | None = None
    """Largest valid value."""
    optional: bool = False
    """null is a valid value."""
    help: str = ""
    """What it does, in one line."""
    mergekit_default: Any = None
    """mergekit's own default, where ours differs from it."""


@dataclass(frozen=True)
class MethodInfo:
    """A merge method as people choose it."""

    name: str
    pretty: str
    url: str
    """Where the method was published."""
    doc: str
    """What it computes: a sentence and the equation."""
    parameters: tuple[Parameter, ...]
    base: str
    """required, optional (updates are taken from the base where one is given) or none (experts only)."""
    min_experts: int
    max_experts: int | None
    random: bool
    """Draws random numbers: the result depends on the seed."""
    ordered: bool
    """The result depends on the order in which experts are given."""
    statistics: str | None
    """fisher, gram or None: a tensor per expert that has to be collected on data before the merge."""
    prepares: bool
    """Reads all tensors once or more before the first one is merged (see ``prepare``)."""
    adapters: bool
    """Merges the low-rank factors of experts that are adapters, and never sees their products."""
    ours: bool
    """Defined here; otherwise mergekit's own."""

    @property
    def needs_base(self) -> bool:
        """Whether the base tensor is to be passed."""
        return self.base != "none"

    def parameter(self, name: str) -> Parameter:
        """The parameter of that name; ValueError with the nearest names where there is none."""
        for parameter in self.parameters:
            if parameter.name == name:
                return parameter
        names = [parameter.name for parameter in self.parameters]
        raise ValueError(f"merge method {self.name} has no parameter {name!r}: {nearest(name, names)}")

    def check_count(self, experts: int) -> None:
        """Raise ValueError where the method does not take this many experts."""
        least, most = self.min_experts, self.max_experts
        if experts < least or (most is not None and experts > most):
            bounds = f"{least}" if most == least else f"{least} to {most or 'any number of'}"
            raise ValueError(f"merge method {self.name} takes {bounds} experts, not {experts}")


def nearest(name: str, known: Iterable[str], count: int = 3) -> str:
    """Words for the valid names nearest to a misspelt one."""
    names = sorted(known)
    close = difflib.get_close_matches(str(name), names, n=count, cutoff=0.5)
    if close:
        return f"did you mean {', '.join(close)}?"
    return f"it has {', '.join(names)}" if names else "it has none"


def check_values(info: MethodInfo, parameter: Parameter, value: Any, experts: int) -> Any:
    """A parameter's value with the right type; a list or mapping of values only where it is per expert."""
    where = f"{info.name}: {parameter.name}"
    several = isinstance(value, (Mapping, Sequence)) and not isinstance(value, (str, bytes))
    if parameter.type == "dict" or not several:
        return _check(where, parameter, value)
    if not parameter.per_expert:
        raise ValueError(f"{where} is one {parameter.type} for all experts")
    if isinstance(value, Mapping):
        return {str(key): _check(where, parameter, one) for key, one in value.items()}
    if len(value) != experts:
        raise ValueError(f"{where} has {len(value)} values for {experts} experts")
    return [_check(where, parameter, one) for one in value]


def _check(where: str, parameter: Parameter, value: Any) -> Any:
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
        return {str(key): one for key, one in value.items()}
    if parameter.type == "bool":
        if not isinstance(value, bool):
            raise ValueError(f"{where} is true or false, not {value!r}")
        return value
    return _check_number(where, parameter, value)


def _check_number(where: str, parameter: Parameter, value: Any) -> int | float:
    whole, low, high = parameter.type == "int", parameter.low, parameter.high
    try:
        number = float(value)
        if isinstance(value, bool) or not math.isfinite(number) or (whole and number != int(value)):
            raise ValueError
        number = int(value) if whole else number
    except (TypeError, ValueError, OverflowError):
        raise ValueError(f"{where} is {'a whole number' if whole else 'a number'}, not {value!r}") from None
    if (low is not None and number < low) or (high is not None and number > high):
        bounds = f"between {low} and {high}" if high is not None else f"at least {low}"
        raise ValueError(f"{where} is {bounds}, not {value!r}")
    return number
