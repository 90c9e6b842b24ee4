"""DARE: drop entries of each task vector at random, rescale what is left, merge by a base method."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from mergeopt_core.merging.mergekit_api import PerExpert, TensorGroup, fast_path, method
from mergeopt_core.merging.randomness import tensor_seed
from mergeopt_core.merging.trimming import agreeing_, trim
from mergeopt_core.merging.updates import Updates, merged, total

Rescale = Literal["paper", "realised", "l1", "none"]


def keep_mask(seed: int, expert: object, tensor: str, shape: torch.Size, drop_rate: float) -> Tensor:
    """1 where an entry ``[*shape]`` of an expert's task vector stays, 0 elsewhere; each stays with probability 1 − p.

    The numbers come from a CPU generator that is seeded by (seed, expert, tensor), so a mask does not depend on other
    tensors or experts, on their order, on threads or on the device.
    """
    if drop_rate <= 0 or drop_rate >= 1:
        return torch.full(shape, float(drop_rate <= 0))
    random = np.random.Generator(np.random.SFC64(tensor_seed(seed, "dare", expert, tensor)))
    uniform = torch.from_numpy(random.random(shape.numel(), dtype=np.float32))  # multiples of 2⁻²⁴ in [0, 1)
    return uniform.sub_(drop_rate).add_(2.0**-25).ceil_().clamp_(0, 1).view(shape)


def rescaling(delta: Tensor, dropped: Tensor, keep: Tensor, drop_rate: float, rescale: Rescale) -> float:
    """The factor that a dropped task vector ``[*shape]`` is multiplied by.

    ``paper``: 1/(1 − p). ``realised``: n / number kept. ``l1``: what restores the tensor's L1 norm (mergekit; 1 where
    either norm is below 1e-7). ``none``: 1. Where nothing is kept, 1.
    """
    if rescale == "paper":
        return 1 / (1 - drop_rate) if drop_rate < 1 else 1.0
    if rescale == "realised":
        kept = float(keep.sum(dtype=torch.float64))
        return keep.numel() / kept if kept else 1.0
    if rescale == "l1":
        before, after = (float(x.abs().sum()) for x in (delta, dropped))
        return before / after if min(before, after) >= 1e-7 else 1.0
    return 1.0


def drop(delta: Tensor, keep: Tensor, drop_rate: float, rescale: Rescale = "paper") -> Tensor:
    """Δ ⊙ keep, rescaled; all ``[*shape]``."""
    keep = keep.to(delta)
    dropped = delta * keep
    return dropped.mul_(rescaling(delta, dropped, keep, drop_rate, rescale))


@method("dare", pretty="DARE", url="https://arxiv.org/abs/2311.03099", random=True, propagates=True)
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
    weights, rates = updates.values(weight), updates.values(drop_rate)
    if matrices_only and updates.base.dim() < 2:
        rates = [0.0] * len(updates)
    dropped = (
        drop(delta, keep_mask(seed, key, updates.name, delta.shape, rate), rate, rescale)
        for delta, key, rate in zip(updates, updates.keys, rates)
    )
    if base_method == "ties":
        stack = torch.stack([trim(delta, share) for delta, share in zip(dropped, updates.values(density))])
        summed, divisor = agreeing_(stack, weights)
        return merged(updates, summed.div_(divisor) if normalize else summed, lambda_)
    update = torch.zeros_like(updates.base)
    for delta, share in zip(dropped, weights):
        update.add_(delta, alpha=share)
    scale = lambda_ / total(weights) if normalize or base_method == "average" else lambda_
    return merged(updates, update, scale)


@fast_path("dare_linear", propagates=True)
def dare_linear(
    group: TensorGroup,
    weight: PerExpert[float],
    int8_mask: bool = False,
    normalize: bool = False,
    rescale: bool = True,
    lambda_: float = 1.0,
    density: PerExpert[float] = 1.0,  # type: ignore[assignment]
    seed: int = 0,
) -> Tensor:
    """mergekit's ``dare_linear`` with masks that belong to expert and tensor, as those of ``dare``."""
    return _as_in_mergekit(group, "task_arithmetic", weight, normalize, rescale, lambda_, density, seed)


@fast_path("dare_ties", propagates=True)
def dare_ties(
    group: TensorGroup,
    weight: PerExpert[float],
    int8_mask: bool = False,
    normalize: bool = False,
    rescale: bool = True,
    lambda_: float = 1.0,
    density: PerExpert[float] = 1.0,  # type: ignore[assignment]
    seed: int = 0,
) -> Tensor:
    """mergekit's ``dare_ties`` with masks that belong to expert and tensor, as those of ``dare``."""
    return _as_in_mergekit(group, "ties", weight, normalize, rescale, lambda_, density, seed)


def _as_in_mergekit(
    group: TensorGroup,
    base_method: str,
    weight: Mapping[Any, float],
    normalize: bool,
    rescale: bool,
    scale: float,
    density: Mapping[Any, float],
    seed: int,
) -> Tensor:
    return dare(
        group,
        weight=weight,
        lambda_=scale,
        normalize=normalize,
        drop_rate={key: 1 - share for key, share in density.items()},
        rescale="l1" if rescale else "none",
        base_method=base_method,
        density=dict.fromkeys(density, 1.0),
        seed=seed,
    )
