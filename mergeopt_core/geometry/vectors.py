"""How task vectors lie to each other: inner products, cosines, signs, norms.

Each function takes the vectors as lists of tensors in one order of parameters, one list an expert, and goes through
them tensor by tensor, so that whole checkpoints need never be stacked.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

Vectors = Iterable[Sequence[Tensor]]
"""For each parameter tensor in turn, its K task vectors, all of one shape."""


@dataclass(frozen=True)
class Norms:
    """Norms of one task vector."""

    l1: float
    l2: float
    largest: float
    n: int


@dataclass(frozen=True)
class SignAgreement:
    """How the K task vectors' signs agree, counted over elements."""

    elements: int
    all_zero: int
    """No expert moves the element."""
    single: int
    """Exactly one expert moves it."""
    agree: int
    """Two or more move it, all the same way."""
    conflict: int
    """Two or more move it, not all the same way."""


def gram(vectors: Vectors) -> Tensor:
    """Inner products of the task vectors in float64: G_ij = Σ over parameters of ⟨Δ_i, Δ_j⟩.

    Args:
        vectors: for each parameter tensor, its K task vectors.

    Returns:
        `[K, K]`.

    Raises:
        ValueError: without tensors, or when shapes within one parameter differ.
    """
    total: Tensor | None = None
    for group in vectors:
        rows = _stack(group)  # [K, n]
        part = rows @ rows.T
        total = part if total is None else total + part
    if total is None:
        raise ValueError("no tensors")
    return total


def cosines(vectors: Vectors) -> Tensor:
    """Cosines between task vectors: C_ij = ⟨Δ_i, Δ_j⟩ / (‖Δ_i‖·‖Δ_j‖).

    Args:
        vectors: for each parameter tensor, its K task vectors.

    Returns:
        `[K, K]` in float64; NaN in the row and column of a zero vector.
    """
    products = gram(vectors)
    squares = products.diagonal()
    values = products / torch.outer(squares, squares).sqrt()
    defined = torch.isfinite(values)
    return torch.where(defined, values.clamp(-1, 1), values)


def sign_agreement(vectors: Vectors) -> SignAgreement:
    """Count, over all elements, how many experts move them and whether they move them the same way.

    Args:
        vectors: for each parameter tensor, its K task vectors.
    """
    counts = torch.zeros(5, dtype=torch.int64)
    for group in vectors:
        signs = _stack(group).sign()  # [K, n]
        moved = signs.abs().sum(dim=0)  # [n]
        same = signs.sum(dim=0).abs() == moved  # [n]
        counts += torch.stack(
            [
                torch.tensor(signs.shape[1]),
                (moved == 0).sum().cpu(),
                (moved == 1).sum().cpu(),
                ((moved > 1) & same).sum().cpu(),
                ((moved > 1) & ~same).sum().cpu(),
            ]
        )
    return SignAgreement(*counts.tolist())


def norms(tensors: Iterable[Tensor]) -> Norms:
    """L1, L2 and largest absolute element of one task vector, in float64.

    Args:
        tensors: the vector's parameter tensors.
    """
    l1, squares, largest, n = 0.0, 0.0, 0.0, 0
    for tensor in tensors:
        x = tensor.detach().to(torch.float64)
        if x.numel() == 0:
            continue
        l1 += float(x.abs().sum())
        squares += float((x * x).sum())
        largest = max(largest, float(x.abs().max()))
        n += x.numel()
    return Norms(l1, squares**0.5, largest, n)


def _stack(group: Sequence[Tensor]) -> Tensor:
    shapes = {tuple(t.shape) for t in group}
    if len(shapes) != 1:
        raise ValueError(f"task vectors of one parameter have shapes {sorted(shapes)}")
    return torch.stack([t.detach().to(torch.float64).flatten() for t in group])  # [K, n]
