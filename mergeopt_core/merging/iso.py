"""Iso-C and Iso-CTS: give the merged update one singular value for all directions."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor

from mergeopt_core.merging.matrices import matrix_method, note_rank
from mergeopt_core.merging.updates import Updates
from mergeopt_core.spectral.decompositions import Path, newton_schulz
from mergeopt_core.spectral.spectrum import decompose, polar, spectrum

URL = "https://arxiv.org/abs/2502.04959"


@matrix_method("iso_c", pretty="Iso-C", url=URL)
def iso_c(
    updates: Updates, weight: Sequence[float], rank_tolerance: float = 0.0, spectral: Path = "gram", report: Any = None
) -> Tensor:
    """Isotropic merging in the common subspace: the sum of task vectors with all singular values set to their mean.

    U Σ Vᵀ = Σ_k w_k Δ_k, σ̄ = (1/r) Σ_i σ_i, W = θ0 + λ · σ̄ U Vᵀ

    r is min(m, n), or with ``rank_tolerance`` the number of σ above that share of σ₁. The update is that of a sum and
    several times longer than a mean: ``normalize`` divides it by Σ_k w_k, ``norm_matched`` gives it the norm of the
    mean task vector (``mean_vector``) or the mean norm of the task vectors (``mean_norm``). ``tensors`` says which
    tensors are treated so (``linear``: 2-D without embeddings and head); the others take ``rest`` (their weighted
    mean, sum, or the base), times ``rest_scale``.
    """
    summed = updates.weighted_sum(weight, torch.float64)
    if spectral == "newton_schulz" and rank_tolerance == 0:
        with suppress(ValueError):  # too near rank deficient for products alone
            matrix = summed.to(updates.dtype)
            factor = newton_schulz(matrix)
            nuclear_norm = (factor * matrix).sum(dtype=torch.float64)  # Σ_i σ_i = ⟨U Vᵀ, U Σ Vᵀ⟩
            return factor * (nuclear_norm / min(matrix.shape)).to(factor)
    found = spectrum(summed, spectral, rank_tolerance, updates.dtype)
    sigma = found.sigma
    note_rank(report, updates.name, sigma, rank_tolerance)
    keep = sigma > rank_tolerance * sigma[0] if rank_tolerance > 0 else torch.ones_like(sigma, dtype=torch.bool)
    return found.replaced(torch.where(keep, sigma[keep].mean(), 0.0))  # what rounding errors chose stays at zero


def split_ranks(rank: int, experts: int, fraction: float) -> tuple[int, int]:
    """Common directions and directions per expert: the latter fill r − ⌊fraction·r⌋, rounded to a multiple of K."""
    each = round((rank - int(rank * fraction)) / experts)
    while rank - each * experts < 0:
        each -= 1
    return rank - each * experts, each


def common_and_task_specific(
    deltas: Sequence[Tensor], fraction: float = 0.8, path: Path = "gram"
) -> tuple[Tensor, Tensor]:
    """σ̄ U Vᵀ ``[m, n]`` of the common and task-specific directions of ``[m, n]`` updates, both made orthonormal.

    Also returns the singular values ``[r]`` of the sum.
    """
    summed = torch.stack(list(deltas)).sum(dim=0)
    common, each = split_ranks(min(summed.shape), len(deltas), fraction)
    wide = summed.dtype if path == "svd" else torch.float64
    parts = [decompose(summed.to(wide), common, path)]
    shared = parts[0]["U"]
    for delta in deltas:
        outside = delta.to(wide) - shared @ (shared.mT @ delta.to(wide))
        parts.append(decompose(outside, each, path))
    sigma = torch.cat([part["S"][: part["U"].shape[1]] for part in parts])
    u, v = (torch.cat([part[side] for part in parts], dim=1) for side in "UV")
    return float(sigma.mean()) * polar(u, path) @ polar(v, path).mT, parts[0]["S"]


@matrix_method("iso_cts", pretty="Iso-CTS", url=URL)
def iso_cts(
    updates: Updates, weight: Sequence[float], common_fraction: float = 0.8, spectral: Path = "gram", report: Any = None
) -> Tensor:
    """Isotropic merging in common and task-specific subspaces.

    [U_c | U_1 … U_K] and [V_c | V_1 … V_K] made orthonormal (polar factors), W = θ0 + λ · σ̄ U Vᵀ

    U_c, V_c are the leading c directions of Σ_k w_k Δ_k; U_k, V_k the leading s of (I − U_c U_cᵀ) w_k Δ_k; c + K·s =
    min(m, n), c about ``common_fraction`` of it; σ̄ is the mean of all kept singular values. The other parameters are
    those of ``iso_c``.
    """
    deltas = [delta * share for delta, share in zip(updates, weight)]
    update, sigma = common_and_task_specific(deltas, common_fraction, spectral)
    note_rank(report, updates.name, sigma, 0.0)
    return update
