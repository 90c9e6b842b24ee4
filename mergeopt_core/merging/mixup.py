"""Mixup Model Merge (M3): drawn or ranked weights for the experts, inside a base method."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, Optional

import numpy as np
import torch
from torch import Tensor

from mergeopt_core.merging.dare import drop
from mergeopt_core.merging.mergekit_api import PerExpert, method
from mergeopt_core.merging.ties import kept_globally
from mergeopt_core.merging.trimming import Models, disjoint_merge, global_thresholds, trim
from mergeopt_core.merging.updates import Updates
from mergeopt_core.randomness import tensor_seed

Weights = Literal["auto", "beta", "dirichlet", "p_series"]
BaseMethod = Literal["average", "task_arithmetic", "ties", "dare", "dare_ties"]


def mixing_weights(kind: Weights, count: int, *, alpha: float = 1.0, p: float = 1.0, seed: int = 0) -> list[float]:
    """λ_1 … λ_K in the order of the experts, summing to 1; drawn once per merge from the recipe's seed.

    ``beta``: λ ~ Beta(α, α) and 1 − λ, for two. ``dirichlet``: Dirichlet(α, …, α), our extension to more, which for
    two is ``beta``. ``p_series``: k^(−p) / Σ_j j^(−p). ``auto``: beta for two, dirichlet for more. α = 0 is the limit
    in which one expert gets everything: the first (the published code's choice).
    """
    if kind == "p_series":
        powers = np.arange(1, count + 1, dtype=np.float64) ** -p
        return [float(w) for w in powers / powers.sum()]
    if count == 1 or alpha <= 0:
        return [1.0] + [0.0] * (count - 1)
    random = np.random.Generator(np.random.PCG64(tensor_seed(seed, "mixup")))
    if count == 2:
        first = float(random.beta(alpha, alpha))
        return [first, 1.0 - first]
    return [float(w) for w in random.dirichlet([alpha] * count)]


def interpolate_agreeing(deltas: Tensor, weights: Sequence[float]) -> Tensor:
    """TIES with λ in place of the mean: Σ λ_k Δ_k / Σ λ_k over the experts of the elected sign; ``[K, …]`` → ``[…]``.

    Signs are elected by the unweighted sum. An entry that one expert alone keeps is taken whole, whatever its λ; where
    the agreeing λ add up to 0, the plain mean is taken.
    """
    elected = deltas.sum(dim=0)
    agree = torch.where(elected >= 0, deltas > 0, deltas < 0)
    lambdas = torch.tensor(list(weights), dtype=deltas.dtype, device=deltas.device).view(-1, *[1] * (deltas.dim() - 1))
    divisor = (lambdas * agree).sum(dim=0)
    mixed = (deltas * agree * lambdas).sum(dim=0) / torch.where(divisor == 0, 1.0, divisor)
    return torch.where(divisor == 0, disjoint_merge(deltas, [1.0] * len(deltas), True), mixed)


def _prepare(models: Models, parameters: Mapping[str, Any], keys: Sequence[str], seed: int, cache: Any) -> Any:
    base_method, density, rates = (parameters[key] for key in ("base_method", "density", "drop_rate"))
    if not base_method.endswith("ties") or parameters["trim_scope"] != "global":
        return None

    def kept(n: int, key: str) -> int:
        return kept_globally(n, density[key], "mergelm")

    def dropped(delta: Tensor, key: str, tensor: str) -> Tensor:
        return drop(delta, seed, key, tensor, rates[key])

    labels = {key: f"mergelm {density[key]!r}" for key in keys}
    transform = dropped if base_method == "dare_ties" else None
    return {"thresholds": global_thresholds(models, keys, kept, labels, transform=transform, cache=cache)}


def _check(parameters: Mapping[str, Any], experts: int) -> None:
    if parameters["weights"] == "beta" and experts > 2:
        raise ValueError(f"mixup: beta weights are for two experts, not {experts}: use weights p_series or dirichlet")
    if parameters["base_method"] == "average" and parameters["scale"] != 1:
        raise ValueError("mixup: an average has no scale: use base_method task_arithmetic")


def _weighted_by(parameters: Mapping[str, Any], experts: int) -> Literal["statement", "rank", "draw"]:
    stated = parameters["weight"]
    whole = None not in stated if isinstance(stated, (list, tuple)) else stated is not None
    if whole or experts == 1:
        return "statement"
    return "rank" if parameters["weights"] == "p_series" else "draw"


def _depends(parameters: Mapping[str, Any], experts: int) -> tuple[bool, bool]:
    """On the order where λ is drawn or falls with the rank; on the seed where λ is drawn or entries are dropped."""
    by, dropped = _weighted_by(parameters, experts), parameters["base_method"].startswith("dare")
    order = by == "draw" or (by == "rank" and parameters["p"] != 0)
    return order, dropped or (by == "draw" and parameters["alpha"] > 0)


def _drawn(parameters: Mapping[str, Any], experts: int, seed: int) -> dict[str, float]:
    """λ of the first of two experts, or λ_1 … λ_K by number."""
    if _weighted_by(parameters, experts) != "draw":
        return {}
    lambdas = mixing_weights(parameters["weights"], experts, alpha=parameters["alpha"], seed=seed)
    return {"lambda": lambdas[0]} if experts == 2 else {f"lambda_{k}": one for k, one in enumerate(lambdas, 1)}


@method(
    "mixup",
    pretty="Mixup Model Merge (M3)",
    url="https://arxiv.org/abs/2502.15434",
    random=True,
    ordered=True,
    prepare=_prepare,
    check=_check,
    depends=_depends,
    drawn=_drawn,
)
def mixup(
    updates: Updates,
    weights: Weights = "auto",
    alpha: float = 1.0,
    p: float = 1.0,
    weight: PerExpert[Optional[float]] = None,
    scale: float = 1.0,
    base_method: BaseMethod = "task_arithmetic",
    density: PerExpert[float] = 0.5,
    trim_scope: Literal["global", "tensor"] = "global",
    drop_rate: PerExpert[float] = 0.2,
    seed: int = 0,
    prepared: Any = None,
) -> Tensor:
    """Mixing weights in place of equal ones.

    W = θ0 + s · Σ_k λ_k Δ_k; two experts: λ ~ Beta(α, α) and 1 − λ, drawn once a merge; p-series: λ_k = k^(−p) / Σ_j
    j^(−p)

    More than two experts: p-series over the order in which the experts stand in the recipe, or Dirichlet(α, …, α),
    which is ours; or ``weight`` states the λ_k. ``base_method``: ``average`` (s = 1), ``task_arithmetic``, ``ties``
    (trimmed to ``density`` over the whole task vector or per tensor, signs by the unweighted sum; what several agree
    on is interpolated, Σ λ_k Δ_k / Σ λ_k, what one alone keeps is taken whole), ``dare`` and ``dare_ties`` (entries
    dropped at ``drop_rate`` and the others divided by 1 − p first).
    """
    drawn = updates.values(dict(zip(updates.given, mixing_weights(weights, len(updates), alpha=alpha, p=p, seed=seed))))
    lambdas = [one if stated is None else float(stated) for one, stated in zip(drawn, weight)]
    deltas = list(updates)
    if base_method.startswith("dare"):
        of = zip(deltas, updates.keys, drop_rate)
        deltas = [drop(delta, seed, key, updates.name, rate) for delta, key, rate in of]
    if not base_method.endswith("ties"):
        update = torch.zeros_like(updates.base)
        for delta, share in zip(deltas, lambdas):
            update.add_(delta, alpha=share)
        return updates.merged(update, scale)
    if trim_scope == "tensor":
        trimmed = [trim(delta, share) for delta, share in zip(deltas, density)]
    elif prepared is None:
        raise ValueError(f"{updates.name}: a global trim needs a pass over all tensors first (see prepare)")
    else:
        limits = updates.values(prepared["thresholds"])
        trimmed = [delta * (delta.abs() >= limit) for delta, limit in zip(deltas, limits)]
    return updates.merged(interpolate_agreeing(torch.stack(trimmed), lambdas), scale)
