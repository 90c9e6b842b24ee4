"""What there is to choose from: merge methods with their parameters, defaults, papers and equations."""

from __future__ import annotations

from conf.errors import UserError, nearest
from mergeopt_core.merging.info import MethodInfo
from mergeopt_core.merging.mergekit_api import describe, names

__all__ = ["MethodInfo", "all_methods", "method"]


def all_methods() -> list[MethodInfo]:
    """Every registered merge method, mergekit's and ours, by name."""
    return [describe(name) for name in sorted(names())]


def method(name: str) -> MethodInfo:
    """One method; UserError with the nearest names when there is none."""
    if name not in names():
        raise UserError(f"no merge method is called {name!r}", do=nearest(name, names()))
    return describe(name)
