"""DOGE: one correction of all task vectors, found by projected gradient descent, before a normalised sum."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from mergeopt_core.merging.matrices import Rest, is_selected, rest_update
from mergeopt_core.merging.mergekit_api import PerExpert, method
from mergeopt_core.merging.ties import kept_globally
from mergeopt_core.merging.trimming import Models, global_thresholds
from mergeopt_core.merging.updates import Updates
from mergeopt_core.merging.wudi import adam
from mergeopt_core.spectral.decompositions import triplets


def shared_subspace(deltas: Sequence[Tensor], share: float) -> Tensor:
    """The ⌊share · r⌋ leading left singular vectors ``[m, p]`` of [U_1 … U_K], ⌊r/K⌋ leading ones of each Δ_k."""
    rank = min(deltas[0].shape)
    each = rank // len(deltas)
    columns = torch.cat([triplets(delta, each)[0] for delta in deltas], dim=1)  # [m, K·each]
    count = min(int(rank * share), columns.shape[1])
    return triplets(columns, count, "svd64")[0].to(deltas[0]) if count else deltas[0][:, :0]


def correction(
    deltas: Sequence[Tensor], scales: Sequence[float], subspace: float, iterations: int, lr: float
) -> Tensor:
    """δ ``[m, n]`` after Adam on L(δ) = Σ_k Σ_rows ⟨Δ_k, Δ_k − Σ_j λ_j (Δ_j + δ)⟩², from 0, outside of the subspace.

    The gradient's part in the shared subspace is left out: ∇ ← ∇ − U Uᵀ ∇.
    """
    stacked, total = torch.stack(list(deltas), dim=1), sum(scales)  # [m, K, n]
    summed = sum(delta * scale for delta, scale in zip(deltas, scales))
    rows = torch.linalg.vecdot(stacked - summed.unsqueeze(1), stacked)  # [m, K]
    basis = shared_subspace(deltas, subspace)

    def slope(update: Tensor) -> Tensor:
        inner = rows - total * (stacked @ update.unsqueeze(2)).squeeze(2)
        grad = (inner.unsqueeze(1) @ stacked).squeeze(1).mul_(-2 * total)
        return grad - basis @ (basis.mT @ grad)

    return adam(torch.zeros_like(summed), slope, iterations, lr, (0.9, 0.999), 1e-8)


def _prepare(models: Models, parameters: Mapping[str, Any], keys: Sequence[str], seed: int, cache: Any) -> Any:
    density, tensors = parameters["density"], parameters["tensors"]

    def treated() -> Any:
        return (group for group in models() if is_selected(group[0], group[1].shape, tensors))

    labels = dict.fromkeys(keys, f"doge {tensors} {density!r}")
    return global_thresholds(treated, keys, lambda n, key: kept_globally(n, density, "official"), labels, cache=cache)


@method("doge", pretty="DOGE", url="https://arxiv.org/abs/2501.01230", prepare=_prepare)
def doge(
    updates: Updates,
    weight: PerExpert[float] = 1.0,
    lambda_: float = 0.07,
    density: float = 0.3,
    subspace: float = 0.1667,
    iterations: int = 400,
    lr: float = 1e-4,
    tensors: str = "linear",
    rest: Rest = "mean",
    rest_scale: float = 1.0,
    prepared: Any = None,
) -> Tensor:
    """Adaptive projective gradient descent: task vectors corrected by what most disturbs them, trimmed, and summed.

    λ_k = λ / ‖Δ_k‖, L(δ) = Σ_k Σ_rows ⟨Δ_k, Δ_k − Σ_j λ_j (Δ_j + δ)⟩², W = θ0 + Σ_k λ_k m_k ⊙ (Δ_k + δ)

    δ after ``iterations`` Adam steps from 0, its gradient without the part in the shared subspace: the ``subspace`` · r
    leading directions of the experts' ⌊r/K⌋ leading left singular vectors. m_k keeps the ``density`` largest |Δ_k| over
    all treated tensors together. λ enters the loss too, and gives every task vector of a tensor the norm λ, whatever
    its own. ``weight`` counts only in tensors that are not treated, which take ``rest``.
    """
    if not is_selected(updates.name, updates.shape, tensors):
        return updates.merged(rest_update(updates, weight, rest, rest_scale))
    if prepared is None:
        raise ValueError(f"{updates.name}: doge needs a pass over all tensors (see prepare)")
    deltas = list(updates)
    norms = [float(torch.linalg.matrix_norm(delta)) for delta in deltas]
    scales = [lambda_ / norm if norm else 0.0 for norm in norms]
    delta_star = correction(deltas, scales, subspace, iterations, lr)
    update = torch.zeros_like(updates.base)
    for delta, scale, threshold in zip(deltas, scales, updates.values(prepared)):
        update += (delta + delta_star) * (delta.abs() >= threshold) * scale
    return updates.merged(update)
