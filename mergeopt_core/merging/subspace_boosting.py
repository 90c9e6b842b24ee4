"""Subspace Boosting: lift the small singular values of a merged update, after any base method."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor

from mergeopt_core.merging.matrices import is_selected, note_rank
from mergeopt_core.merging.mergekit_api import PerExpert, method
from mergeopt_core.merging.trimming import agreeing_, trim
from mergeopt_core.merging.updates import Updates, total
from mergeopt_core.merging.wrappers import wrapper_method
from mergeopt_core.spectral.decompositions import Path
from mergeopt_core.spectral.spectrum import spectrum

URL = "https://arxiv.org/abs/2506.16506"


def boosted_values(sigma: Tensor, beta: float, rank_tolerance: float = 0.0) -> Tensor:
    """σ ``[r]`` (largest first) lifted to at least σ_j, j the first index at which Σ_{i≤j} σ_i reaches β · Σ σ_i.

    β = 0 lifts all to σ₁, β = 1 none. With a tolerance t, values at or below t · σ₁ become 0 instead.
    """
    if sigma.numel() == 0 or float(sigma.sum()) == 0:
        return sigma
    reached = torch.cumsum(sigma, dim=0) / sigma.sum() >= beta
    first = int(torch.argmax(reached.to(torch.uint8))) if bool(reached.any()) else sigma.numel() - 1
    lifted = sigma.clamp(min=float(sigma[first]))
    return torch.where(sigma > rank_tolerance * sigma[0], lifted, 0.0) if rank_tolerance > 0 else lifted


def boost(updates: Updates, update: Tensor, beta: float, rank_tolerance: float, path: Path, report: Any) -> Tensor:
    """U diag(boosted σ) Vᵀ ``[m, n]`` of a merged update of these task vectors, in their dtype."""
    found = spectrum(update, path, rank_tolerance, updates.dtype)
    note_rank(report, updates.name, found.sigma, rank_tolerance)
    if found.rank(0.0) == 0:
        return torch.zeros_like(updates.base)
    return found.replaced(boosted_values(found.sigma, beta, rank_tolerance))


@method("task_arithmetic_sb", pretty="Task Arithmetic + Subspace Boosting", url=URL)
def task_arithmetic_sb(
    updates: Updates,
    weight: PerExpert[float] = 1.0,
    lambda_: float = 1.0,
    normalize: bool = True,
    beta: float = 0.2,
    rank_tolerance: float = 0.0,
    tensors: str = "linear",
    spectral: Path = "gram",
    report: Any = None,
) -> Tensor:
    """Task Arithmetic whose update has its small singular values lifted.

    U Σ Vᵀ = Σ_k w_k Δ_k [/ Σ_k w_k with normalize], W = θ0 + λ · U max(Σ, σ_j) Vᵀ, j = min{j: Σ_{i≤j} σ_i ≥ β Σ_i σ_i}

    Boosting commutes with scaling, so its order among the sum, ``normalize`` and λ does not matter. With
    ``rank_tolerance`` t, directions with σ ≤ t · σ₁ are left out instead of lifted. ``tensors`` says which tensors are
    boosted (``linear``: 2-D without embeddings and head); the others are plain Task Arithmetic.
    """
    treated = is_selected(updates.name, updates.shape, tensors)
    update = updates.weighted_sum(weight, torch.float64 if treated else None)
    update /= total(weight) if normalize else 1.0
    if treated:
        update = boost(updates, update, beta, rank_tolerance, spectral, report)
    return updates.merged(update, lambda_)


@method("ties_sb", pretty="TIES + Subspace Boosting", url=URL)
def ties_sb(
    updates: Updates,
    weight: PerExpert[float] = 1.0,
    lambda_: float = 1.0,
    normalize: bool = True,
    density: PerExpert[float] = 0.2,
    beta: float = 0.2,
    boosted: Literal["mean", "sum"] = "mean",
    rank_tolerance: float = 0.0,
    tensors: str = "linear",
    spectral: Path = "gram",
    report: Any = None,
) -> Tensor:
    """TIES whose update has its small singular values lifted.

    Δ = TIES(Δ_1 … Δ_K) = S / D entrywise (S the sum of what agrees, D its weights), W = θ0 + λ · U max(Σ, σ_j) Vᵀ with
    U Σ Vᵀ = Δ and j = min{j: Σ_{i≤j} σ_i ≥ β Σ_i σ_i}

    The divisor D differs between entries, so the order matters: ``boosted: mean`` boosts S / D, ``boosted: sum``
    boosts S and divides afterwards. Trimming is per tensor; the other parameters are those of ``task_arithmetic_sb``.
    """
    trimmed = torch.stack([trim(delta, share) for delta, share in zip(updates, density)])
    summed, divisor = agreeing_(trimmed, weight)
    update = summed / divisor if normalize and boosted == "mean" else summed
    if is_selected(updates.name, updates.shape, tensors):
        update = boost(updates, update, beta, rank_tolerance, spectral, report)
    return updates.merged(update / divisor if normalize and boosted == "sum" else update, lambda_)


@wrapper_method("subspace_boosting", pretty="Subspace Boosting", url=URL)
def subspace_boosting(
    updates: Updates,
    update: Tensor,
    beta: float = 0.2,
    rank_tolerance: float = 0.0,
    tensors: str = "linear",
    spectral: Path = "gram",
    report: Any = None,
) -> Tensor:
    """Any merge method's update with its small singular values lifted.

    Δ = base_method(θ0, θ_1 … θ_K) − θ0 = U Σ Vᵀ, W = θ0 + λ · U max(Σ, σ_j) Vᵀ, j = min{j: Σ_{i≤j} σ_i ≥ β Σ_i σ_i}

    ``base_parameters`` are the base method's own. Its merge runs in float64, so that Δ is not rounded to the size of
    θ0. Tensors that are not boosted take Δ as it is.
    """
    if is_selected(updates.name, updates.shape, tensors):
        return boost(updates, update, beta, rank_tolerance, spectral, report)
    return update
