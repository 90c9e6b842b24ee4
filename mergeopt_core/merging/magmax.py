"""MagMax: of every entry, the expert that changed it most."""

from __future__ import annotations

import torch
from torch import Tensor

from mergeopt_core.merging.mergekit_api import method
from mergeopt_core.merging.updates import Updates


@method("magmax", pretty="MagMax", url="https://arxiv.org/abs/2407.06322", propagates=True)
def magmax(updates: Updates, lambda_: float = 1.0) -> Tensor:
    """The largest change of every entry, with its sign.

    W[i] = θ0[i] + λ · Δ_k[i] with k = argmax_k |Δ_k[i]|

    Where two of one magnitude differ in sign, that of the expert whose id comes last is taken.
    """
    largest = torch.zeros_like(updates.base)
    for delta in updates:
        largest = torch.where(delta.abs() < largest.abs(), largest, delta)
    return updates.merged(largest, lambda_)
