"""Functions of the singular values of a matrix through the eigenvectors of its small Gram matrix.

With W = U Σ Vᵀ ``[m, n]`` and n ≤ m, WᵀW = V Σ² Vᵀ, so U f(Σ) Vᵀ = W V diag(f(σ)/σ) Vᵀ: one Gram product, one symmetric
eigendecomposition of the small side and two products, instead of a singular value decomposition. The Gram matrix has
the square of W's condition number and is therefore formed in float64, as is W V; the last product is of matrices with
orthonormal columns and may be in float32.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor

from mergeopt_core.spectral.lapack import symmetric_eigen
from mergeopt_core.spectral.newton_schulz import newton_schulz

Path = Literal["gram", "svd", "svd64", "newton_schulz"]
"""How a decomposition is computed; ``newton_schulz`` is for polar factors, and ``gram`` wherever more is needed."""

SUSPECT, LOST = 1e-5, 1e-8
"""σ/σ₁ below which the Gram matrix's eigenvectors are checked, and below which they are not worth a check."""

FEW, WELL_CONDITIONED = 0.7, 50
"""Columns a row, and condition number, up to which a float32 Gram matrix is tried, and trusted."""

STRONG = 0.25
"""σ/σ₁ from which on X v is computed in X's own dtype: its rounding error grows by σ₁/σ when U = X v / σ."""

SKEW = 1e-6
"""How far from orthonormal, relative to all, the checked directions may be."""


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

    ``gram``: float64 Gram matrix of the small side, or the float64 SVD where a direction above ``floor`` · σ₁ is too
    weak for it. Directions at or below ``floor`` · σ₁ are for the caller to zero. ``svd``: the plain decomposition in
    ``dtype`` (the matrix's own by default). ``svd64``: the same in float64.
    """
    dtype = dtype or matrix.dtype
    if path in ("svd", "svd64"):
        return _by_svd(matrix.to(dtype) if path == "svd" else matrix.double(), dtype)
    wide = matrix.double()
    tall = matrix.shape[1] <= matrix.shape[0]
    found = by_gram(wide if tall else wide.mT, min(matrix.shape), floor)
    if found is None:
        return _by_svd(wide, dtype)
    far, sigma, near = found
    return Spectrum(far, sigma, near, dtype) if tall else Spectrum(near, sigma, far, dtype)


def by_gram(tall: Tensor, k: int, floor: float = 0.0) -> tuple[Tensor, Tensor, Tensor] | None:
    """The k leading U ``[m, k]``, all σ ``[n]`` and the k leading V ``[n, k]`` of a float64 ``[m, n]``, n ≤ m.

    U = W V with its columns scaled to norm 1, and σ their norms, which is more accurate for weak directions than a
    square root of an eigenvalue. None where a direction among the k above floor · σ₁ is below 1e-8 · σ₁, or is below
    1e-5 · σ₁ and came out skew to the others: the square of the condition number is then too much for float64.
    """
    values, vectors = symmetric_eigen(lower_gram(tall))
    near, sigma = vectors[:, vectors.shape[1] - k :].flip(1), values.clamp(min=0).sqrt().flip(0)
    far = tall @ near
    norms = sigma[:k] = (far * far).sum(dim=0).sqrt()
    first = float(sigma[0]) if k else 0.0
    matters = norms > floor * first * (1 - 1e-3)
    if bool((matters & (norms < LOST * first)).any()):
        return None
    far /= norms.clamp(min=1e-300)
    suspects = torch.nonzero(matters & (norms < SUSPECT * first)).flatten()
    if suspects.numel():
        overlap = far[:, suspects].mT @ far  # [suspects, k]
        overlap[:, ~matters] = 0
        overlap[torch.arange(suspects.numel()), suspects] = 0
        if torch.linalg.matrix_norm(overlap) > SKEW * k**0.5:
            return None
    return far, sigma, near


def _by_svd(matrix: Tensor, dtype: torch.dtype) -> Spectrum:
    u, s, vh = torch.linalg.svd(matrix, full_matrices=False)
    return Spectrum(u, s, vh.mT, dtype)


def lower_gram(matrix: Tensor, blocks: int = 8) -> Tensor:
    """The lower blocks of XᵀX ``[n, n]`` for ``[m, n]``: what a symmetric eigendecomposition reads, at 9/16 of the
    cost."""
    n = matrix.shape[1]
    gram = matrix.new_zeros(n, n)
    edges = [n * i // blocks for i in range(blocks + 1)]
    for top, bottom in pairwise(edges):
        gram[top:bottom, :bottom] = matrix[:, top:bottom].mT @ matrix[:, :bottom]
    return gram


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
