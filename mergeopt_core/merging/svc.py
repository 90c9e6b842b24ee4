"""SVC: singular values of a merged update divided by how often the experts count what lies along them."""

from __future__ import annotations

from typing import Optional

import torch
from torch import Tensor

from mergeopt_core.merging.matrices import is_selected
from mergeopt_core.merging.updates import Updates
from mergeopt_core.merging.wrappers import wrapper_method
from mergeopt_core.spectral.decompositions import Path
from mergeopt_core.spectral.spectrum import Spectrum, spectrum


def calibration(found: Spectrum, updates: Updates, alpha: float) -> Tensor:
    """η ``[r]``: the mean over experts of s_jk = ⟨u_jᵀΔ, u_jᵀΔ_k⟩ / ‖u_jᵀΔ_k‖², at least α; 1 unless all are above 0.

    s_jk says how many times the merged update Δ = U Σ Vᵀ holds what expert k has along its direction j.
    """
    responses = []
    left, right = found.left.mT.to(updates.dtype), found.right.mT.to(updates.dtype)  # [r, m], [r, n]
    for delta in updates:
        part = left @ delta  # u_jᵀ Δ_k, [r, n]
        inner = torch.linalg.vecdot(right, part)  # ⟨v_j, u_jᵀ Δ_k⟩, with u_jᵀ Δ = σ_j v_jᵀ
        responses.append(found.sigma * inner / part.square().sum(dim=1).clamp(min=1e-12))
    s = torch.stack(responses)  # [K, r]
    return torch.where((s > 0).all(dim=0), s.mean(dim=0).clamp(min=alpha), 1.0)


@wrapper_method("svc", pretty="Singular Value Calibration", url="https://arxiv.org/abs/2602.05536")
def svc(
    updates: Updates,
    update: Tensor,
    alpha: Optional[float] = None,
    tensors: str = "linear",
    spectral: Path = "gram",
) -> Tensor:
    """Any merge method's update with the singular values that several experts share brought down.

    Δ = base_method(θ0, θ_1 … θ_K) − θ0 = U Σ Vᵀ, s_jk = ⟨u_jᵀΔ, u_jᵀΔ_k⟩ / ‖u_jᵀΔ_k‖²,
    η_j = max(mean_k s_jk, α) where all s_jk > 0, else 1, W = θ0 + λ · U diag(σ_j / η_j) Vᵀ

    Without ``alpha``, α = 1/K. The singular vectors stay. ``tensors`` says which tensors are treated so (``linear``:
    2-D without embeddings and head); the others take Δ as it is.
    """
    if not is_selected(updates.name, updates.shape, tensors) or not bool(update.any()):
        return update
    found = spectrum(update, spectral, 0.0, updates.dtype)
    return found.replaced(found.sigma / calibration(found, updates, 1 / len(updates) if alpha is None else alpha))
