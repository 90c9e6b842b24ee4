"""Leading singular triplets of an expert's update, and the inner products between experts: computed once, kept.

Neither depends on which other experts are merged, so a sweep over subsets of N experts needs N decompositions a tensor
and N(N−1)/2 cross products a subset size. ``cache`` is any dict-like store (``get`` and item assignment) with tuples of
strings as keys and mappings of tensors as values; it belongs to one base. None computes afresh, to the same bits.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from mergeopt_core.spectral.spectrum import Path, by_gram

Factors = Mapping[str, Tensor]
"""U ``[m, k]``, S ``[r]`` (all of them) and V ``[n, k]`` of one update."""


def decompose(matrix: Tensor, k: int, path: Path = "gram") -> Factors:
    """The k leading singular triplets of ``[m, n]`` and all its singular values.

    By the float64 Gram matrix of the small side, or the float64 SVD where one of the k is too weak for it; by the plain
    SVD in the matrix's dtype on the path ``svd``. U and V come in the matrix's dtype, S in float64
    (on ``svd`` in the matrix's).
    """
    if path in ("svd", "svd64"):
        return _by_svd(matrix if path == "svd" else matrix.double(), k, matrix.dtype)
    wide = matrix.double()
    tall = matrix.shape[1] <= matrix.shape[0]
    found = by_gram(wide if tall else wide.mT, k)
    if found is None:
        return _by_svd(wide, k, matrix.dtype)
    far, sigma, near = found
    u, v = (far, near) if tall else (near, far)
    return {"U": u.to(matrix.dtype), "S": sigma, "V": v.to(matrix.dtype)}


def _by_svd(matrix: Tensor, k: int, dtype: torch.dtype) -> Factors:
    u, s, vh = torch.linalg.svd(matrix, full_matrices=False)
    return {"U": u[:, :k].to(dtype), "S": s, "V": vh[:k].mT.to(dtype)}


def factors(
    update: Callable[[], Tensor], k: int, *, expert: str, tensor: str, cache: Any = None, path: Path = "gram"
) -> Factors:
    """The k leading triplets of an update, from the cache where it holds as many; ``update()`` makes the matrix.

    min(m, n) // 2 triplets are computed and kept, which any subset of two or more experts can use, with or without a
    cache, so that its bits do not depend on there being one.
    """
    path = "gram" if path == "newton_schulz" else path
    key = ("factors", path, str(expert), tensor)
    known = cache.get(key) if cache is not None else None
    if known is None or known["U"].shape[1] < k:
        matrix = update()
        known = decompose(matrix, max(k, (min(matrix.shape) + 1) // 2), path)
        if cache is not None:
            cache[key] = known
    return cut(known, k)


def cut(known: Factors, k: int) -> Factors:
    """The first k triplets, in memory of their own: a product's bits may depend on how its operands are laid out."""
    u, v = (known[side][:, :k].clone(memory_format=torch.contiguous_format) for side in ("U", "V"))
    return {"U": u, "S": known["S"], "V": v}


def cross(a: Factors, b: Factors, *, experts: tuple[str, str], tensor: str, cache: Any = None) -> Factors:
    """U_aᵀU_b and V_aᵀV_b ``[k_a, k_b]`` in float64, from the cache where it holds blocks of this size."""
    size = f"{a['U'].shape[1]}x{b['U'].shape[1]}"
    key = ("cross", size, *map(str, experts), tensor)
    known = cache.get(key) if cache is not None else None
    if known is None:
        known = {side: a[side].double().mT @ b[side].double() for side in ("U", "V")}
        if cache is not None:
            cache[key] = known
    return known
