"""OrthoMerge: the rotation of the base nearest to every expert, merged among rotations, and what is left over."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from mergeopt_core.merging.matrices import matrix_method
from mergeopt_core.merging.updates import Updates, total
from mergeopt_core.spectral.decompositions import Path
from mergeopt_core.spectral.spectrum import polar

RIDGE = 1e-9
"""Pull of the nearest rotation towards the identity, as a share of σ₁: it decides where the weights leave it open."""


def nearest_rotation(base: Tensor, expert: Tensor, path: Path = "gram") -> Tensor:
    """R ``[n, n]`` = argmin ‖W0 R − W_k‖ over orthogonal R, for ``[m, n]`` weights in float64 (Procrustes).

    Of all that do so (m < n leaves a null space open), the one nearest to the identity.
    """
    product = base.mT @ expert
    pull = RIDGE * float(torch.linalg.matrix_norm(product)) or 1.0
    return polar(product + pull * torch.eye(product.shape[0], dtype=product.dtype, device=product.device), path, 0.0)


def to_skew(rotation: Tensor) -> Tensor:
    """Cayley's A = (R + I)⁻¹ (R − I) ``[n, n]``, skew-symmetric; ValueError where R turns a direction by π."""
    identity = torch.eye(rotation.shape[0], dtype=rotation.dtype, device=rotation.device)
    solved, info = torch.linalg.solve_ex(rotation + identity, rotation - identity)
    if int(info) or not bool(torch.isfinite(solved).all()):
        raise ValueError("an expert turns a direction of the base right around: no mean of rotations is near it")
    return (solved - solved.mT) / 2


def from_skew(skew: Tensor) -> Tensor:
    """R = (I − A)⁻¹ (I + A) ``[n, n]``."""
    identity = torch.eye(skew.shape[0], dtype=skew.dtype, device=skew.device)
    return torch.linalg.solve(identity - skew, identity + skew)


@matrix_method("orthomerge", pretty="OrthoMerge", url="https://arxiv.org/abs/2602.05943")
def orthomerge(updates: Updates, weight: Sequence[float], residual: float = 0.2, spectral: Path = "gram") -> Tensor:
    """Experts as rotations of the base, merged on the orthogonal group, and their remainders summed.

    R_k = argmin ‖θ0 R − θ_k‖ over rotations, A_k = (R_k + I)⁻¹ (R_k − I),
    A = mean_k ‖A_k‖ · Σ_k w_k A_k / ‖Σ_k w_k A_k‖,
    W = θ0 (I − A)⁻¹ (I + A) + r · Σ_k w_k (θ_k − θ0 R_k), r = ``residual``; the update W − θ0 is then scaled by λ

    Where a layer is wider than high, R_k is not unique: the one nearest to the identity is taken. The norm keeps the
    experts' mean (weighted) where their directions cancel. ``tensors``, ``rest`` and ``rest_scale`` are those of
    ``iso_c``.
    """
    base = updates.base.double()
    skew, left, size = base.new_zeros(base.shape[1], base.shape[1]), torch.zeros_like(base), 0.0
    for expert, share in zip(updates.experts, weight):
        rotation = nearest_rotation(base, expert.double(), spectral)
        one = to_skew(rotation)
        skew += share * one
        size += share * float(torch.linalg.matrix_norm(one))
        left += share * (expert.double() - base @ rotation)
    norm = float(torch.linalg.matrix_norm(skew))
    if norm >= 1e-8:
        skew *= size / total(weight) / norm
    turned = base @ from_skew(skew) - base if norm >= 1e-8 else torch.zeros_like(base)
    return (turned + residual * left).to(updates.dtype)
