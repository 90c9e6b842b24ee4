"""mergekit's ``model_stock`` from one Gram matrix of the task vectors instead of a pass a pair."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

import torch
from torch import Tensor

from mergeopt_core.merging.blocks import BLOCK
from mergeopt_core.merging.mergekit_api import TensorGroup, fast_path
from mergeopt_core.merging.updates import Updates, merged


def inner_products(updates: Updates, rows: int) -> Tensor:
    """⟨Δ_i, Δ_j⟩ in float64 ``[rows, K, K]``: of whole tensors (rows = 1) or of each row.

    Pair by pair over blocks that stay in cache, so that a pair's bits do not depend on who else is merged.
    """
    count = len(updates)
    base = updates.base.reshape(rows, -1)
    experts = [expert.reshape(rows, -1) for expert in updates.experts]
    products = torch.zeros(rows, count, count, dtype=torch.float64, device=base.device)
    for piece in _pieces(rows, base.shape[1]):
        anchor = base[piece]
        deltas = [(expert[piece].to(updates.dtype) - anchor).double() for expert in experts]
        for i in range(count):
            for j in range(i, count):
                products[piece[0], i, j] += torch.linalg.vecdot(deltas[i], deltas[j])
    return products + products.triu(1).mT


def _pieces(rows: int, columns: int) -> Iterator[tuple[slice, slice]]:
    """Blocks of a matrix: parts of its one row, or groups of whole rows."""
    height = max(1, BLOCK // max(columns, 1))
    width = BLOCK if rows == 1 else max(columns, 1)
    for top in range(0, rows, height):
        for left in range(0, columns, width):
            yield slice(top, min(top + height, rows)), slice(left, min(left + width, columns))


def interpolation(products: Tensor, average: Literal["cosine", "angle"], clamp: float, eps: float) -> Tensor:
    """t = N c / (1 + (N − 1) c) ``[rows]`` from inner products ``[rows, K, K]``.

    c is the mean pairwise cosine, or the cosine of the mean pairwise angle. A product of norms below ``clamp`` counts
    as ``clamp``; ``eps`` is added to it and to the denominator of t. Zero task vectors have cosine 0; t is 0 where its
    denominator is below 1e-6.
    """
    count = products.shape[-1]
    norms = products.diagonal(dim1=-2, dim2=-1).clamp(min=0).sqrt()
    scale = (norms.unsqueeze(-1) * norms.unsqueeze(-2)).clamp(min=clamp) + eps
    cosines = torch.where(scale > 0, products / torch.where(scale > 0, scale, 1.0), 0.0).clamp(-1, 1)
    i, j = torch.triu_indices(count, count, offset=1)
    pairs = cosines[:, i, j]
    c = pairs.mean(dim=1) if average == "cosine" else torch.cos(torch.arccos(pairs).mean(dim=1))
    denominator = 1 + (count - 1) * c + eps
    return torch.where(denominator.abs() < 1e-6, 0.0, count * c / denominator)


@fast_path("model_stock")
def model_stock(
    group: TensorGroup,
    filter_wise: bool = False,
    average: Literal["cosine", "angle"] = "cosine",
    clamp: float = 1e-6,
    eps: float = 0.0,
    cache: Any = None,
) -> Tensor:
    """θ0 + t · mean_k Δ_k, t from the mean angle between task vectors, of the tensor or (``filter_wise``) of each row.

    The inner products of a pair do not depend on the other experts and are kept in ``cache``.
    """
    updates = Updates(group)
    shape = updates.shape
    rows = shape[0] if filter_wise and len(shape) > 1 else 1
    products = _known(updates, rows, cache)
    t = interpolation(products, average, clamp, eps).to(updates.dtype)
    mean = updates.weighted_sum([1.0] * len(updates)).div_(len(updates))
    return merged(updates, (mean.reshape(rows, -1) * t.unsqueeze(1)).reshape(shape))


def _known(updates: Updates, rows: int, cache: Any) -> Tensor:
    keys = [str(key) for key in updates.keys]
    if cache is None:
        return inner_products(updates, rows)
    places = {
        (i, j): ("dot", str(rows), keys[i], keys[j], updates.name)
        for i in range(len(keys))
        for j in range(i, len(keys))
    }
    found = {pair: cache.get(place) for pair, place in places.items()}
    if any(value is None for value in found.values()):
        products = inner_products(updates, rows)
        for (i, j), place in places.items():
            cache[place] = products[:, i, j].clone()
        return products
    products = torch.empty(rows, len(keys), len(keys), dtype=torch.float64, device=updates.base.device)
    for (i, j), value in found.items():
        products[:, i, j] = products[:, j, i] = value
    return products
