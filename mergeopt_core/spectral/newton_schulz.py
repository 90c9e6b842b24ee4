"""Polar factors by matrix products alone: for devices on which a decomposition is slow and a product is not."""

from __future__ import annotations

import torch
from torch import Tensor


def norm_bound(matrix: Tensor) -> float:
    """(Σ σ⁸)^(1/8) = ‖(XᵀX)²‖_F^(1/4) of ``[m, n]``: never below σ₁, and above it by r^(1/8) at most.

    An estimate that can fall short of σ₁ would not do: the iteration sends σ > √3 to a negative value.
    """
    gram = matrix.mT @ matrix if matrix.shape[1] <= matrix.shape[0] else matrix @ matrix.mT
    scale = float(gram.abs().amax()) or 1.0
    gram = gram / scale
    return float(torch.linalg.matrix_norm(gram @ gram).double() ** 0.25 * scale**0.5) * (1 + 1e-6)


def newton_schulz(matrix: Tensor, lowest: float = 1e-3, tolerance: float = 1e-6) -> Tensor:
    """Polar factor U Vᵀ ``[m, n]`` of U Σ Vᵀ with full rank, by the scaled iteration X ← α X (3 I − α² XᵀX) / 2.

    With all σ in [l, 1], α² = 3 / (1 + l + l²) maps them into [α l (3 − α² l²) / 2, 1], from l = ``lowest`` on; a σ
    below it grows more slowly and is caught up with later. Stops when ‖XᵀX − I‖ ≤ tolerance · √r. ValueError where
    that is not reached in the steps that σ = 1e-5 · σ₁ takes in float32, or 1e-10 · σ₁ in float64: what is weaker is
    rounding error of larger entries.
    """
    tall = matrix.shape[1] <= matrix.shape[0]
    x = matrix if tall else matrix.mT
    r = x.shape[1]
    x = x / max(norm_bound(x), 1e-30)
    identity = torch.eye(r, dtype=x.dtype, device=x.device)
    reach = max(tolerance, 16 * torch.finfo(x.dtype).eps) * r**0.5
    low, most = lowest, 52 if x.dtype == torch.float64 else 24
    for _ in range(most):
        gram = x.mT @ x
        if float(torch.linalg.matrix_norm(gram - identity)) <= reach:
            return x if tall else x.mT
        square = 3 / (1 + low + low * low)
        x = x @ (identity * (1.5 * square**0.5) - gram * (0.5 * square**1.5))
        low = min(1.0, square**0.5 * low * (3 - square * low * low) / 2)
    raise ValueError(f"the polar factor did not settle in {most} steps: the matrix is near rank deficient")
