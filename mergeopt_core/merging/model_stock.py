"""mergekit's ``model_stock`` from one Gram matrix of the task vectors instead of a pass per pair."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from mergeopt_core.merging.mergekit_api import fast_path
from mergeopt_core.merging.updates import Updates, block_size, blocks, flat, subtract
from mergeopt_core.spectral.decompositions import one_blas_thread

_PIECE = 1 << 14  # entries of a float32 dot product: long enough to be worth a call, short enough to be exact


def inner_products(updates: Updates) -> tuple[Tensor, Tensor]:
    """⟨Δ_i, Δ_j⟩ ``[1, K, K]`` in float64, and the mean task vector ``[*shape]``, in one pass over the experts.

    Dot products of pieces that stay in the CPU's cache are added up in float64, pair by pair, so that the bits of a
    pair do not depend on who else is merged.
    """
    count = len(updates)
    base, *experts = flat([updates.base, *updates.experts])
    rows = base.new_empty(count, block_size(base))
    if base.device.type != "cpu":
        return _products_there(base, experts, rows, updates.shape)
    mean, products = torch.zeros_like(base), np.zeros((count, count))
    with one_blas_thread():  # a dot product's bits may depend on the number of threads
        for block in blocks(base):
            width = block.stop - block.start
            for row, expert in zip(rows, experts):
                mean[block].add_(subtract(expert[block], base[block], row[:width]))
            for start in range(0, width, _PIECE):
                pieces = list(rows[:, start : min(start + _PIECE, width)].numpy())
                for i, left in enumerate(pieces):
                    for j in range(i, count):
                        products[i, j] += np.dot(left, pieces[j])
    whole = products + np.triu(products, 1).T
    return torch.from_numpy(whole).unsqueeze(0), mean.div_(count).view(updates.shape)


def _products_there(base: Tensor, experts: list[Tensor], rows: Tensor, shape: torch.Size) -> tuple[Tensor, Tensor]:
    """The same on an accelerator: a block of all experts at a time, multiplied in float64."""
    mean, products = torch.empty_like(base), base.new_zeros(len(rows), len(rows), dtype=torch.float64)
    for block in blocks(base):
        part = rows[:, : block.stop - block.start]
        for row, expert in zip(part, experts):
            subtract(expert[block], base[block], row)
        torch.mean(part, dim=0, out=mean[block])
        wide = part.double()
        products.addmm_(wide, wide.mT)
    return products.unsqueeze(0), mean.view(shape)


def row_products(updates: Updates) -> tuple[Tensor, Tensor]:
    """The same for each row (of the last dimension): ``[rows, K, K]`` in float64, and the mean task vector."""
    deltas = [delta.reshape(-1, updates.shape[-1]) for delta in updates]
    rows, count = len(deltas[0]), len(deltas)
    products = torch.zeros(rows, count, count, dtype=torch.float64, device=updates.base.device)
    for i, j in torch.combinations(torch.arange(count), with_replacement=True).tolist():
        products[:, i, j] = products[:, j, i] = torch.linalg.vecdot(deltas[i].double(), deltas[j].double())
    return products, (torch.stack(deltas).sum(dim=0) / count).view(updates.shape)


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


@fast_path("model_stock", propagates=True)
def model_stock(
    updates: Updates,
    filter_wise: bool = False,
    average: Literal["cosine", "angle"] = "cosine",
    clamp: float = 1e-6,
    eps: float = 0.0,
    cache: Any = None,
) -> Tensor:
    """θ0 + t · mean_k Δ_k, t from the mean angle between task vectors, of the tensor or (``filter_wise``) of each row.

    The inner products of a pair do not depend on the other experts and are kept in ``cache``.
    """
    by_row = filter_wise and len(updates.shape) > 1
    products, mean = _with_cache(updates, by_row, cache)
    t = interpolation(products, average, clamp, eps).to(updates.dtype)
    return updates.merged(mean.mul_(t.view(*updates.shape[:-1], 1) if by_row else t.squeeze(0)))


def _with_cache(updates: Updates, by_row: bool, cache: Any) -> tuple[Tensor, Tensor]:
    """Inner products and the mean task vector, the former from the cache where it holds those of every pair."""
    compute = row_products if by_row else inner_products
    if cache is None:
        return compute(updates)
    keys, count = [str(key) for key in updates.keys], len(updates)
    kind = "row products" if by_row else "product"
    places = {(kind, keys[i], keys[j], updates.name): (i, j) for i in range(count) for j in range(i, count)}
    known = {pair: cache.get(place) for place, pair in places.items()}
    if any(value is None for value in known.values()):
        products, mean = compute(updates)
        for place, (i, j) in places.items():
            cache[place] = products[:, i, j].clone()
        return products, mean
    products = torch.empty(len(known[0, 0]), count, count, dtype=torch.float64, device=updates.base.device)
    for (i, j), value in known.items():
        products[:, i, j] = products[:, j, i] = value
    return products, updates.weighted_sum([1.0] * count).div_(count)
