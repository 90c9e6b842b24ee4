"""Functions of the singular values of a matrix through the eigenvectors of its small Gram matrix.

With W = U Σ Vᵀ ``[m, n]`` and n ≤ m, WᵀW = V Σ² Vᵀ, so U f(Σ) Vᵀ = W V diag(f(σ)/σ) Vᵀ: one Gram product, one symmetric
eigendecomposition of the small side and two products, instead of a singular value decomposition. The Gram matrix has
the square of W's condition number and is therefore formed in float64.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

Path = Literal["gram", "svd", "svd64"]

GRAM_FLOOR = 1e-6
"""Smallest σ/σ₁ that a float64 Gram matrix resolves well: its relative error there is about 1e-16 / floor² = 1e-4."""

NULL = 1e-12
"""σ/σ₁ below which a direction holds rounding errors of float64 only."""


@dataclass(frozen=True)
class Spectrum:
    """Singular values of ``matrix`` ``[m, n]`` with what is needed to change them."""

    matrix: Tensor
    sigma: Tensor
    """``[r]``, r = min(m, n), largest first, float64 (the matrix's dtype on the plain path)."""
    left: Tensor | None = None
    """U ``[m, r]``, known on the SVD paths, or the small side's eigenvectors where m < n."""
    right: Tensor | None = None
    """V ``[n, r]``, known on the SVD paths, or the small side's eigenvectors where n ≤ m."""

    def rank(self, tolerance: float) -> int:
        """Numerical rank: how many σ are above tolerance · σ₁ (0 for the zero matrix)."""
        if self.sigma.numel() == 0 or float(self.sigma[0]) == 0.0:
            return 0
        return int((self.sigma > tolerance * self.sigma[0]).sum())

    def replaced(self, values: Tensor) -> Tensor:
        """U diag(values) Vᵀ ``[m, n]`` for new singular values ``[r]``."""
        values = values.to(self.sigma)
        if self.left is not None and self.right is not None:
            return (self.left * values) @ self.right.mT
        ratio = torch.where(self.sigma > NULL * self.sigma[0], values / self.sigma.clamp(min=1e-300), 0.0)
        if self.right is not None:
            return self.matrix @ ((self.right * ratio) @ self.right.mT)
        assert self.left is not None
        return ((self.left * ratio) @ self.left.mT) @ self.matrix


def spectrum(matrix: Tensor, path: Path = "gram", floor: float = 0.0) -> Spectrum:
    """Singular values of ``[m, n]``, and a way to replace them.

    ``gram``: float64 Gram matrix of the small side; where a σ in (floor · σ₁, 1e-6 · σ₁) would matter, which it cannot
    resolve, the float64 SVD instead. Directions at or below ``floor`` · σ₁ are for the caller to zero.
    ``svd``: the plain decomposition in the matrix's own dtype. ``svd64``: the same in float64.
    """
    if path != "gram":
        return _by_svd(matrix if path == "svd" else matrix.double())
    wide = matrix.double()
    m, n = wide.shape
    gram = wide.mT @ wide if n <= m else wide @ wide.mT
    values, vectors = torch.linalg.eigh(gram)
    sigma = values.clamp(min=0).sqrt().flip(0)
    vectors = vectors.flip(1)
    unresolved = (sigma < GRAM_FLOOR * sigma[0]) & (sigma > floor * sigma[0] * (1 - 1e-3))
    if floor < GRAM_FLOOR and bool(unresolved.any()):
        return _by_svd(wide)
    return Spectrum(wide, sigma, right=vectors) if n <= m else Spectrum(wide, sigma, left=vectors)


def _by_svd(matrix: Tensor) -> Spectrum:
    u, s, vh = torch.linalg.svd(matrix, full_matrices=False)
    return Spectrum(matrix, s, left=u, right=vh.mT)


def inverse_sqrt(gram: Tensor, tolerance: float = 1e-6) -> Tensor:
    """G^(−1/2) of a positive semi-definite ``[p, p]``, zero on directions with √λ ≤ tolerance · √λ₁.

    X · inverse_sqrt(XᵀX) is the polar factor of X: the nearest matrix with orthonormal columns, or, where X has
    dependent columns, the partial isometry with X's row space, which unlike a completed polar factor is unique.
    """
    values, vectors = torch.linalg.eigh(gram)
    root = values.clamp(min=0).sqrt()
    inverse = torch.where(root > tolerance * root[-1], 1 / root.clamp(min=1e-300), 0.0)
    return (vectors * inverse) @ vectors.mT


def polar(matrix: Tensor, path: Path = "gram", tolerance: float = 1e-6) -> Tensor:
    """Polar factor U Vᵀ ``[m, n]`` of U Σ Vᵀ; a partial isometry where σ ≤ tolerance · σ₁."""
    found = spectrum(matrix, path, floor=tolerance)
    return found.replaced((found.sigma > tolerance * found.sigma[0]).to(found.sigma))
