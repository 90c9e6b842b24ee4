"""Adapters merged as adapters: from the factors b and a of every expert's update, whose product is never formed."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from mergeopt_core.merging import mergekit_api as api
from mergeopt_core.merging.mergekit_api import PerExpert, method
from mergeopt_core.merging.run import BoundMethod
from mergeopt_core.merging.updates import Updates
from mergeopt_core.merging.wrappers import depends_as_base
from mergeopt_core.spectral.low_rank import Low, basis

Space = Callable[[Sequence[Low]], tuple[Tensor, list[Tensor], Tensor | None]]
"""Left factor ``[m, p]``, what of each expert is merged, and right factor ``[q, n]`` where that is not all there is."""


def core(parts: Sequence[Low]) -> tuple[Tensor, list[Tensor], Tensor]:
    """U ``[m, p]``, Uᵀ b_k a_k V ``[p, q]`` and Vᵀ ``[q, n]``: U and V span all experts' columns and rows."""
    u, v = basis(torch.cat([part.b for part in parts], dim=1)), basis(torch.cat([part.a.mT for part in parts], dim=1))
    return u, [(u.mT @ part.b.double()) @ (part.a.double() @ v) for part in parts], v.mT


def decomposed_together(parts: Sequence[Low], tolerance: float = 1e-5) -> tuple[Tensor, list[Tensor], None]:
    """U ``[m, p]`` and Σ V_kᵀ ``[p, n]``, U Σ [V_1ᵀ … V_Kᵀ] = [b_1 a_1 … b_K a_K], its directions σ > tolerance · σ₁.

    By a QR factorisation of [b_1 … b_K] and the Gram matrix of what is left: the ``[m, K·n]`` matrix is not formed.
    """
    q, r = torch.linalg.qr(torch.cat([part.b for part in parts], dim=1).double())  # [m, p], [p, Σ r_k]
    blocks = torch.split(r, [part.b.shape[1] for part in parts], dim=1)
    rows = [block @ part.a.double() for block, part in zip(blocks, parts)]  # [p, n]
    values, turn = torch.linalg.eigh(torch.stack([row @ row.mT for row in rows]).sum(dim=0))
    kept = turn.flip(1)[:, values.flip(0) > tolerance**2 * values.amax().clamp(min=1e-300)] if values.numel() else turn
    return q @ kept, [kept.mT @ row for row in rows], None


def _in_space(
    space: Space, given: Mapping[str, Any], keys: Sequence[str], parts: Sequence[Low], tensor: str, seed: int
) -> Low:
    """The base method's merge in a space that all updates share, of experts in the order given."""
    order = sorted(range(len(keys)), key=lambda k: str(keys[k]))  # bits that do not depend on the order
    left, cores, right = space([parts[k] for k in order])
    inside = [cores[order.index(k)] for k in range(len(keys))]
    merged = _merge_updates(given, keys, inside, tensor, seed) if cores[0].numel() else cores[0]
    left = left * given["lambda"]
    low = Low(left, merged) if right is None else Low(left @ merged, right)
    return Low(low.b.to(parts[0].b), low.a.to(parts[0].a))


def _merge_updates(
    given: Mapping[str, Any], keys: Sequence[str], deltas: Sequence[Tensor], tensor: str, seed: int
) -> Tensor:
    """The base method's update of these, which it sees as experts over a base of zeros."""
    checked = api.check_parameters(given["base_method"], given["base_parameters"], len(keys))
    return BoundMethod(given["base_method"], checked, keys, seed=seed).merge(
        tensor, torch.zeros_like(deltas[0]), deltas
    )


