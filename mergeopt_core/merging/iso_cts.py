"""Iso-CTS: a common subspace from the sum, task-specific directions outside it, one singular value for all."""

from __future__ import annotations

from collections.abc import Sequence
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
from mergeopt_core.spectral.decompositions import Path
from mergeopt_core.spectral.spectrum import decompose, polar


def split_ranks(rank: int, experts: int, fraction: float) -> tuple[int, int]:
    """Common directions and directions an expert: the latter fill r − ⌊fraction·r⌋, rounded to a multiple of K."""
    each = round((rank - int(rank * fraction)) / experts)
    return rank - each * experts, each


def common_and_task_specific(
    deltas: Sequence[Tensor], fraction: float = 0.8, path: Path = "gram"
) -> tuple[Tensor, Tensor]:
    """σ̄ U Vᵀ ``[m, n]`` of the common and task-specific directions of ``[m, n]`` updates, both made orthonormal.

    Also returns the singular values ``[r]`` of the sum.
    """
    summed = torch.stack(list(deltas)).sum(dim=0)
    common, each = split_ranks(min(summed.shape), len(deltas), fraction)
    while common < 0:
        common, each = common + len(deltas), each - 1
    wide = summed.dtype if path == "svd" else torch.float64
    parts = [decompose(summed.to(wide), common, path)]
    shared = parts[0]["U"]
    for delta in deltas:
        outside = delta.to(wide) - shared @ (shared.mT @ delta.to(wide))
        parts.append(decompose(outside, each, path))
    sigma = torch.cat([part["S"][: part["U"].shape[1]] for part in parts])
    u, v = (torch.cat([part[side] for part in parts], dim=1) for side in "UV")
    return float(sigma.mean()) * polar(u, path) @ polar(v, path).mT, parts[0]["S"]


@method("iso_cts", pretty="Iso-CTS", url="https://arxiv.org/abs/2502.04959")
def iso_cts(
    group: TensorGroup,
    weight: PerExpert[float] = 1.0,  # type: ignore[assignment]
    lambda_: float = 1.0,
    normalize: bool = False,
    norm_matched: NormMatch = "none",
    common_fraction: float = 0.8,
    tensors: str = "linear",
    rest: Rest = "mean",
    rest_scale: float = 1.0,
    spectral: Path = "gram",
    report: Any = None,
) -> Tensor:
    """Isotropic merging in common and task-specific subspaces.

    [U_c | U_1 … U_K] and [V_c | V_1 … V_K] made orthonormal (polar factors), W = θ0 + λ · σ̄ U Vᵀ

    U_c, V_c are the leading c directions of Σ_k w_k Δ_k; U_k, V_k the leading s of (I − U_c U_cᵀ) w_k Δ_k; c + K·s =
    min(m, n), c about ``common_fraction`` of it; σ̄ is the mean of all kept singular values. The other parameters are
    those of ``iso_c``.
    """
    updates = Updates(group)
    weights = updates.values(weight)
    if not is_selected(updates.name, updates.shape, tensors):
        return merged(updates, rest_update(updates, weights, rest, rest_scale), lambda_)
    deltas = [delta * share for delta, share in zip(updates, weights)]
    update, sigma = common_and_task_specific(deltas, common_fraction, spectral)
    note_rank(report, updates.name, sigma, 0.0)
    update = update / (total(weights) if normalize else 1.0)
    return merged(updates, match_norm(update, updates, weights, norm_matched), lambda_)
