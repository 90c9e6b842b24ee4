"""Decompositions: the symmetric one by SciPy's LAPACK, singular triplets through it, polar factors by products alone.

With W = U Σ Vᵀ ``[m, n]`` and n ≤ m, WᵀW = V Σ² Vᵀ and U = W V Σ⁻¹: one Gram product, one symmetric eigendecomposition
of the small side and one product, instead of a singular value decomposition. The Gram matrix has the square of W's
condition number and is therefore formed in float64.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from itertools import pairwise
from typing import Literal

import torch
from scipy.linalg import cython_lapack
from threadpoolctl import ThreadpoolController
from torch import Tensor

Path = Literal["gram", "svd", "svd64", "newton_schulz"]
"""How a decomposition is computed; ``newton_schulz`` is for polar factors, and ``gram`` wherever more is needed."""

LARGEST = 32_000
"""Rows up to which the workspace of 2n² entries can be counted in 32 bits."""

SUSPECT, LOST = 1e-5, 1e-8
"""σ/σ₁ below which the Gram matrix's eigenvectors are checked, and below which they are not worth a check."""

SKEW = 1e-6
"""How far from orthonormal, relative to all, the checked directions may be."""


def triplets(
    matrix: Tensor, k: int, path: Path = "gram", floor: float = 0.0, dtype: torch.dtype | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """The k leading U ``[m, k]``, all σ ``[r]`` and the k leading V ``[n, k]`` of ``[m, n]``, r = min(m, n).

    ``gram``: float64 Gram matrix of the small side, or the float64 SVD where a direction above ``floor`` · σ₁ is too
    weak for it. Directions at or below ``floor`` · σ₁ are for the caller to zero. ``svd``: the plain decomposition in
    ``dtype`` (the matrix's own by default). ``svd64``: the same in float64.
    """
    if path == "svd":
        return _svd(matrix.to(dtype or matrix.dtype), k)
    wide = matrix.double()
    tall = matrix.shape[1] <= matrix.shape[0]
    found = by_gram(wide if tall else wide.mT, k, floor) if path != "svd64" else None
    if found is None:
        return _svd(wide, k)
    far, sigma, near = found
    return (far, sigma, near) if tall else (near, sigma, far)


def _svd(matrix: Tensor, k: int) -> tuple[Tensor, Tensor, Tensor]:
    u, s, vh = torch.linalg.svd(matrix, full_matrices=False)
    return u[:, :k], s, vh[:k].mT


def by_gram(tall: Tensor, k: int, floor: float = 0.0) -> tuple[Tensor, Tensor, Tensor] | None:
    """The k leading U ``[m, k]``, all σ ``[n]`` and the k leading V ``[n, k]`` of a float64 ``[m, n]``, n ≤ m.

    U = W V with its columns scaled to norm 1, and σ their norms, which is more accurate for weak directions than a
    square root of an eigenvalue. None where a direction among the k above floor · σ₁ is below 1e-8 · σ₁, or is below
    1e-5 · σ₁ and came out skew to the others: the square of the condition number is then too much for float64.
    """
    values, vectors = symmetric_eigen(lower_gram(tall))
    near, sigma = vectors[:, vectors.shape[1] - k :].flip(1), values.clamp(min=0).sqrt().flip(0)
    far = tall @ near
    norms = sigma[:k] = (far * far).sum(dim=0).sqrt()
    first = float(sigma[0]) if k else 0.0
    matters = norms > floor * first * (1 - 1e-3)
    if bool((matters & (norms < LOST * first)).any()):
        return None
    far /= norms.clamp(min=1e-300)
    suspects = torch.nonzero(matters & (norms < SUSPECT * first)).flatten()
    if suspects.numel():
        overlap = far[:, suspects].mT @ far  # [suspects, k]
        overlap[:, ~matters] = 0
        overlap[torch.arange(suspects.numel()), suspects] = 0
        if torch.linalg.matrix_norm(overlap) > SKEW * k**0.5:
            return None
    return far, sigma, near


def lower_gram(matrix: Tensor, blocks: int = 8) -> Tensor:
    """The lower blocks of XᵀX ``[n, n]`` for ``[m, n]``: what a symmetric eigendecomposition reads, at 9/16 of the
    cost."""
    n = matrix.shape[1]
    gram = matrix.new_zeros(n, n)
    edges = [n * i // blocks for i in range(blocks + 1)]
    for top, bottom in pairwise(edges):
        gram[top:bottom, :bottom] = matrix[:, top:bottom].mT @ matrix[:, :bottom]
    return gram


def symmetric_eigen(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """λ ``[n]``, smallest first, and eigenvectors ``[n, n]`` of a symmetric matrix whose lower part is read.

    On the CPU by LAPACK's ``dsyevd`` (divide and conquer) as SciPy brings it, which takes four fifths of the time of
    torch's; on one thread, as rounding may depend on their number. Overwrites float64 matrices.
    """
    n = matrix.shape[0]
    if matrix.device.type != "cpu" or n > LARGEST:
        return torch.linalg.eigh(matrix)
    columns = matrix.to(torch.float64).contiguous()  # LAPACK reads it by columns: our lower part is its upper part
    values = columns.new_empty(n)
    work, whole = columns.new_empty(1 + 6 * n + 2 * n * n), torch.empty(3 + 5 * n, dtype=torch.int32)
    info = ctypes.c_int(0)
    sizes = [ctypes.c_int(size) for size in (n, max(n, 1), work.numel(), whole.numel())]
    order, leading, long, short = (ctypes.byref(size) for size in sizes)
    with one_blas_thread():
        _dsyevd()(
            b"V", b"U", order, columns.data_ptr(), leading, values.data_ptr(), work.data_ptr(), long, whole.data_ptr(),
            short, ctypes.byref(info),
        )  # fmt: skip
    if info.value:
        raise torch.linalg.LinAlgError(f"the eigendecomposition of a {n}×{n} matrix did not converge ({info.value})")
    return values, columns.mT


@cache
def _dsyevd() -> Callable[..., None]:
    """LAPACK's routine; a call of it through ctypes holds no lock of Python's."""
    capsule = cython_lapack.__pyx_capi__["dsyevd"]
    named, pointer = ctypes.pythonapi.PyCapsule_GetName, ctypes.pythonapi.PyCapsule_GetPointer
    named.restype, named.argtypes = ctypes.c_char_p, [ctypes.py_object]
    pointer.restype, pointer.argtypes = ctypes.c_void_p, [ctypes.py_object, ctypes.c_char_p]
    text, address = ctypes.c_char_p, ctypes.c_void_p
    kind = ctypes.CFUNCTYPE(None, text, text, *[address] * 9)
    return kind(pointer(capsule, named(capsule)))


@contextmanager
def one_blas_thread() -> Iterator[None]:
    """Run SciPy's BLAS on one thread. Its number belongs to the process, and only the first Python thread in sets it:
    whoever calls from several threads goes in before they start."""
    with _openblas().limit(limits=1):
        yield


@cache
def _openblas() -> ThreadpoolController:
    return ThreadpoolController().select(internal_api="openblas")


def norm_bound(matrix: Tensor) -> float:
    """(Σ σ⁸)^(1/8) = ‖(XᵀX)²‖_F^(1/4) of ``[m, n]``: never below σ₁, and above it by r^(1/8) at most.

    An estimate that can fall short of σ₁ would not do: the iteration sends σ > √3 to a negative value.
    """
    gram = matrix.mT @ matrix if matrix.shape[1] <= matrix.shape[0] else matrix @ matrix.mT
    scale = float(gram.abs().amax()) or 1.0
    gram = gram / scale
    return float(torch.linalg.matrix_norm(gram @ gram).double() ** 0.25 * scale**0.5) * (1 + 1e-6)


def newton_schulz(matrix: Tensor, lowest: float = 1e-3, tolerance: float = 1e-6) -> Tensor:
    """Polar factor U Vᵀ ``[m, n]`` of U Σ Vᵀ with full rank, by the scaled iteration X ← α X (3 I − α² XᵀX) / 2.

    With all σ in [l, 1], α² = 3 / (1 + l + l²) maps them into [α l (3 − α² l²) / 2, 1], from l = ``lowest`` on; a σ
    below it grows more slowly and is caught up with later. Stops when ‖XᵀX − I‖ ≤ tolerance · √r. ValueError where
    that is not reached in the steps that σ = 1e-5 · σ₁ takes in float32, or 1e-10 · σ₁ in float64: what is weaker is
    rounding error of larger entries.
    """
    tall = matrix.shape[1] <= matrix.shape[0]
    x = matrix if tall else matrix.mT
    r = x.shape[1]
    x = x / max(norm_bound(x), 1e-30)
    identity = torch.eye(r, dtype=x.dtype, device=x.device)
    reach = max(tolerance, 16 * torch.finfo(x.dtype).eps) * r**0.5
    low, most = lowest, 52 if x.dtype == torch.float64 else 24
    for _ in range(most):
        gram = x.mT @ x
        if float(torch.linalg.matrix_norm(gram - identity)) <= reach:
            return x if tall else x.mT
        square = 3 / (1 + low + low * low)
        x = x @ (identity * (1.5 * square**0.5) - gram * (0.5 * square**1.5))
        low = min(1.0, square**0.5 * low * (3 - square * low * low) / 2)
    raise ValueError(f"the polar factor did not settle in {most} steps: the matrix is near rank deficient")
