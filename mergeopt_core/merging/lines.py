"""LiNeS: a merged update scaled linearly with depth, so that shallow layers stay nearer to the base."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Optional

import torch
from torch import Tensor

from mergeopt_core.merging.trimming import Models
from mergeopt_core.merging.updates import Updates
from mergeopt_core.merging.wrappers import BaseMerge, wrapper_method

_BLOCK = re.compile(r"\.(\d+)\.")


def block_of(name: str) -> int | None:
    """Index of the block that a tensor belongs to: the first number in its name; None outside of the blocks."""
    found = _BLOCK.search(name)
    return int(found[1]) if found else None


def _learn(models: Models, parameters: Mapping[str, Any], merge: BaseMerge) -> dict[str, float]:
    """The number of blocks, and α: as given, or ‖Σ_k Δ_k‖₁ / (K ‖Δ‖₁) over the whole model."""
    last, count, summed, merged = 0, 1, 0.0, 0.0
    for name, base, experts in models():
        last, count = max(last, block_of(name) or 0), len(experts)
        if parameters["alpha"] is None and base.is_floating_point():
            wide = base.double()
            deltas = torch.stack([expert.double() for expert in experts]).sub_(wide)
            summed += float(deltas.sum(dim=0).abs().sum())
            merged += float(merge.update(name, base, experts).abs().sum())
    alpha = parameters["alpha"] if parameters["alpha"] is not None else summed / merged / count if merged else 0.0
    return {"last": last, "alpha": alpha}


@wrapper_method("lines", pretty="LiNeS", url="https://arxiv.org/abs/2410.17146", learn=_learn)
def lines(updates: Updates, update: Tensor, learnt: Any, alpha: Optional[float] = None, beta: float = 0.5) -> Tensor:
    """Any merge method's update scaled linearly with depth.

    Δ = base_method(θ0, θ_1 … θ_K) − θ0, W = θ0 + λ · (α + β · l / (L − 1)) · Δ in block l of L (counted from 0)

    Tensors outside of the blocks (embeddings, final norm, head) take α. Without ``alpha``, α = ‖Σ_k Δ_k‖₁ / (K ‖Δ‖₁)
    over the whole model, as in the paper: 1/K where the base method is a sum; that takes one more merge. β is what
    the paper tunes in place of λ.
    """
    depth = (block_of(updates.name) or 0) / max(learnt["last"], 1)
    return update * (learnt["alpha"] + beta * depth)
