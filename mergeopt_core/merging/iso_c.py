"""Iso-C: give the summed update one singular value for all directions."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from mergeopt_core.merging.mergekit_api import PerExpert, TensorGroup, method
from mergeopt_core.merging.updates import (
    NormMatch,
    Rest,
    Updates,
    is_selected,
    match_norm,
    merged,
    note_rank,
    rest_update,
    total,
)
from mergeopt_core.spectral.decompositions import Path, newton_schulz
from mergeopt_core.spectral.spectrum import Spectrum, spectrum


def isotropic(found: Spectrum, rank_tolerance: float = 0.0) -> Tensor:
    """σ̄ U Vᵀ ``[m, n]`` of U Σ Vᵀ with σ̄ the mean singular value.

    The mean is over all min(m, n) values. With a tolerance t it is over the σ above t · σ₁, and the other directions,
    which rounding errors have chosen, are left at zero.
    """
    sigma = found.sigma
    if found.rank(0.0) == 0:
        return found.replaced(torch.zeros_like(sigma))
    keep = sigma > rank_tolerance * sigma[0] if rank_tolerance > 0 else torch.ones_like(sigma, dtype=torch.bool)
    return found.replaced(torch.where(keep, sigma[keep].mean(), 0.0))


def isotropic_by_products(matrix: Tensor) -> Tensor | None:
    """σ̄ U Vᵀ ``[m, n]`` of U Σ Vᵀ without the singular values: Σ_i σ_i = ⟨U Vᵀ, U Σ Vᵀ⟩.

    None where the matrix is too near rank deficient for it.
    """
    try:
        factor = newton_schulz(matrix)
    except ValueError:
        return None
    return factor * ((factor * matrix).sum(dtype=torch.float64) / min(matrix.shape)).to(factor)


@method("iso_c", pretty="Iso-C", url="https://arxiv.org/abs/2502.04959")
def iso_c(
    group: TensorGroup,
    weight: PerExpert[float] = 1.0,  # type: ignore[assignment]
    lambda_: float = 1.0,
    normalize: bool = False,
    norm_matched: NormMatch = "none",
    rank_tolerance: float = 0.0,
    tensors: str = "linear",
    rest: Rest = "mean",
    rest_scale: float = 1.0,
    spectral: Path = "gram",
    report: Any = None,
) -> Tensor:
    """Isotropic merging in the common subspace: the sum of task vectors with all singular values set to their mean.

    U Σ Vᵀ = Σ_k w_k Δ_k, σ̄ = (1/r) Σ_i σ_i, W = θ0 + λ · σ̄ U Vᵀ

    r is min(m, n), or with ``rank_tolerance`` the number of σ above that share of σ₁. The update is that of a sum and
    several times longer than a mean: ``normalize`` divides it by Σ_k w_k, ``norm_matched`` gives it the norm of the
    mean task vector (``mean_vector``) or the mean norm of the task vectors (``mean_norm``). ``tensors`` says which
    tensors are treated so (``linear``: 2-D without embeddings and head); the others take ``rest`` (their weighted
    mean, sum, or the base), times ``rest_scale``.
    """
    updates = Updates(group)
    weights = updates.values(weight)
    if not is_selected(updates.name, updates.shape, tensors):
        return merged(updates, rest_update(updates, weights, rest, rest_scale), lambda_)
    summed = updates.weighted_sum(weights, torch.float64)
    by_products = spectral == "newton_schulz" and rank_tolerance == 0
    update = isotropic_by_products(summed.to(updates.dtype)) if by_products else None
    if update is None:
        found = spectrum(summed, spectral, rank_tolerance, updates.dtype)
        note_rank(report, updates.name, found.sigma, rank_tolerance)
        update = isotropic(found, rank_tolerance)
    update = update / (total(weights) if normalize else 1.0)
    return merged(updates, match_norm(update, updates, weights, norm_matched), lambda_)
