"""The symmetric eigendecomposition by SciPy's LAPACK, in place, with other Python threads free to run meanwhile."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache

import torch
from scipy.linalg import cython_lapack
from threadpoolctl import ThreadpoolController
from torch import Tensor

LARGEST = 32_000
"""Rows up to which the workspace of 2n² entries can be counted in 32 bits."""


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
