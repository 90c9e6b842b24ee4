"""mergekit's ``linear`` and ``task_arithmetic`` block by block: the same operations in the same order, to the same
bits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from mergeopt_core.merging.mergekit_api import PerExpert, PerExpertOfAll, TensorGroup, fast_path
from mergeopt_core.merging.updates import BLOCK, block_size, blocks, flat, subtract, total, working_dtype
from mergeopt_core.spectral.low_rank import Low, side_by_side


@fast_path("linear", propagates=True)
def linear(group: TensorGroup, weight: PerExpertOfAll[float], normalize: bool = True) -> Tensor:
    """Σ_k w_k θ_k / Σ_k w_k ``[*shape]``."""
    dtype, first = working_dtype(group.tensors), group.tensors[0]
    weights = torch.tensor([weight[entry.id] for entry in group.entries], dtype=dtype, device=first.device)
    divisor, plain = weights.sum(), bool((weights == 1).all())
    inputs = flat(group.tensors)
    result = torch.empty_like(inputs[0], dtype=dtype)
    for block in blocks(result, 4 * BLOCK):
        part = result[block]
        if plain:
            part.copy_(inputs[0][block])
            for tensor in inputs[1:]:
                part.add_(tensor[block])
        else:
            part.zero_()
            for tensor, share in zip(inputs, weights):
                part.addcmul_(tensor[block].to(dtype), share)
        if normalize:
            part.div_(divisor)
    return result.view(first.shape)


def _factored(given: Mapping[str, Any], keys: Sequence[str], parts: Sequence[Low], tensor: str, seed: int) -> Low:
    weights = [given["weight"][key] for key in keys]
    return side_by_side(parts, weights, given["lambda"] / (total(weights) if given["normalize"] else 1.0))


@fast_path("task_arithmetic", propagates=True, factored=_factored)
def task_arithmetic(
    group: TensorGroup,
    weight: PerExpert[float],
    int8_mask: bool = False,
    normalize: bool = False,
    rescale: bool = False,
    lambda_: float = 1.0,
    density: PerExpert[float] = 1.0,
) -> Tensor:
    """θ0 + λ · Σ_k w_k Δ_k [/ Σ_k w_k] ``[*shape]``; ``density``, ``rescale`` and ``int8_mask`` do nothing, as in
    mergekit."""
    assert group.base is not None
    dtype, entries = working_dtype(group.tensors), group.non_base
    base, *experts = flat([group.base.tensor, *(entry.tensor for entry in entries)])
    weights = torch.tensor([weight[entry.id] for entry in entries], dtype=dtype, device=base.device)
    divisor = weights.sum()
    if divisor.abs() < 1e-8:
        divisor.fill_(1)
    result = torch.empty_like(base, dtype=dtype)
    buffer = result.new_empty(len(experts), block_size(base))
    for block in blocks(result):
        part, anchor = result[block], base[block].to(dtype)
        rows = buffer[:, : part.numel()]
        for row, tensor, share in zip(rows, experts, weights):
            subtract(tensor[block], anchor, row)
            if share != 1:
                row.mul_(share)
        torch.sum(rows, dim=0, out=part)
        if normalize:
            part.div_(divisor)
        if lambda_ != 1:
            part.mul_(lambda_)
        part.add_(anchor)
    return result.view(group.base.tensor.shape)
