"""Localize-and-Stitch without data: the largest entries of every whole task vector, averaged where they meet."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from mergeopt_core.merging.mergekit_api import PerExpert, method
from mergeopt_core.merging.ties import kept_globally
from mergeopt_core.merging.trimming import Models, global_thresholds
from mergeopt_core.merging.updates import Updates


def _prepare(models: Models, parameters: Mapping[str, Any], keys: Sequence[str], seed: int, cache: Any) -> Any:
    density = parameters["density"]
    labels = {key: f"exact {density[key]!r}" for key in keys}
    return global_thresholds(models, keys, lambda n, key: kept_globally(n, density[key], "exact"), labels, cache=cache)


@method("localize_stitch", pretty="Localize-and-Stitch", url="https://arxiv.org/abs/2408.13656", prepare=_prepare)
def localize_stitch(
    updates: Updates, lambda_: float = 1.0, density: PerExpert[float] = 0.05, prepared: Any = None
) -> Tensor:
    """The largest entries of every task vector put back into the base, averaged where several experts have one.

    m_k = [|Δ_k| ≥ t_k], W = θ0 + λ · Σ_k m_k ⊙ Δ_k / max(1, Σ_k m_k)

    t_k is the magnitude of the last of the ``density`` · n largest entries over all tensors together, found by two
    passes over the checkpoints. This is the variant without data; with data the paper learns the masks.
    """
    if prepared is None:
        raise ValueError(f"{updates.name}: localize_stitch needs a pass over all tensors (see prepare)")
    summed, count = torch.zeros_like(updates.base), torch.zeros_like(updates.base)
    for delta, threshold in zip(updates, updates.values(prepared)):
        mask = (delta.abs() >= threshold) & (delta != 0)
        summed += delta * mask
        count += mask
    return updates.merged(summed.div_(count.clamp_(min=1)), lambda_)
