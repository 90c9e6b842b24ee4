"""RegMean: the linear layer whose outputs are nearest to every expert's on that expert's inputs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from mergeopt_core.merging.mergekit_api import PerExpert, TensorGroup, method
from mergeopt_core.merging.updates import Rest, Updates, merged, rest_update, statistics_of, total


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
    group: TensorGroup,
    weight: PerExpert[float] = 1.0,  # type: ignore[assignment]
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
    updates = Updates(group)
    weights = updates.values(weight)
    side = updates.shape[-1] if len(updates.shape) == 2 else 0
    grams = statistics_of(updates, statistics, torch.Size([side, side])) if side else None
    if grams is None:
        return merged(updates, rest_update(updates, weights, rest), lambda_)
    return merged(updates, regression_mean(list(updates), grams, weights, off_diagonal), lambda_)
