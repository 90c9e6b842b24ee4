"""Fisher merging: a mean of the experts in which each weight counts by how much its expert's data depend on it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from mergeopt_core.merging.mergekit_api import PerExpert, TensorGroup, method
from mergeopt_core.merging.updates import Rest, Updates, merged, rest_update, statistics_of


@method("fisher", pretty="Fisher merging", url="https://arxiv.org/abs/2111.09832", statistics="fisher")
def fisher(
    group: TensorGroup,
    weight: PerExpert[float] = 1.0,  # type: ignore[assignment]
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
    updates = Updates(group)
    weights = updates.values(weight)
    diagonals = statistics_of(updates, statistics, updates.shape)
    if diagonals is None:
        return merged(updates, rest_update(updates, weights, rest), lambda_)
    above, below = torch.zeros_like(updates.base), torch.zeros_like(updates.base)
    for delta, diagonal, share in zip(updates, diagonals, weights):
        information = diagonal / diagonal.norm().clamp(min=1e-30) if normalize else diagonal
        information = information.clamp(min=floor) * share
        above += information * delta
        below += information
    return merged(updates, above / torch.where(below == 0, 1.0, below), lambda_)
