"""The shape of task vectors: how well a Laplace law describes their elements, and how they lie to each other.

Functions of several vectors take them tensor by tensor, so that whole checkpoints need never be stacked.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

Vectors = Iterable[Sequence[Tensor]]
"""For each parameter tensor in turn, its K task vectors, all of one shape."""


@dataclass(frozen=True)
class LaplaceFit:
    """Maximum-likelihood Laplace law of some elements, and how far they are from it and from the normal one."""

    location: float
    scale: float
    ks_laplace: float
    ks_normal: float
    n: int


def laplace_fit(x: Tensor) -> LaplaceFit:
    """Fit p(x) = exp(−|x−μ|/b) / 2b to the elements of a tensor: μ is the median, b = mean |x − μ|.

    The Kolmogorov–Smirnov distances are of the fitted Laplace law and of the normal law with x's mean and deviation.

    Raises:
        ValueError: for no elements, or non-finite ones.
    """
    values = _sorted(x)  # [n]
    n = values.numel()
    location = float((values[(n - 1) // 2] + values[n // 2]) / 2)
    scale = float((values - location).abs().mean())
    if scale == 0:  # all elements equal: both laws are a point, and so are the elements
        return LaplaceFit(location, 0.0, 0.0, 0.0, n)
    mean, deviation = float(values.mean()), float(values.std(correction=0))
    return LaplaceFit(location, scale, ks_laplace(values, location, scale), ks_normal(values, mean, deviation), n)


def ks_laplace(x: Tensor, location: float, scale: float) -> float:
    """Kolmogorov–Smirnov distance sup |F_n − F| between the elements and a Laplace law of scale > 0."""
    z = (_sorted(x) - location) / scale
    tail = 0.5 * torch.exp(-z.abs())
    return _distance(torch.where(z < 0, tail, 1 - tail))


def ks_normal(x: Tensor, mean: float, deviation: float) -> float:
    """Kolmogorov–Smirnov distance sup |F_n − F| between the elements and a normal law of deviation > 0."""
    return _distance(0.5 * (1 + torch.erf((_sorted(x) - mean) / (deviation * math.sqrt(2)))))


def _sorted(x: Tensor) -> Tensor:
    values = x.detach().to(torch.float64).flatten().sort().values
    if values.numel() == 0:
        raise ValueError("no elements to fit")
    if not bool(torch.isfinite(values).all()):
        raise ValueError("elements hold NaN or infinity")
    return values


def _distance(cdf: Tensor) -> float:
    """Sup distance between a law's values at the sorted elements and the steps of their empirical law."""
    n = cdf.numel()
    steps = torch.arange(n + 1, dtype=torch.float64, device=cdf.device) / n
    return float(torch.maximum((steps[1:] - cdf).max(), (cdf - steps[:-1]).max()))


def gram(vectors: Vectors) -> Tensor:
    """Inner products of the task vectors: G_ij = Σ over parameters of ⟨Δ_i, Δ_j⟩, `[K, K]` in float64.

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
    """Cosines between task vectors: C_ij = ⟨Δ_i, Δ_j⟩ / (‖Δ_i‖·‖Δ_j‖), `[K, K]` in float64.

    NaN in the row and column of a zero vector.
    """
    products = gram(vectors)
    squares = products.diagonal()
    return (products / torch.outer(squares, squares).sqrt()).clamp(-1, 1)  # NaN stays NaN


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


def sign_agreement(vectors: Vectors) -> SignAgreement:
    """Count, over all elements, how many experts move them and whether they move them the same way."""
    counts = torch.zeros(5, dtype=torch.int64)
    for group in vectors:
        signs = _stack(group).sign()  # [K, n]
        moved = signs.abs().sum(dim=0)  # [n]
        same = signs.sum(dim=0).abs() == moved  # [n]
        kinds = (torch.ones_like(same), moved == 0, moved == 1, (moved > 1) & same, (moved > 1) & ~same)
        counts += torch.stack([kind.sum() for kind in kinds]).cpu()
    return SignAgreement(*counts.tolist())


@dataclass(frozen=True)
class Norms:
    """Norms of one task vector."""

    l1: float
    l2: float
    largest: float
    n: int


def norms(tensors: Iterable[Tensor]) -> Norms:
    """L1, L2 and largest absolute element of one task vector, given by its parameter tensors, in float64."""
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


BLOCK = 1 << 15
"""Elements that are worked on at once, so that they stay in the cache."""


def squared_distance(a: Tensor, b: Tensor) -> float:
    """Σ (a − b)² over two tensors of one shape, in float64.

    Raises:
        ValueError: for different shapes.
    """
    if a.shape != b.shape:
        raise ValueError(f"shapes {list(a.shape)} and {list(b.shape)} differ")
    pairs = zip(a.detach().reshape(-1).split(BLOCK), b.detach().reshape(-1).split(BLOCK))
    differences = (x.double() - y.double() for x, y in pairs)
    return float(sum(torch.dot(d, d) for d in differences))


def _stack(group: Sequence[Tensor]) -> Tensor:
    shapes = {tuple(t.shape) for t in group}
    if len(shapes) != 1:
        raise ValueError(f"task vectors of one parameter have shapes {sorted(shapes)}")
    return torch.stack([t.detach().to(torch.float64).flatten() for t in group])  # [K, n]
