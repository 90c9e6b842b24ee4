"""Which tensors move: patterns over names, with tied weights counted once."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

import torch
from torch import Tensor


@dataclass(frozen=True)
class Moved:
    """One weight that moves: its name and every parameter object that shares it."""

    name: str
    parameters: tuple[Tensor, ...]

    @property
    def weight(self) -> Tensor:
        """The weight itself."""
        return self.parameters[0].detach()


def select(
    optimizer: torch.optim.Optimizer,
    named_parameters: Iterable[tuple[str, Tensor]] | None = None,
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    frozen: bool = False,
) -> list[Moved]:
    """The weights that move, in order of their first appearance.

    Args:
        optimizer: Gives the candidates (its parameters) where no named parameters are given.
        named_parameters: Candidates with their names, such as ``model.named_parameters()``.
        include: Shell patterns; a name must match one of them (none: every name does).
        exclude: Shell patterns; a name that matches one stays where it is.
        frozen: Let candidates move that are not trained (the base weights below a low-rank adapter).

    Raises:
        ValueError: A pattern that matches nothing, patterns without names, or nothing that moves.
    """
    found = list(_candidates(optimizer) if named_parameters is None else named_parameters)
    found = [(n, p) for n, p in found if (frozen or p.requires_grad) and p.is_floating_point()]
    if (include or exclude) and any(not n for n, _ in found):
        raise ValueError("include and exclude need names: pass named_parameters=model.named_parameters()")
    names = [n for n, _ in found]
    for pattern in (*include, *exclude):
        if not any(fnmatchcase(n, pattern) for n in names):
            close = difflib.get_close_matches(pattern, names, n=3, cutoff=0.0)
            raise ValueError(f"the pattern {pattern!r} matches no weight; nearest names: {', '.join(close)}")
    kept = [(n, p) for n, p in found if _wanted(n, include, exclude)]
    if not kept:
        raise ValueError("no weight is left to move: include, exclude and requires_grad leave nothing")
    return _untied(kept)


def _candidates(optimizer: torch.optim.Optimizer) -> Iterable[tuple[str, Tensor]]:
    for group in optimizer.param_groups:
        yield from zip(group.get("param_names", [""] * len(group["params"])), group["params"])


def _wanted(name: str, include: Sequence[str], exclude: Sequence[str]) -> bool:
    inside = not include or any(fnmatchcase(name, p) for p in include)
    return inside and not any(fnmatchcase(name, p) for p in exclude)


def _untied(named: list[tuple[str, Tensor]]) -> list[Moved]:
    """Parameters that are one object, or whose storage is the same, are one weight."""
    groups: dict[tuple, list[tuple[str, Tensor]]] = {}
    for name, p in named:
        key = (p.device, p.data_ptr() or id(p), p.shape, p.stride())
        group = groups.setdefault(key, [])
        if all(p is not other for _, other in group):
            group.append((name, p))
    return [Moved(group[0][0], tuple(p for _, p in group)) for group in groups.values()]
