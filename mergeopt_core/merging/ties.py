"""mergekit's ``ties`` by selection instead of sorting, block by block."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from mergeopt_core.merging.blocks import blocks, flat
from mergeopt_core.merging.mergekit_api import PerExpert, TensorGroup, fast_path
from mergeopt_core.merging.trimming import keep, kept_count, kth_largest
from mergeopt_core.merging.updates import working_dtype

Bounds = tuple[float, int]


def bounds(base: Tensor, expert: Tensor, density: float, dtype: torch.dtype) -> Bounds:
    """``trimming.trim_bounds`` of θ_k − θ0 ``[n]`` at a density, with one buffer of n entries."""
    n = base.numel()
    k = kept_count(n, density)
    if k == n or k == 0:
        return (0.0, n) if k else (float("inf"), -1)
    magnitudes = torch.empty(n, dtype=dtype, device=base.device)
    for block in blocks(base):
        torch.sub(expert[block].to(dtype), base[block].to(dtype), out=magnitudes[block]).abs_()
    threshold = kth_largest(magnitudes, k)  # on a CPU now reordered: the k largest stand last
    if int((magnitudes >= threshold).sum()) == k:
        return threshold, n
    wanted = k - int((magnitudes > threshold).sum())
    for block in blocks(base):
        equal = (expert[block].to(dtype) - base[block].to(dtype)).abs_() == threshold
        found = int(equal.sum())
        if found >= wanted:
            return threshold, block.start + int(torch.nonzero(equal)[wanted - 1])
        wanted -= found
    return threshold, n  # only where a magnitude is NaN, which shows in the merged tensor


def merge_block(
    anchor: Tensor,
    experts: Sequence[Tensor],
    limits: Sequence[Bounds],
    weights: Tensor,
    start: int,
    normalize: bool,
    scale: float,
) -> Tensor:
    """TIES of flat pieces ``[b]`` that begin at index ``start`` of the tensor: mergekit's operations, in its order."""
    deltas = anchor.new_empty(len(experts), anchor.numel())
    for row, expert, limit in zip(deltas, experts, limits):
        torch.sub(expert.to(anchor.dtype), anchor, out=row)
        if limit[0] > 0:
            row.mul_(keep(row, limit, start))
    deltas.mul_(weights)
    positive = deltas.sum(dim=0) >= 0
    agree = torch.where(positive, deltas > 0, deltas < 0)
    update = deltas.mul_(agree).sum(dim=0)
    if normalize:
        divisor = (weights * agree).sum(dim=0)
        divisor.masked_fill_(divisor == 0, 1)
        update.div_(divisor)
    return anchor + (update.mul_(scale) if scale != 1 else update)


def _supported(parameters: Mapping[str, Any]) -> bool:
    return not parameters["rescale"]


@fast_path("ties", elementwise=True, propagates=True, when=_supported)
def ties(
    group: TensorGroup,
    weight: PerExpert[float],
    int8_mask: bool = False,
    normalize: bool = True,
    rescale: bool = False,
    lambda_: float = 1.0,
    density: PerExpert[float] = 1.0,  # type: ignore[assignment]
    cache: Any = None,
) -> Tensor:
    """TIES as in mergekit, to the same bits where no magnitudes tie at a threshold.

    Where some do, those of lowest flat index stay (mergekit's sort leaves it open which). Thresholds do not depend on
    the other experts and are kept in ``cache``. ``rescale`` is left to mergekit's kernel.
    """
    assert group.base is not None
    dtype, entries, name = working_dtype(group), group.non_base, group.metadata.name or ""
    base, *experts = flat([group.base.tensor, *(e.tensor for e in entries)])
    limits = []
    for entry, expert in zip(entries, experts):
        key = ("trim", str(entry.id), name, repr(density[entry.id]))
        found = cache.get(key) if cache is not None else None
        limits.append(found if found is not None else bounds(base, expert, density[entry.id], dtype))
        if cache is not None and found is None:
            cache[key] = limits[-1]
    weights = torch.tensor([weight[e.id] for e in entries], dtype=dtype, device=base.device).unsqueeze(1)
    result = torch.empty_like(base, dtype=dtype)
    for block in blocks(base):
        pieces = [expert[block] for expert in experts]
        anchor = base[block].to(dtype)
        result[block] = merge_block(anchor, pieces, limits, weights, block.start, normalize, lambda_)
    return result.view(group.base.tensor.shape)
