"""ACE-Merging: input covariances read off the task vectors themselves, in the place of RegMean's data."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from mergeopt_core.merging.matrices import matrix_method
from mergeopt_core.merging.updates import Updates
from mergeopt_core.spectral.decompositions import Path
from mergeopt_core.spectral.spectrum import decompose


def heterogeneous(deltas: Sequence[Tensor], threshold: float) -> bool:
    """Whether Var(log ‖Δ_k‖²) / mean(log ‖Δ_k‖²)² exceeds the threshold: whether the experts' energies differ much."""
    energies = torch.stack([delta.square().sum() for delta in deltas])
    logs = torch.log(energies + 1e-12)
    return len(deltas) > 1 and float(logs.var() / (logs.mean().square() + 1e-12)) > threshold


@matrix_method("ace", pretty="ACE-Merging", url="https://arxiv.org/abs/2603.02945")
def ace(
    updates: Updates,
    weight: Sequence[float],
    ridge: float = 0.01,
    threshold: float = 0.3,
    top_fraction: float = 0.3,
    spectral: Path = "gram",
) -> Tensor:
    """Closed-form merge with each expert's input covariance estimated by the Gram matrix of its own task vector.

    C_k = Δ_k − row mean, Σ_k = C_kᵀC_k, Δ = (Σ_k C_k (Σ_k + ε I)) (Σ_k (Σ_k + ε I) + 1 cᵀ)⁻¹, c = row mean of Σ_k Σ_k,
    W = θ0 + λ · Δ, ε = ``ridge``

    Where the experts' energies differ much, Var(log ‖Δ_k‖²) / mean(log ‖Δ_k‖²)² > ``threshold``, Σ_k and ε are divided
    by tr Σ_k, c by the mean ‖Δ_k‖², and σ̄ U_p V_pᵀ is added: the p = ⌊``top_fraction`` · r⌋ leading directions of
    Δ + Σ_k Δ_k (Σ_k − mean of Σ_k + ε I), σ̄ the mean of their singular values. These are the published code's steps.
    """
    deltas = [delta.double() * share for delta, share in zip(updates, weight)]
    if not any(bool(delta.any()) for delta in deltas):
        return torch.zeros_like(updates.base)
    apart, n = heterogeneous(deltas, threshold), deltas[0].shape[1]
    identity = torch.eye(n, dtype=torch.float64, device=updates.base.device)
    sigmas, above, below = [], torch.zeros_like(deltas[0]), torch.zeros_like(identity)
    for delta in deltas:
        centred = delta - delta.mean(dim=0, keepdim=True)
        sigma = centred.mT @ centred
        scale = float(sigma.trace()) + 1e-12 if apart else 1.0
        sigmas.append(sigma / scale)
        regular = sigmas[-1] + ridge / scale * identity
        above += centred @ regular
        below += regular
    prior = torch.stack(sigmas).sum(dim=0).mean(dim=0, keepdim=True)  # [1, n]
    if apart:
        prior /= float(torch.stack([delta.square().sum() for delta in deltas]).mean()) + 1e-12
    merged = torch.linalg.solve(below + prior, above, left=False)
    if apart:
        mean = below / len(deltas)
        fused = merged + sum(delta @ (sigma - mean) for delta, sigma in zip(deltas, sigmas))
        top = decompose(fused, int(min(fused.shape) * top_fraction), spectral)
        count = top["U"].shape[1]
        if count:
            merged = merged + float(top["S"][:count].mean()) * (top["U"] @ top["V"].mT)
    return merged.to(updates.dtype)
