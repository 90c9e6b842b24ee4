"""PCB: parameters compete within and between experts, losers are dropped and winners weigh by how clearly they won."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from mergeopt_core.merging.mergekit_api import PerExpert, method
from mergeopt_core.merging.trimming import Models, global_thresholds
from mergeopt_core.merging.updates import Updates

OUTLIERS = 0.0001
"""Share of smallest and of largest magnitudes that are clamped, as in the published code."""

Bounds = Mapping[str, tuple[float, float]]


def balance(deltas: Sequence[Tensor], bounds: Sequence[tuple[float, float]]) -> list[Tensor]:
    """β_k = exp(K · norm(|Δ_k|)²) ⊙ tanh(Δ_k ⊙ Σ_j Δ_j) ``[*shape]`` each, norm from its bounds to [0, 1]."""
    summed, count = torch.stack(list(deltas)).sum(dim=0), len(deltas)
    balances = []
    for delta, (low, high) in zip(deltas, bounds):
        inside = delta.abs().clamp(low, high).sub_(low).div_(max(high - low, 1e-30))
        balances.append(inside.square_().mul_(count).exp_().mul_(torch.tanh(delta * summed)))
    return balances


def _prepare(models: Models, parameters: Mapping[str, Any], keys: Sequence[str], seed: int, cache: Any) -> Any:
    """By expert, over the whole model: the bounds of |Δ_k|, the β_k from which on entries stay, and the largest β_k."""

    def thresholds(of: Models, label: str, kept: Any, cache: Any = None) -> dict[str, float]:
        return global_thresholds(of, keys, kept, dict.fromkeys(keys, label), cache=cache)

    def competing() -> Any:
        for name, base, experts in models():
            if base.is_floating_point():
                deltas = [expert.float() - base.float() for expert in experts]
                found = balance([deltas[k] for k in order], [bounds[keys[k]] for k in order])
                by_key = {keys[k]: one.clamp_(min=0) for k, one in zip(order, found)}
                yield name, torch.zeros_like(deltas[0]), [by_key[key] for key in keys]

    order = sorted(range(len(keys)), key=lambda k: str(keys[k]))  # a sum's bits, in the order of the kernel
    low = thresholds(models, "pcb low", lambda n, key: n - int(n * OUTLIERS), cache)
    high = thresholds(models, "pcb high", lambda n, key: n - max(0, int(n * (1 - OUTLIERS) - 1)), cache)
    bounds = {key: (low[key], high[key]) for key in keys}
    density = parameters["density"]
    least = thresholds(competing, "", lambda n, key: max(1, n - int(n * (1 - density))))
    most = thresholds(competing, "", lambda n, key: 1)
    return {"bounds": bounds, "range": {key: (least[key], most[key]) for key in keys}}


@method("pcb", pretty="PCB-Merging", url="https://arxiv.org/abs/2410.02396", prepare=_prepare)
def pcb(
    updates: Updates,
    weight: PerExpert[float] = 1.0,
    lambda_: float = 1.0,
    density: float = 0.1,
    prepared: Any = None,
) -> Tensor:
    """Parameter competition balancing: entries that matter within an expert and agree between experts, by how much.

    β_k = exp(K · norm(|Δ_k|)²) ⊙ tanh(Δ_k ⊙ Σ_j Δ_j), c_k = norm(max(β_k, q_k)),
    W = θ0 + λ · Σ_k w_k c_k ⊙ Δ_k / Σ_k c_k

    norm maps the values of the whole model to [0, 1], |Δ_k| without its 0.01 % smallest and largest; q_k is the β_k of
    the last of the ``density`` · n entries with the largest, so that c_k is 0 for all others. These are the published
    code's functions; all is found by passes over the checkpoints. Entries with β_k ≤ 0 are dropped at any density.
    """
    if prepared is None:
        raise ValueError(f"{updates.name}: pcb needs a pass over all tensors (see prepare)")
    bounds, ranges = updates.values(prepared["bounds"]), updates.values(prepared["range"])
    deltas = list(updates)
    above, below = torch.zeros_like(updates.base), torch.zeros_like(updates.base)
    for delta, one, (low, high), (least, most), share in zip(deltas, balance(deltas, bounds), bounds, ranges, weight):
        score = one.clamp(least, most).sub_(least).div_(max(most - least, 1e-30))
        above += delta.sign() * delta.abs().clamp(low, high) * score * share
        below += score
    return updates.merged(above.div_(below.clamp_(min=1e-12)), lambda_)
