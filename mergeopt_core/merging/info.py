"""What is known about a merge method without running it: its parameters, its inputs, its paper."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Parameter:
    """One named, typed parameter of a merge method."""

    name: str
    type: str
    """float, int, bool or str, as shown to people."""
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


def nearest(name: str, known: Iterable[str], count: int = 3) -> str:
    """Words for the valid names nearest to a misspelt one."""
    names = sorted(known)
    close = difflib.get_close_matches(str(name), names, n=count, cutoff=0.5)
    if close:
        return f"did you mean {', '.join(close)}?"
    return f"it has {', '.join(names)}" if names else "it has none"
