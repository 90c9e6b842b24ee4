"""The shape of task vectors: how well a Laplace law describes their elements, and how they lie to each other.

Functions of several vectors take them tensor by tensor, so that whole checkpoints need never be stacked.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Vectors = Iterable[Sequence[Tensor]]
"""For each parameter tensor in turn, its K task vectors, all of one shape."""


@dataclass(frozen=True)
class LaplaceFit:
    """Maximum-likelihood Laplace and normal laws of some elements, and how well each describes them."""

    location: float
    """Of the Laplace law: the median."""
    scale: float
    """Of the Laplace law: b = mean |x − μ|."""
    mean: float
    deviation: float
    """Of the normal law: the standard deviation."""
    ks_laplace: float
    """Kolmogorov–Smirnov distance from the Laplace law."""
    ks_normal: float
    n: int

    @property
    def log_laplace(self) -> float:
        """Mean log-likelihood of an element under the fitted Laplace law: −log 2b − 1; infinite for a point."""
        return -math.log(2 * self.scale) - 1 if self.scale else math.inf

    @property
    def log_normal(self) -> float:
        """Mean log-likelihood of an element under the fitted normal law: −½ (log 2πσ² + 1); infinite for a point."""
        return -0.5 * (math.log(2 * math.pi * self.deviation**2) + 1) if self.deviation else math.inf


def laplace_fit(x: Tensor) -> LaplaceFit:
    """Fit p(x) = exp(−|x−μ|/b) / 2b and a normal law to the elements of a tensor, by maximum likelihood.

    Raises:
        ValueError: for no elements, or non-finite ones.
    """
    values = _sorted(x)  # [n]
    n = values.numel()
    location = float((values[(n - 1) // 2] + values[n // 2]) / 2)
    scale = float((values - location).abs().mean())
    mean, deviation = float(values.mean()), float(values.std(correction=0))
    if scale == 0:  # all elements equal: both laws are a point, and so are the elements
        return LaplaceFit(location, 0.0, location, 0.0, 0.0, 0.0, n)
    laplace, normal = _ks_laplace(values, location, scale), _ks_normal(values, mean, deviation)
    return LaplaceFit(location, scale, mean, deviation, laplace, normal, n)


def ks_laplace(x: Tensor, location: float, scale: float) -> float:
    """Kolmogorov–Smirnov distance sup |F_n − F| between the elements and a Laplace law of scale > 0."""
    return _ks_laplace(_sorted(x), location, scale)


def ks_normal(x: Tensor, mean: float, deviation: float) -> float:
    """Kolmogorov–Smirnov distance sup |F_n − F| between the elements and a normal law of deviation > 0."""
    return _ks_normal(_sorted(x), mean, deviation)


def _ks_laplace(values: Tensor, location: float, scale: float) -> float:
    z = (values - location) / scale
    tail = 0.5 * torch.exp(-z.abs())
    return _distance(torch.where(z < 0, tail, 1 - tail))


def _ks_normal(values: Tensor, mean: float, deviation: float) -> float:
    return _distance(0.5 * (1 + torch.erf((values - mean) / (deviation * math.sqrt(2)))))


def _sorted(x: Tensor) -> Tensor:
    values = x.detach().flatten().sort().values.to(torch.float64)
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


def gram(
    base: Tensor, experts: Sequence[Tensor], positions: Tensor | None = None, entries: Tensor | None = None
) -> Tensor:
    """Inner products of the task vectors of one tensor: G_ij = ⟨θ_i − θ0, θ_j − θ0⟩, `[K, K]` in float64.

    Differences are float32, products are added up in float32 within a block and in float64 over the blocks: to about
    1e-6 of ‖Δ_i‖·‖Δ_j‖, at half the time of float64 throughout. A block of elements is held at a time; on the way the
    differences at the ascending ``positions`` `[S]` of the flattened tensor are put into ``entries`` `[K, S]`.

    Raises:
        ValueError: for shapes that differ.
    """
    if shapes := {tuple(t.shape) for t in experts} - {tuple(base.shape)}:
        raise ValueError(f"an expert's tensor is {list(shapes.pop())}, the base's {list(base.shape)}")
    total = torch.zeros(len(experts), len(experts), dtype=torch.float64, device=base.device)
    rows = torch.empty(len(experts), min(GRAM_BLOCK, base.numel()), device=base.device)
    wide = [torch.promote_types(t.dtype, base.dtype) in (torch.float32, torch.float64) for t in experts]
    first, taken = 0, 0
    for origin, *others in zip(*(t.detach().reshape(-1).split(GRAM_BLOCK) for t in (base, *experts))):
        block = rows[:, : len(origin)]  # [K, block]
        for row, other, exact in zip(block.unbind(), others, wide):
            torch.sub(other, origin, out=row) if exact else row.copy_(other).sub_(origin)
        total += block @ block.T
        if positions is not None and entries is not None:
            begin, taken = taken, int(torch.searchsorted(positions, first + len(origin)))
            entries[:, begin:taken] = block.index_select(1, positions[begin:taken] - first)
            first += len(origin)
    return total


GRAM_BLOCK = 1 << 15
"""Elements whose differences from the base are held at once, for all experts: 1.6 MB for twelve."""


def cosines(gram: Tensor) -> Tensor:
    """Cosines between task vectors from their inner products: G_ij / √(G_ii · G_jj), `[…, K, K]`.

    NaN in the row and column of a zero vector.
    """
    norms = gram.diagonal(dim1=-2, dim2=-1).sqrt()  # […, K]
    return (gram / (norms[..., :, None] * norms[..., None, :])).clamp(-1, 1)  # NaN stays NaN


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


BLOCK = 1 << 15
"""Elements that are worked on at once, so that they stay in the cache."""


def squared_distance(a: Tensor, b: Tensor) -> float:
    """Σ (a − b)² over two tensors of one shape, in float64.

    Raises:
        ValueError: for different shapes.
    """
    if a.shape != b.shape:
        raise ValueError(f"shapes {list(a.shape)} and {list(b.shape)} differ")
    size = BLOCK if a.device.type == "cpu" else 1 << 26
    pairs = zip(a.detach().reshape(-1).split(size), b.detach().reshape(-1).split(size))
    differences = (x.double() - y.double() for x, y in pairs)
    return float(sum(torch.dot(d, d) for d in differences))


def _stack(group: Sequence[Tensor]) -> Tensor:
    shapes = {tuple(t.shape) for t in group}
    if len(shapes) != 1:
        raise ValueError(f"task vectors of one parameter have shapes {sorted(shapes)}")
    return torch.stack([t.detach().to(torch.float64).flatten() for t in group])  # [K, n]


def sample_positions(total: int, size: int, seed: int) -> NDArray:
    """Sorted positions `[min(size, total)]` of a seeded uniform sample without replacement; all where size ≥ total."""
    if size >= total:
        return np.arange(total)
    random = np.random.default_rng(seed)
    if 2 * size > total:
        return np.sort(random.permutation(total)[:size])
    draws = int(-total * math.log1p(-size / total) * 1.02) + 1000
    found = np.empty(0, dtype=np.int64)
    while len(found) < size:  # more than enough distinct draws, nearly always in one go
        drawn = np.sort(np.concatenate([found, random.integers(total, size=draws)]))
        found = drawn[np.diff(drawn, prepend=-1) > 0]  # as np.unique, whose hashing takes ten times as long
    return np.delete(found, random.choice(len(found), len(found) - size, replace=False))
