"""Fisher merging and RegMean: means of the experts in which what their data say about each weight counts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from mergeopt_core.merging.matrices import Rest, rest_update
from mergeopt_core.merging.mergekit_api import PerExpert, method
from mergeopt_core.merging.updates import Updates, total


def statistics_of(updates: Updates, statistics: Any, shape: Sequence[int]) -> list[Tensor] | None:
    """The experts' statistics of this tensor in the updates' order and dtype; None where it has none for any expert.

    ValueError naming tensor and expert where only some experts have one, a shape is wrong or a value not finite.
    """
    if statistics is None or all(statistics[key] is None for key in updates.keys):
        return None
    found = []
    for key, value in zip(updates.keys, updates.values(statistics)):
        if value is None:
            raise ValueError(f"{updates.name}: expert {key} has no statistics, others have")
        of = f"{updates.name}: the statistics of expert {key}"
        if list(value.shape) != list(shape):
            raise ValueError(f"{of} have shape {list(value.shape)}, not {list(shape)}")
        if not torch.isfinite(value.sum()):
            raise ValueError(f"{of} are not finite")
        found.append(value.to(device=updates.base.device, dtype=updates.dtype))
    return found


@method("fisher", pretty="Fisher merging", url="https://arxiv.org/abs/2111.09832", statistics="fisher")
def fisher(
    updates: Updates,
    weight: PerExpert[float] = 1.0,
    lambda_: float = 1.0,
    floor: float = 1e-6,
    normalize: bool = False,
    rest: Rest = "mean",
    statistics: Any = None,
) -> Tensor:
    """Mean of the experts weighted entrywise by the diagonal of their Fisher information.

    W = θ0 + λ · Σ_k w_k F_k ⊙ Δ_k / Σ_k w_k F_k, F_k[i] = E[(∂ log p / ∂θ_i)²] on expert k's data, at least ``floor``

    At λ = 1 this is Σ w_k F_k θ_k / Σ w_k F_k. ``normalize`` first divides each tensor's F_k by its norm, so that an
    expert with large gradients does not win everywhere. Tensors without statistics take ``rest``.
    """
    diagonals = statistics_of(updates, statistics, updates.shape)
    if diagonals is None:
        return updates.merged(rest_update(updates, weight, rest), lambda_)
    above, below = torch.zeros_like(updates.base), torch.zeros_like(updates.base)
    for delta, diagonal, share in zip(updates, diagonals, weight):
        information = diagonal / diagonal.norm().clamp(min=1e-30) if normalize else diagonal
        information = information.clamp(min=floor) * share
        above += information * delta
        below += information
    return updates.merged(above / torch.where(below == 0, 1.0, below), lambda_)


def regression_mean(
    deltas: Sequence[Tensor], grams: Sequence[Tensor], weights: Sequence[float], off_diagonal: float
) -> Tensor:
    """argmin_Δ Σ_k w_k ‖(Δ − Δ_k) X_kᵀ‖² ``[out, in]``, given G_k = X_kᵀX_k ``[in, in]`` with its off-diagonal scaled.

    Solved in float64 around the weighted mean: where Σ_k w_k G_k is singular, its null space keeps the mean.
    """
    mean = sum(w * d.double() for w, d in zip(weights, deltas)) / total(weights)
    left, right = torch.zeros_like(grams[0], dtype=torch.float64), torch.zeros_like(deltas[0], dtype=torch.float64)
    for delta, gram, share in zip(deltas, grams, weights):
        scaled = gram.double() * off_diagonal
        scaled.diagonal().copy_(gram.diagonal())
        left += share * scaled
        right += share * ((delta.double() - mean) @ scaled)
    factor, info = torch.linalg.cholesky_ex(left)
    if int(info) == 0 and float(factor.diagonal().min()) > 1e-6 * float(factor.diagonal().max()):
        return mean + torch.cholesky_solve(right.mT, factor).mT
    return mean + right @ torch.linalg.pinv(left, hermitian=True, rtol=1e-12)


@method("regmean", pretty="RegMean", url="https://arxiv.org/abs/2212.09849", statistics="gram")
def regmean(
    updates: Updates,
    weight: PerExpert[float] = 1.0,
    lambda_: float = 1.0,
    off_diagonal: float = 0.9,
    rest: Rest = "mean",
    statistics: Any = None,
) -> Tensor:
    """Linear regression to all experts' outputs at once, from the Gram matrices of their inputs.

    W = (Σ_k w_k W_k G_k) (Σ_k w_k G_k)⁻¹, G_k = X_kᵀX_k ``[in, in]`` with off-diagonal entries times ``off_diagonal``;
    the update W − θ0 is then scaled by λ

    Only 2-D weights ``[out, in]`` with statistics are solved for; all other tensors take ``rest``.
    """
    side = updates.shape[-1] if len(updates.shape) == 2 else 0
    grams = statistics_of(updates, statistics, [side, side]) if side else None
    if grams is None:
        return updates.merged(rest_update(updates, weight, rest), lambda_)
    return updates.merged(regression_mean(list(updates), grams, weight, off_diagonal), lambda_)
