"""A matrix of low rank by its factors: summed, truncated, and the space that its columns span."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor


class Low(NamedTuple):
    """An update b a ``[m, n]`` by its factors; LoRA's scale s is divided between them, b = √s B and a = √s A."""

    b: Tensor
    """``[m, r]``"""
    a: Tensor
    """``[r, n]``"""

    def truncated(self, rank: int) -> tuple[Low, float, float]:
        """Its ``rank`` leading singular triplets as ``[m, rank]`` and ``[rank, n]`` (zeros past its own rank); Σ σ² of
        what is left out, and of all. From QR factors: nothing larger than the factors is formed."""
        (q, r), (p, s) = torch.linalg.qr(self.b.double()), torch.linalg.qr(self.a.double().mT)
        u, sigma, vh = torch.linalg.svd(r @ s.mT, full_matrices=False)
        root = sigma[:rank].sqrt()
        b, a = self.b.new_zeros(len(self.b), rank), self.a.new_zeros(rank, self.a.shape[1])
        b[:, : len(root)] = q @ (u[:, : len(root)] * root)
        a[: len(root)] = (p @ (vh[: len(root)].mT * root)).mT
        squares = sigma.square()
        return Low(b, a), float(squares[rank:].sum()), float(squares.sum())


def side_by_side(parts: Sequence[Low], weights: Sequence[float], scale: float = 1.0) -> Low:
    """scale · Σ_k w_k b_k a_k exactly, of rank Σ_k r_k: the factors side by side (peft's ``cat``)."""
    b = torch.cat([part.b * (w * scale) for part, w in zip(parts, weights)], dim=1)
    return Low(b, torch.cat([part.a for part in parts]))


def basis(columns: Tensor, tolerance: float = 1e-6) -> Tensor:
    """The left singular vectors ``[m, p]`` of ``[m, q]`` with σ > tolerance · σ₁, in float64."""
    u, sigma, _ = torch.linalg.svd(columns.double(), full_matrices=False)
    return u[:, sigma > tolerance * sigma[0]] if sigma.numel() else u
