"""Consensus merging: a merged update without the entries that matter to too few of the experts (TALL masks)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from mergeopt_core.merging.updates import Updates
from mergeopt_core.merging.wrappers import wrapper_method


def _check(parameters: Mapping[str, Any], experts: int) -> None:
    if parameters["agreeing"] > experts:
        raise ValueError(f"consensus: agreeing is {parameters['agreeing']}, with {experts} experts nothing would stay")


@wrapper_method("consensus", pretty="Consensus Merging", url="https://arxiv.org/abs/2405.07813", check=_check)
def consensus(updates: Updates, update: Tensor, mask_scale: float = 0.4, agreeing: int = 2) -> Tensor:
    """Any merge method's update without the entries that fewer than ``agreeing`` experts' TALL masks hold.

    Δ = base_method(θ0, θ_1 … θ_K) − θ0, m_k = [|Δ_k| > s · |Δ − Δ_k|] with s = ``mask_scale``,
    W = θ0 + λ · [Σ_k m_k ≥ ``agreeing``] ⊙ Δ

    An entry that no mask holds is catastrophic, one that a single mask holds selfish: ``agreeing`` 2 removes both, 1
    the former, 0 none. The masks are taken before λ.
    """
    held = torch.zeros_like(update, dtype=torch.int32)
    for delta in updates:
        wide = delta.to(update)
        held += wide.abs() > (update - wide).abs().mul_(mask_scale)
    return update * (held >= agreeing)
