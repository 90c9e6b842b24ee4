"""mergekit's ``ties`` by selection instead of sorting, block by block."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from mergeopt_core.merging.blocks import BLOCK, blocks, flat
from mergeopt_core.merging.mergekit_api import PerExpert, TensorGroup, fast_path
from mergeopt_core.merging.trimming import Bounds, agreeing_, bounds_from, kept_count, trim_, trim_bounds
from mergeopt_core.merging.updates import working_dtype


def bounds(base: Tensor, expert: Tensor, density: float, dtype: torch.dtype) -> Bounds:
    """``trimming.trim_bounds`` of θ_k − θ0 ``[n]`` at a density, with one buffer of n entries."""
    n = base.numel()
    buffer = torch.empty(n, dtype=dtype, device=base.device)

    def magnitudes() -> Tensor:
        for block in blocks(base):
            torch.sub(expert[block], base[block].to(dtype), out=buffer[block]).abs_()
        return buffer

    k = kept_count(n, density)
    return bounds_from(magnitudes, k) if 0 < k < n else trim_bounds(buffer, k)


def _supported(parameters: Mapping[str, Any]) -> bool:
    return not parameters["rescale"]


@fast_path("ties", propagates=True, when=_supported)
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
    weights = [weight[entry.id] for entry in entries]
    result = torch.empty_like(base, dtype=dtype)
    buffer = torch.empty(
        len(experts), BLOCK if base.device.type == "cpu" else base.numel(), dtype=dtype, device=base.device
    )
    for block in blocks(base):
        anchor = base[block].to(dtype)
        rows = buffer[:, : anchor.numel()]
        for row, expert, limit in zip(rows, experts, limits):
            trim_(torch.sub(expert[block], anchor, out=row), limit, block.start)
        summed, divisor = agreeing_(rows, weights)
        update = summed.div_(divisor) if normalize else summed
        torch.add(anchor, update.mul_(lambda_) if lambda_ != 1 else update, out=result[block])
    return result.view(group.base.tensor.shape)
