"""TIES: mergekit's ``ties`` by selection instead of sorting, and as first published, trimmed over the whole model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from mergeopt_core.merging.mergekit_api import PerExpert, TensorGroup, fast_path, method
from mergeopt_core.merging.trimming import (
    Bounds,
    Models,
    agreeing_,
    disjoint_merge,
    global_thresholds,
    kept_count,
    majority_sign,
    trim_,
    trim_bounds,
)
from mergeopt_core.merging.updates import Updates, block_size, blocks, flat, subtract, working_dtype


def bounds(base: Tensor, expert: Tensor, density: float, dtype: torch.dtype) -> Bounds:
    """``trim_bounds`` of θ_k − θ0 ``[n]`` at a density, with one buffer of n entries."""

    def fill(out: Tensor, start: int) -> None:
        part = slice(start, start + len(out))
        subtract(expert[part], base[part].to(dtype), out).abs_()

    return trim_bounds(fill, len(base), kept_count(len(base), density), base.new_empty(0, dtype=dtype))


@fast_path("ties", propagates=True, when=lambda parameters: not parameters["rescale"])
def ties(
    group: TensorGroup,
    weight: PerExpert[float],
    int8_mask: bool = False,
    normalize: bool = True,
    rescale: bool = False,
    lambda_: float = 1.0,
    density: PerExpert[float] = 1.0,
    cache: Any = None,
) -> Tensor:
    """TIES as in mergekit, to the same bits where no magnitudes tie at a threshold.

    Where some do, those of lowest flat index stay (mergekit's sort leaves it open which). Thresholds do not depend on
    the other experts and are kept in ``cache``. ``rescale`` is left to mergekit's kernel.
    """
    assert group.base is not None
    dtype, entries, name = working_dtype(group.tensors), group.non_base, group.metadata.name or ""
    base, *experts = flat([group.base.tensor, *(e.tensor for e in entries)])
    limits, cache = [], {} if cache is None else cache
    for entry, expert in zip(entries, experts):
        key = ("trim", str(entry.id), name, repr(density[entry.id]))
        if (found := cache.get(key)) is None:
            found = cache[key] = bounds(base, expert, density[entry.id], dtype)
        limits.append(found)
    weights = [weight[entry.id] for entry in entries]
    result = torch.empty_like(base, dtype=dtype)
    buffer = result.new_empty(len(experts), block_size(base))
    for block in blocks(base):
        anchor = base[block].to(dtype)
        rows = buffer[:, : anchor.numel()]
        for row, expert, limit in zip(rows, experts, limits):
            trim_(subtract(expert[block], anchor, row), limit, block.start)
        summed, divisor = agreeing_(rows, weights)
        update = summed.div_(divisor) if normalize else summed
        torch.add(anchor, update.mul_(lambda_) if lambda_ != 1 else update, out=result[block])
    return result.view(group.base.tensor.shape)


Count = Literal["official", "mergelm", "exact"]


def kept_globally(numel: int, density: float, count: Count) -> int:
    """How many of all n entries are to stay at density d.

    ``official``: ⌊d·n⌋ + 1, ``mergelm``: n − ⌊n·(1 − d)⌋ + 1, ``exact``: ⌊d·n⌋; never more than n. Entries equal to
    the last of them stay too.
    """
    if density >= 1:
        return numel
    if density <= 0:
        return 0
    kept = {"official": int(density * numel) + 1, "mergelm": numel - int(numel * (1 - density)) + 1}
    return min(numel, kept.get(count, int(density * numel)))


def _prepare(models: Models, parameters: Mapping[str, Any], keys: Sequence[str], seed: int, cache: Any) -> Any:
    density, count = parameters["density"], parameters["count"]
    labels = {key: f"{count} {density[key]!r}" for key in keys}

    def kept(n: int, key: str) -> int:
        return kept_globally(n, density[key], count)

    thresholds = global_thresholds(models, keys, kept, labels, cache=cache)
    majority = parameters["zero_sign"] == "majority"
    return {"thresholds": thresholds, "zero_sign": majority_sign(models, keys, thresholds) if majority else 1}


@method("ties_global", pretty="TIES (global trim)", url="https://arxiv.org/abs/2306.01708", prepare=_prepare)
def ties_global(
    updates: Updates,
    lambda_: float = 1.0,
    density: PerExpert[float] = 0.2,
    count: Count = "official",
    merge: Literal["mean", "sum", "max"] = "mean",
    zero_sign: Literal["positive", "majority"] = "positive",
    prepared: Any = None,
) -> Tensor:
    """TIES with one magnitude threshold for an expert's whole task vector instead of one per tensor.

    τ_k = Δ_k ⊙ [|Δ_k| ≥ t_k], γ = sign(Σ_k τ_k), W = θ0 + λ · mean of the non-zero τ_k whose sign is γ

    t_k is the magnitude of the last of the ``density`` · n largest entries over all tensors together (``count`` says
    how the product is rounded), found by two passes over the checkpoints. ``merge`` takes the mean, the sum or the
    largest magnitude of what agrees. Where Σ_k τ_k is exactly 0, γ is + or, as in the official code and at the price
    of a third pass, the majority sign of the whole model.
    """
    if prepared is None:
        raise ValueError(f"{updates.name}: ties_global needs the thresholds of a pass over all tensors (see prepare)")
    thresholds = updates.values(prepared["thresholds"])
    trimmed = torch.stack([delta * (delta.abs() >= threshold) for delta, threshold in zip(updates, thresholds)])
    if merge == "max":
        update = largest_agreeing(trimmed, prepared["zero_sign"])
    else:
        update = disjoint_merge(trimmed, [1.0] * len(updates), merge == "mean", zero_sign=prepared["zero_sign"])
    return updates.merged(update, lambda_)


def largest_agreeing(deltas: Tensor, zero_sign: int = 1) -> Tensor:
    """The entry of largest magnitude among those of the elected sign; ``[K, *shape]`` → ``[*shape]``."""
    elected = deltas.sum(dim=0).sign()
    elected[elected == 0] = zero_sign
    return (deltas * elected).clamp(min=0).amax(dim=0) * elected
