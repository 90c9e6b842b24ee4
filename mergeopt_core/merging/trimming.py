"""Trim by selection, elect signs, merge what agrees: the three steps of TIES as pure functions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

Bounds = tuple[float, int]
"""Threshold and last flat index of a trim: an entry stays if its magnitude is above the threshold, or equal to it at an
index up to the last. Among equal magnitudes those of lowest flat index stay, on every machine."""


def kept_count(numel: int, density: float) -> int:
    """How many entries of a tensor stay: max(1, ⌊density · n⌋), none for density 0, all for density 1."""
    if density >= 1 or numel == 0:
        return numel
    return 0 if density <= 0 else max(1, int(density * numel))


def kth_largest(magnitudes: Tensor, k: int) -> float:
    """The k-th largest of ``[n]`` values (1 ≤ k ≤ n), by selection in O(n); the values may be reordered in place."""
    position = magnitudes.numel() - k
    if magnitudes.device.type != "cpu":
        return float(torch.kthvalue(magnitudes, position + 1).values)
    array = magnitudes.numpy()
    array.partition(position)
    return float(array[position])


def bounds_from(make: Callable[[], Tensor], k: int) -> Bounds:
    """The bounds that keep the k largest of n magnitudes; ``make()`` gives them ``[n]`` in memory that may be
    reused."""
    magnitudes = make()
    n = magnitudes.numel()
    if k <= 0 or k >= n:
        return (0.0, n) if k > 0 else (float("inf"), -1)
    threshold = kth_largest(magnitudes, k)
    above, tied = _count(magnitudes, np.greater, threshold), _count(magnitudes, np.equal, threshold)
    if above + tied <= k:  # less only where a magnitude is NaN
        return threshold, n
    places = np.flatnonzero(make().cpu().numpy() == threshold)
    return threshold, int(places[k - above - 1])


def _count(values: Tensor, compare: Callable[..., Any], threshold: float) -> int:
    return int(np.count_nonzero(compare(values.cpu().numpy(), threshold)))


def trim_bounds(delta: Tensor, k: int) -> Bounds:
    """The bounds that keep the k largest magnitudes of ``[*shape]``."""
    return bounds_from(lambda: delta.abs().flatten(), k)


def trim_(piece: Tensor, bounds: Bounds, start: int = 0) -> Tensor:
    """Zero what does not stay of a flat piece ``[b]`` of Δ that begins at flat index ``start``, in place."""
    threshold, last = bounds
    if last < 0:
        return piece.mul_(0)
    if threshold > 0:
        kind = np.float64 if piece.dtype == torch.float64 else np.float32
        torch.ops.aten.hardshrink.out(piece, float(np.nextafter(kind(threshold), kind(0))), out=piece)
        if last < start + piece.numel() - 1:
            tail = piece[max(0, last + 1 - start) :]
            tail.masked_fill_(tail.abs() == threshold, 0)
    return piece


def trim(delta: Tensor, density: float) -> Tensor:
    """Δ ``[*shape]`` with all but its ``kept_count`` entries of largest magnitude set to zero."""
    k = kept_count(delta.numel(), density)
    if k == delta.numel():
        return delta
    flat = delta.flatten().clone()
    return trim_(flat, trim_bounds(delta, k)).view_as(delta)


def agreeing_(rows: Tensor, weights: Sequence[float], zero_sign: int = 1) -> tuple[Tensor, Tensor]:
    """Σ w_k Δ_k and Σ w_k over the experts that agree, entrywise; ``[K, *shape]``, overwritten → two ``[*shape]``.

    An expert agrees on an entry if its sign there is that of Σ_k w_k Δ_k, or ``zero_sign`` where that is exactly 0; an
    entry that is 0 never agrees. Where the agreeing weights add up to 0, the second result is 1. With γ = ±1 the
    elected sign, an expert agrees where w_k Δ_k · γ > 0: no branch and no mask is needed.
    """
    for row, weight in zip(rows, weights):
        if weight != 1:
            row.mul_(weight)
    sign = rows.sum(dim=0)
    sign = sign.ge_(0).mul_(2).sub_(1) if zero_sign > 0 else sign.gt_(0).mul_(2).sub_(1)
    divisor = torch.zeros_like(sign)
    rows.mul_(sign).clamp_(min=0)
    summed = rows.sum(dim=0).mul_(sign)
    for row, weight in zip(rows, weights):
        divisor.add_(row.sign_(), alpha=weight)
    least = min(weights)
    return summed, divisor.clamp_(min=least) if least > 0 else divisor.masked_fill_(divisor == 0, 1)


def disjoint_merge(deltas: Tensor, weights: Sequence[float], normalize: bool, zero_sign: int = 1) -> Tensor:
    """The sum of what agrees on the elected sign, or with ``normalize`` its weighted mean; see ``agreeing_``."""
    summed, divisor = agreeing_(deltas.clone(), weights, zero_sign)
    return summed.div_(divisor) if normalize else summed


def bits(values: Tensor) -> np.ndarray:
    """Magnitudes of a float32 tensor as ``[n]`` integers that sort as they do."""
    return values.detach().abs().flatten().contiguous().cpu().numpy().view(np.uint32)
