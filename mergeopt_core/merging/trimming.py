"""Trim by selection, elect signs, merge what agrees: the three steps of TIES as pure functions."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor


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


def trim_bounds(delta: Tensor, k: int) -> tuple[float, int]:
    """Threshold and flat index that fix which k entries of ``[*shape]`` stay.

    An entry stays if its magnitude is above the threshold, or equal to it at an index up to the second number: among
    equal magnitudes those of lowest flat index stay, on every machine.
    """
    n = delta.numel()
    if k <= 0:
        return float("inf"), -1
    if k >= n:
        return 0.0, n
    threshold = kth_largest(delta.abs().flatten(), k)
    magnitudes = delta.abs().flatten()
    if int((magnitudes >= threshold).sum()) == k:
        return threshold, n
    above = int((magnitudes > threshold).sum())
    tied = torch.nonzero(magnitudes == threshold).flatten()
    return threshold, int(tied[k - above - 1])


def keep(delta: Tensor, bounds: tuple[float, int], start: int = 0) -> Tensor:
    """Mask ``[n]`` of the entries of a flat piece of Δ (its first entry at flat index ``start``) that stay."""
    threshold, last = bounds
    magnitudes = delta.abs()
    if last >= start + delta.numel():
        return magnitudes >= threshold
    mask = magnitudes > threshold
    upto = max(0, last + 1 - start)
    mask[:upto] |= magnitudes[:upto] == threshold
    return mask


def trim(delta: Tensor, density: float) -> Tensor:
    """Δ ``[*shape]`` with all but its ``kept_count`` entries of largest magnitude set to zero."""
    flat = delta.flatten()
    k = kept_count(flat.numel(), density)
    if k == flat.numel():
        return delta
    return (flat * keep(flat, trim_bounds(flat, k))).view_as(delta)


def disjoint_parts(deltas: Tensor, weights: Sequence[float], zero_sign: int = 1) -> tuple[Tensor, Tensor]:
    """Σ w_k Δ_k and Σ w_k over the experts that agree, entrywise; ``[K, *shape]`` → two ``[*shape]``.

    An expert agrees on an entry if its sign there is that of Σ_k w_k Δ_k, or ``zero_sign`` where that is exactly 0; an
    entry that is 0 never agrees. Where the agreeing weights add up to 0, the second result is 1.
    """
    w = torch.tensor(list(weights), dtype=deltas.dtype, device=deltas.device).view(-1, *[1] * (deltas.dim() - 1))
    weighted = deltas * w
    elected = weighted.sum(dim=0)
    positive = elected >= 0 if zero_sign > 0 else elected > 0
    agree = torch.where(positive, weighted > 0, weighted < 0)
    divisor = (w * agree).sum(dim=0)
    divisor[divisor == 0] = 1
    return (weighted * agree).sum(dim=0), divisor


def disjoint_merge(deltas: Tensor, weights: Sequence[float], normalize: bool, zero_sign: int = 1) -> Tensor:
    """The sum of what agrees on the elected sign, or with ``normalize`` its weighted mean; see ``disjoint_parts``."""
    summed, divisor = disjoint_parts(deltas, weights, zero_sign)
    return summed / divisor if normalize else summed


def bits(values: Tensor) -> np.ndarray:
    """Magnitudes of a float32 tensor as ``[n]`` integers that sort as they do."""
    return values.detach().abs().flatten().contiguous().cpu().numpy().view(np.uint32)