def _space_method(name: str, pretty: str, url: str, space: Space) -> Callable[[Any], Any]:
    """Decorator: register a method that merges in an aligned space; the function decorated gives its docstring only."""

    def check(parameters: Mapping[str, Any], experts: int) -> None:
        info = api.describe(parameters["base_method"])
        if info.statistics or info.prepares or info.adapters or not info.needs_base:
            what = f"{name}: base_method cannot be {info.name}"
            raise ValueError(f"{what}: it is to need a base, no factors and no pass over the model, such as ties")
        api.check_parameters(info.name, parameters["base_parameters"], experts)

    def add(function: Any) -> Any:
        def kernel(
            updates: Updates,
            base_method: str = "ties",
            base_parameters: Mapping[str, Any] = MappingProxyType({}),
            lambda_: float = 1.0,
            seed: int = 0,
            factors: Any = None,
        ) -> Tensor:
            given = {"base_method": base_method, "base_parameters": base_parameters, "lambda": lambda_}
            keys, tensor = updates.given, updates.name
            if factors is not None:
                low = _in_space(space, given, keys, [factors[key] for key in keys], tensor, seed)
                return updates.merged(low.b.to(updates.dtype) @ low.a.to(updates.dtype))
            wide, by_id = updates.base.double(), dict(zip(updates.keys, updates.experts))
            deltas = [by_id[key].double() - wide for key in keys]
            return updates.merged(_merge_updates(given, keys, deltas, tensor, seed), lambda_)

        kernel.__doc__ = function.__doc__
        traits = {"random": True, "ordered": True, "check": check, "depends": depends_as_base}
        method(name, pretty=pretty, url=url, factored=partial(_in_space, space), **traits)(kernel)
        return function

    return add


@_space_method("core_space", "Core Space", "https://arxiv.org/abs/2509.17786", core)
def core_space() -> None:
    """Adapters merged by any method in the small space that all their columns and rows span.

    [B_1 … B_K] = U · S_B · R_Bᵀ, [A_1; …; A_K] = R_A · S_A · Vᵀ (singular vectors), M_k = Uᵀ B_k A_k V,
    W = θ0 + λ · U base_method(M_1 … M_K) Vᵀ

    Nothing is lost on the way: U Uᵀ B_k A_k V Vᵀ = B_k A_k. The merged update has rank Σ_k r_k at most. Where an expert
    is no adapter (or changes a tensor as a whole), the base method merges the tensor as it is.
    """


@_space_method("knots", "KnOTS", "https://arxiv.org/abs/2410.19735", decomposed_together)
def knots() -> None:
    """Adapters merged by any method after their updates were decomposed together, so that they share their columns.

    [Δ_1 … Δ_K] = U Σ [V_1ᵀ … V_Kᵀ], W = θ0 + λ · U base_method(Σ V_1ᵀ … Σ V_Kᵀ)

    Directions with σ ≤ 1e-5 · σ₁ are left out. The merged update has rank Σ_k r_k at most. Where an expert is no
    adapter (or changes a tensor as a whole), the base method merges the tensor as it is.
    """


def _linear(given: Mapping[str, Any], keys: Sequence[str], parts: Sequence[Low], tensor: str, seed: int) -> Low:
    weighed = [(part, given["weight"][key]) for key, part in zip(keys, parts) if part.b.shape[1]]
    if len({part.b.shape[1] for part, _ in weighed}) > 1:
        ranks = ", ".join(str(part.b.shape[1]) for part, _ in weighed)
        raise ValueError(f"{tensor}: lora_linear takes adapters of one rank, these have {ranks}")
    if not weighed:
        return Low(parts[0].b, parts[0].a)
    b = torch.stack([part.b * abs(w) ** 0.5 for part, w in weighed]).sum(dim=0)
    a = torch.stack([part.a * math.copysign(abs(w) ** 0.5, w) for part, w in weighed]).sum(dim=0)
    return Low(b * given["lambda"], a)


@method("lora_linear", pretty="LoRA linear", url="https://arxiv.org/abs/2106.09685", factored=_linear)
def lora_linear(updates: Updates, weight: PerExpert[float] = 1.0, lambda_: float = 1.0, factors: Any = None) -> Tensor:
    """Factors of adapters added to each other's, as peft's ``add_weighted_adapter`` does by ``linear``.

    W = θ0 + λ · (Σ_k √(w_k s_k) B_k) (Σ_k √(w_k s_k) A_k), a negative weight as −√|w_k s_k| at A_k

    Products of one expert's B with another's A are part of it: the update of two equal adapters is twice that of their
    sum. It is there as a reference. All adapters have one rank; where an expert is no adapter (or changes a
    tensor as a whole), the weighted sum of task vectors is taken.
    """
    if factors is None:
        return updates.merged(updates.weighted_sum(weight), lambda_)
    by_key = {"weight": dict(zip(updates.keys, weight)), "lambda": lambda_}
    low = _linear(by_key, updates.keys, updates.values(factors), updates.name, 0)
    return updates.merged(low.b.to(updates.dtype) @ low.a.to(updates.dtype))
