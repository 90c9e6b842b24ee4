"""DARE: drop entries of each task vector at random, rescale what is left, merge by a base method."""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch
from torch import Tensor

from mergeopt_core.merging.mergekit_api import PerExpert, TensorGroup, method
from mergeopt_core.merging.randomness import tensor_seed
from mergeopt_core.merging.trimming import disjoint_merge, trim
from mergeopt_core.merging.updates import Updates, merged, total

Rescale = Literal["paper", "realised", "l1", "none"]

_BLOCK = 1 << 20  # random numbers a draw; part of what a seed means


def keep_mask(seed: int, expert: object, tensor: str, shape: torch.Size, drop_rate: float) -> Tensor:
    """Which entries ``[*shape]`` of an expert's task vector stay: each with probability 1 − p, on its own.

    The numbers come from a CPU generator that is seeded by (seed, expert, tensor), so a mask does not depend on other
    tensors or experts, on their order, on threads or on the device.
    """
    mask = np.empty(shape.numel(), dtype=bool)
    if drop_rate <= 0 or drop_rate >= 1:
        mask[:] = drop_rate <= 0
    else:
        random = np.random.Generator(np.random.SFC64(tensor_seed(seed, "dare", expert, tensor)))
        limit = np.uint32(min(round(drop_rate * 2**32), 2**32 - 1))
        for start in range(0, mask.size, _BLOCK):
            draws = random.integers(0, 2**32, size=min(_BLOCK, mask.size - start), dtype=np.uint32)
            np.greater_equal(draws, limit, out=mask[start : start + draws.size])
    return torch.from_numpy(mask).view(shape)


def drop(delta: Tensor, keep: Tensor, drop_rate: float, rescale: Rescale = "paper") -> Tensor:
    """Δ ⊙ keep, rescaled; all ``[*shape]``.

    ``paper``: by 1/(1 − p). ``realised``: by n / number kept. ``l1``: so that the tensor's L1 norm is restored
    (mergekit; not where either norm is below 1e-7). ``none``: not at all.
    """
    dropped = delta * keep.to(delta.device)
    if rescale == "paper":
        return dropped / (1 - drop_rate) if drop_rate < 1 else dropped
    if rescale == "realised":
        kept = int(keep.sum())
        return dropped * (keep.numel() / kept) if kept else dropped
    if rescale == "l1":
        before, after = delta.abs().sum(), dropped.abs().sum()
        return dropped if before < 1e-7 or after < 1e-7 else dropped * (before / after)
    return dropped


@method("dare", pretty="DARE", url="https://arxiv.org/abs/2311.03099", random=True)
def dare(
    group: TensorGroup,
    weight: PerExpert[float] = 1.0,  # type: ignore[assignment]
    lambda_: float = 1.0,
    normalize: bool = False,
    drop_rate: PerExpert[float] = 0.9,  # type: ignore[assignment]
    rescale: Rescale = "paper",
    base_method: Literal["task_arithmetic", "average", "ties"] = "task_arithmetic",
    density: PerExpert[float] = 1.0,  # type: ignore[assignment]
    matrices_only: bool = False,
    seed: int = 0,
) -> Tensor:
    """Random drop with rescaling, then Task Arithmetic, the average or TIES.

    W = θ0 + λ · Σ_k w_k m_k ⊙ Δ_k / (1 − p_k), m_k[i] = 1 with probability 1 − p_k

    Under ``task_arithmetic`` the sum is divided by Σ_k w_k with ``normalize``, under ``average`` always. Under
    ``ties`` the dropped task vectors are trimmed to ``density`` (1: not at all), signs are elected by the weighted
    sum, and what agrees is summed, or averaged with ``normalize``. With ``matrices_only``, tensors of one dimension
    keep all entries. The masks depend on the recipe's seed, the expert and the tensor only.
    """
    updates = Updates(group)
    weights = updates.values(weight)
    dropped = []
    for delta, key, rate in zip(updates, updates.keys, updates.values(drop_rate)):
        rate = 0.0 if matrices_only and delta.dim() < 2 else rate
        dropped.append(drop(delta, keep_mask(seed, key, updates.name, delta.shape, rate), rate, rescale))
    if base_method == "ties":
        stack = torch.stack([trim(delta, share) for delta, share in zip(dropped, updates.values(density))])
        return merged(updates, disjoint_merge(stack, weights, normalize), lambda_)
    update = torch.zeros_like(updates.base)
    for delta, share in zip(dropped, weights):
        update.add_(delta, alpha=share)
    scale = lambda_ / total(weights) if normalize or base_method == "average" else lambda_
    return merged(updates, update, scale)
