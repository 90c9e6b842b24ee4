"""Functions of a matrix's singular values, and the factors of it that can be kept between merges.

U f(Σ) Vᵀ = W V diag(f(σ)/σ) Vᵀ is a product of matrices with orthonormal columns, which once known in float64 may be
taken in float32. The leading triplets of an expert's update, and the inner products between experts, do not depend on
which others are merged: a sweep over subsets of N experts needs N decompositions per tensor and N(N−1)/2 cross products
per subset size. ``cache`` is any dict-like store (``get`` and item assignment) of mappings of tensors by tuples of
strings; it belongs to one base. None computes afresh, to the same bits.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mergeopt_core.spectral.decompositions import Path, newton_schulz, symmetric_eigen, triplets

FEW, WELL_CONDITIONED = 0.7, 50
"""Columns per row, and condition number, up to which a float32 Gram matrix is tried, and trusted."""

STRONG = 0.25
"""σ/σ₁ from which on X v is computed in X's own dtype: its rounding error grows by σ₁/σ when U = X v / σ."""

Factors = Mapping[str, Tensor]
"""U ``[m, k]``, S ``[r]`` (all of them) and V ``[n, k]`` of one update."""


@dataclass(frozen=True)
class Spectrum:
    """U ``[m, r]``, σ ``[r]`` (largest first) and V ``[n, r]`` of a matrix, r = min(m, n)."""

    left: Tensor
    sigma: Tensor
    right: Tensor
    dtype: torch.dtype
    """Dtype of the matrix, and of what is made of it."""

    def rank(self, tolerance: float) -> int:
        """Numerical rank: how many σ are above tolerance · σ₁ (0 for the zero matrix)."""
        if self.sigma.numel() == 0 or float(self.sigma[0]) == 0.0:
            return 0
        return int((self.sigma > tolerance * self.sigma[0]).sum())

    def replaced(self, values: Tensor) -> Tensor:
        """U diag(values) Vᵀ ``[m, n]`` for new singular values ``[r]``.

        The factors are orthonormal to float64's precision by now, so this product may be in the matrix's own dtype.
        """
        left = (self.left * values.to(self.sigma)).to(self.dtype)
        return _product(left, self.right.to(self.dtype))


def _product(left: Tensor, right: Tensor, step: int = 64) -> Tensor:
    """A Bᵀ of ``[m, r]`` and ``[n, r]``; in float32 by short sums, which have fewer rounding errors than long ones."""
    if left.dtype != torch.float32 or left.device.type != "cpu":
        return left @ right.mT
    result = left[:, :step] @ right[:, :step].mT
    for start in range(step, left.shape[1], step):
        result.addmm_(left[:, start : start + step], right[:, start : start + step].mT)
    return result


def spectrum(matrix: Tensor, path: Path = "gram", floor: float = 0.0, dtype: torch.dtype | None = None) -> Spectrum:
    """Singular values of ``[m, n]`` with the vectors that are needed to replace them; results in ``dtype``.

    ``path``, ``floor`` and ``dtype`` are those of ``triplets``.
    """
    return Spectrum(*triplets(matrix, min(matrix.shape), path, floor, dtype), dtype or matrix.dtype)


def orthonormal(matrix: Tensor, gram: Tensor, tolerance: float = 1e-6) -> tuple[Tensor, Tensor]:
    """Q ``[m, p]`` and E ``[p, p]`` with orthonormal columns such that Q Eᵀ is the polar factor of X ``[m, p]``.

    G = XᵀX = E Λ Eᵀ (float64 ``[p, p]``, its lower part is read, all of it overwritten), Q = X E Λ^(−1/2). Columns of Q
    are 0 on directions with √λ ≤ tolerance · √λ₁: where X has dependent columns the result is the partial isometry on
    their span, which unlike a completed polar factor is unique. For a float32 X clearly taller than wide, float32 is
    tried first: it is enough where X's condition number is below 50.
    """
    if matrix.dtype == torch.float32 and matrix.shape[1] <= FEW * matrix.shape[0]:
        values, vectors = torch.linalg.eigh(gram.to(torch.float32))  # here the quicker of the two
        if float(values[0]) * WELL_CONDITIONED**2 > float(values[-1]):
            return (matrix @ vectors) / values.sqrt(), vectors
    values, vectors = symmetric_eigen(gram)
    root = values.clamp(min=0).sqrt()
    inverse = torch.where(root > tolerance * root[-1], 1 / root.clamp(min=1e-300), 0.0)
    weak = int((root < STRONG * root[-1]).sum())
    result, turn = torch.empty_like(matrix), vectors.to(matrix.dtype)
    result[:, :weak] = (matrix.double() @ vectors[:, :weak]).mul_(inverse[:weak])
    torch.mul(matrix @ turn[:, weak:], inverse[weak:].to(matrix.dtype), out=result[:, weak:])
    return result, turn


def polar(matrix: Tensor, path: Path = "gram", tolerance: float = 1e-6) -> Tensor:
    """Polar factor U Vᵀ ``[m, n]`` of U Σ Vᵀ; a partial isometry where σ ≤ tolerance · σ₁.

    ``newton_schulz`` iterates in the matrix's dtype, and leaves what is too near rank deficient for it to ``gram``.
    """
    if path == "newton_schulz":
        with contextlib.suppress(ValueError):
            return newton_schulz(matrix)
    found = spectrum(matrix, path, floor=tolerance)
    return found.replaced((found.sigma > tolerance * found.sigma[0]).to(found.sigma))


def decompose(matrix: Tensor, k: int, path: Path = "gram") -> Factors:
    """The k leading singular triplets of ``[m, n]`` and all its singular values.

    U and V come in the matrix's dtype, S in float64 (on the path ``svd`` in the matrix's).
    """
    u, s, v = triplets(matrix, k, path)
    return {"U": u.to(matrix.dtype), "S": s, "V": v.to(matrix.dtype)}


def factors(
    update: Callable[[], Tensor], k: int, *, expert: str, tensor: str, cache: Any = None, path: Path = "gram"
) -> Factors:
    """The k leading triplets of an update, from the cache where it holds as many; ``update()`` makes the matrix.

    Half of all triplets are computed and kept, which any subset of two or more experts can use, with or without a
    cache, so that its bits do not depend on there being one.
    """
    path = "gram" if path == "newton_schulz" else path
    key = ("factors", path, str(expert), tensor)
    known = cache.get(key) if cache is not None else None
    if known is None or known["U"].shape[1] < k:
        matrix = update()
        known = decompose(matrix, max(k, (min(matrix.shape) + 1) // 2), path)
        if cache is not None:
            cache[key] = known
    return cut(known, k)


def cut(known: Factors, k: int) -> Factors:
    """The first k triplets, in memory of their own: a product's bits may depend on how its operands are laid out."""
    u, v = (known[side][:, :k].clone(memory_format=torch.contiguous_format) for side in ("U", "V"))
    return {"U": u, "S": known["S"], "V": v}


def cross(a: Factors, b: Factors, *, experts: tuple[str, str], tensor: str, cache: Any = None) -> Factors:
    """U_aᵀU_b and V_aᵀV_b ``[k_a, k_b]`` in float64, from the cache where it holds blocks of this size."""
    size = f"{a['U'].shape[1]}x{b['U'].shape[1]}"
    key = ("cross", size, *map(str, experts), tensor)
    known = cache.get(key) if cache is not None else None
    if known is None:
        known = {side: a[side].double().mT @ b[side].double() for side in ("U", "V")}
        if cache is not None:
            cache[key] = known
    return known
