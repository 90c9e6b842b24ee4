"""DARE: drop entries of each task vector at random, rescale what is left, merge by a base method."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from mergeopt_core.merging.blocks import BLOCK, blocks, flat
from mergeopt_core.merging.mergekit_api import PerExpert, TensorGroup, fast_path, method
from mergeopt_core.merging.randomness import tensor_seed
from mergeopt_core.merging.trimming import agreeing_, trim
from mergeopt_core.merging.updates import Updates, merged, total

Rescale = Literal["paper", "realised", "l1", "none"]


def keep_mask(seed: int, expert: object, tensor: str, shape: torch.Size, drop_rate: float) -> Tensor:
    """True where an entry ``[*shape]`` of an expert's task vector stays; each stays with probability 1 − p.

    The numbers come from a generator that is seeded by (seed, expert, tensor), so a mask does not depend on other
    tensors or experts, on their order, on threads or on the device. An entry is dropped where 16 random bits are below
    ⌊2¹⁶ p⌋, and where they are equal to it with the probability that is still missing.
    """
    if drop_rate <= 0 or drop_rate >= 1:
        return torch.full(shape, drop_rate <= 0, dtype=torch.bool)
    source, count = np.random.SFC64(tensor_seed(seed, "dare", expert, tensor)), shape.numel()
    drawn = source.random_raw(-(-count // 4)).astype("<u8", copy=False).view("<u2")[:count]
    limit, missing = int(drop_rate * 2**16), drop_rate * 2**16 % 1
    keep = drawn >= limit
    if missing:
        close = np.flatnonzero(drawn == limit)
        keep[close] = np.random.Generator(source).random(close.size) >= missing
    return torch.from_numpy(keep).view(shape)


def dropped_pieces(updates: Updates, k: int, keep: Tensor) -> Iterator[tuple[slice, Tensor, Tensor]]:
    """Δ_k and Δ_k ⊙ keep of the flat tensor, a block at a time, in memory that the next block overwrites."""
    base, expert, keep = flat([updates.base, updates.experts[k], keep.to(updates.base.device)])
    size = min(BLOCK, base.numel()) if base.device.type == "cpu" else base.numel()
    delta, left = base.new_empty(size), base.new_empty(size)
    for block in blocks(base):
        width = block.stop - block.start
        torch.sub(expert[block], base[block], out=delta[:width])
        yield block, delta[:width], torch.mul(left[:width].copy_(keep[block]), delta[:width], out=left[:width])


def rescaling(updates: Updates, k: int, keep: Tensor, drop_rate: float, rescale: Rescale) -> float:
    """The factor that the k-th task vector is multiplied by after dropping.

    ``paper``: 1/(1 − p). ``realised``: n / number kept. ``l1``: what restores the tensor's L1 norm (mergekit; 1 where
    either norm is below 1e-7). ``none``: 1. Where nothing is kept, 1.
    """
    if rescale == "paper":
        return 1 / (1 - drop_rate) if drop_rate < 1 else 1.0
    if rescale == "realised":
        return keep.numel() / max(int(keep.count_nonzero()), 1)
    if rescale == "l1":
        before = after = 0.0
        for _, delta, left in dropped_pieces(updates, k, keep):
            before, after = before + float(delta.abs().sum()), after + float(left.abs().sum())
        return before / after if min(before, after) >= 1e-7 else 1.0
    return 1.0


def drop(delta: Tensor, keep: Tensor, drop_rate: float) -> Tensor:
    """Δ ⊙ keep / (1 − p) ``[*shape]``."""
    return delta * keep.to(delta) * (1 / (1 - drop_rate) if drop_rate < 1 else 1.0)


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
    masks = (keep_mask(seed, key, updates.name, updates.shape, rate) for key, rate in zip(updates.keys, rates))
    if base_method == "ties":
        return _by_ties(updates, masks, rates, rescale, updates.values(density), weights, normalize, lambda_)
    update = torch.zeros_like(updates.base).flatten()
    for k, (keep, rate, share) in enumerate(zip(masks, rates, weights)):
        factor = rescaling(updates, k, keep, rate, rescale)
        for block, _, left in dropped_pieces(updates, k, keep):
            update[block].add_(left, alpha=share * factor)
    scale = lambda_ / total(weights) if normalize or base_method == "average" else lambda_
    return merged(updates, update.view(updates.shape), scale)


def _by_ties(
    updates: Updates,
    masks: Iterator[Tensor],
    rates: Sequence[float],
    rescale: Rescale,
    density: Sequence[float],
    weights: Sequence[float],
    normalize: bool,
    scale: float,
) -> Tensor:
    rows = updates.base.new_empty(len(updates), updates.base.numel())
    for k, (keep, rate, share) in enumerate(zip(masks, rates, density)):
        factor = rescaling(updates, k, keep, rate, rescale)
        for block, _, left in dropped_pieces(updates, k, keep):
            torch.mul(left, factor, out=rows[k, block])
        if share < 1:
            rows[k] = trim(rows[k], share)
    update = torch.empty_like(rows[0])
    for block in blocks(update):
        summed, divisor = agreeing_(rows[:, block], weights)
        update[block] = summed.div_(divisor) if normalize else summed
    return merged(updates, update.view(updates.shape), scale)


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
