"""TSV-M: the leading singular triplets of every expert, made orthogonal to each other's."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from itertools import accumulate
from typing import Any, Literal

import torch
from torch import Tensor

from mergeopt_core.merging.matrices import matrix_method, note_rank
from mergeopt_core.merging.updates import Updates
from mergeopt_core.spectral.decompositions import Path
from mergeopt_core.spectral.spectrum import Factors, cross, cut, factors, orthonormal, polar

Remainder = Literal["drop", "share"]


def ranks(rank: int, spectra: Sequence[Tensor], remainder: Remainder = "drop", tolerance: float = 0.0) -> list[int]:
    """Triplets each expert keeps: k = ⌊r · (1/K)⌋ of its spectrum ``[r]``, fewer where σ ≤ tolerance · σ₁.

    ``share`` hands the r mod K ranks that this leaves over to the experts whose next σ is largest, one each.
    """
    each = int(rank * (1 / len(spectra)))
    kept = [each] * len(spectra)
    if remainder == "share" and len(spectra) > 1:
        by_next = sorted(range(len(spectra)), key=lambda k: -float(spectra[k][each]) if each < rank else 0.0)
        for k in by_next[: rank - each * len(spectra)]:
            kept[k] += 1
    if tolerance > 0:
        kept = [min(k, int((s > tolerance * s[0]).sum()) if float(s[0]) > 0 else 0) for k, s in zip(kept, spectra)]
    return kept


def orthogonal_sum(
    parts: Sequence[Factors],
    weights: Sequence[float],
    *,
    experts: Sequence[str],
    tensor: str = "",
    cache: Any = None,
    path: Path = "gram",
) -> Tensor:
    """Û diag(σ) V̂ᵀ ``[m, n]``, Û and V̂ the polar factors of the concatenated U_k and V_k.

    With G = [U]ᵀ[U] = E Λ Eᵀ, Û = ([U] E Λ^(−1/2)) Eᵀ: only the small blocks U_iᵀU_j are decomposed, and they can be
    kept. Where the U_k are linearly dependent (equal experts), Û is the partial isometry on their span.
    """
    u, v = (torch.cat([part[side] for part in parts], dim=1) for side in "UV")  # [m, p], [n, p]
    sigma = torch.cat([part["S"][: part["U"].shape[1]] * w for part, w in zip(parts, weights)])
    if u.shape[1] == 0:
        return u.new_zeros(u.shape[0], v.shape[0])
    if path != "gram":
        return (polar(u, path, tolerance=0.0) * sigma.to(u)) @ polar(v, path, tolerance=0.0).mT
    grams = _grams(parts, experts, tensor, cache)
    (left, turn), (right, back) = orthonormal(u, grams["U"]), orthonormal(v, grams["V"])
    core = (turn.mT * sigma.to(u)) @ back  # [p, p]
    return (left @ core) @ right.mT


def _grams(parts: Sequence[Factors], experts: Sequence[str], tensor: str, cache: Any) -> dict[str, Tensor]:
    """The lower parts of [U]ᵀ[U] and [V]ᵀ[V] ``[p, p]`` from one block per pair of experts."""
    edges = list(accumulate((part["U"].shape[1] for part in parts), initial=0))
    grams = {side: parts[0][side].new_zeros(edges[-1], edges[-1], dtype=torch.float64) for side in "UV"}
    for i, a in enumerate(parts):
        for j, b in enumerate(parts[: i + 1]):
            block = cross(b, a, experts=(experts[j], experts[i]), tensor=tensor, cache=cache)
            for side in "UV":
                grams[side][edges[i] : edges[i + 1], edges[j] : edges[j + 1]] = block[side].mT
    return grams


@matrix_method("tsv_m", pretty="TSV-M", url="https://arxiv.org/abs/2412.00081")
def tsv_m(
    updates: Updates,
    weight: Sequence[float],
    remainder: Remainder = "drop",
    rank_tolerance: float = 0.0,
    spectral: Path = "gram",
    cache: Any = None,
    report: Any = None,
) -> Tensor:
    """Task singular vectors: each expert keeps its K-th share of the rank, and the kept directions are orthogonalised.

    Δ_k ≈ U_k Σ_k V_kᵀ (k = ⌊min(m, n)/K⌋ triplets), U = [U_1 … U_K] = P Λ Qᵀ, Û = P Qᵀ, V̂ alike, W = θ0 + λ · Û Σ V̂ᵀ

    Nothing is divided by K: ``normalize`` divides the update by Σ_k w_k, ``norm_matched`` gives it the norm of the mean
    task vector or the mean norm of the task vectors. ``remainder: share`` also hands out the min(m, n) mod K ranks that
    rounding drops. ``rank_tolerance`` leaves out triplets with σ at or below that share of σ₁, as updates of low rank
    need. Σ_k is multiplied by w_k. ``tensors``, ``rest`` and ``rest_scale`` are those of ``iso_c``.
    """
    if len(updates) == 1 and rank_tolerance == 0:
        return updates.delta(0) * weight[0]
    rank, tensor, names = min(updates.shape), updates.name, [str(key) for key in updates.keys]
    most = -(-rank // len(updates))  # ⌈r / K⌉
    found = []
    for k, name in enumerate(names):
        make = partial(updates.delta, k)
        found.append(factors(make, most, expert=name, tensor=tensor, cache=cache, path=spectral))
        note_rank(report, f"{tensor} of {name}", found[-1]["S"][:most], rank_tolerance)
    kept = ranks(rank, [part["S"] for part in found], remainder, rank_tolerance)
    parts = [cut(part, k) for part, k in zip(found, kept)]
    return orthogonal_sum(parts, weight, experts=names, tensor=tensor, cache=cache, path=spectral)
