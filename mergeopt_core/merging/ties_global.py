"""TIES as first published: trimmed over the whole task vector, signs by the sum, mean of what agrees."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from mergeopt_core.merging.mergekit_api import PerExpert, TensorGroup, method
from mergeopt_core.merging.preparation import GlobalThresholds
from mergeopt_core.merging.trimming import disjoint_merge
from mergeopt_core.merging.updates import Updates, merged

Count = Literal["official", "mergelm", "exact"]


def kept_globally(numel: int, density: float, count: Count) -> int:
    """How many of all n entries are to stay at density d.

    ``official``: ⌊d·n⌋ + 1, ``mergelm``: n − ⌊n·(1 − d)⌋ + 1, ``exact``: ⌊d·n⌋; never more than n. Entries equal to
    the last of them stay too.
    """
    if density >= 1:
        return numel
    if density <= 0:
        return 0
    kept = {"official": int(density * numel) + 1, "mergelm": numel - int(numel * (1 - density)) + 1}
    return min(numel, kept.get(count, int(density * numel)))


class GlobalTies(GlobalThresholds):
    """Thresholds over all tensors in two passes and, where asked for, the majority sign of the whole model in a
    third."""

    def __init__(self, parameters: Mapping[str, Any], keys: Sequence[str], seed: int = 0, cache: Any = None):
        density, count = parameters["density"], parameters["count"]
        labels = {key: f"{count} {density[key]!r}" for key in keys}
        super().__init__(keys, lambda n, key: kept_globally(n, density[key], count), labels, cache=cache)
        self.majority = parameters["zero_sign"] == "majority"
        self._passed, self._signs = 0, 0
        self.threshold_passes = self.passes
        self.passes += int(self.majority)

    def visit(self, tensor_name: str, base: Tensor, experts: Sequence[Tensor]) -> None:
        """Count magnitudes, and in the last pass the signs of the summed trimmed task vectors."""
        if self._passed < self.threshold_passes:
            super().visit(tensor_name, base, experts)
        elif base.is_floating_point():
            anchor = base.to(torch.float32)
            summed = torch.zeros_like(anchor)
            for _, key, expert in sorted((str(key), key, expert) for key, expert in zip(self.keys, experts)):
                delta = expert.to(torch.float32) - anchor
                summed += delta * (delta.abs() >= self.thresholds[key])
            self._signs += int(torch.sign(summed).sum(dtype=torch.float64))

    def end_pass(self) -> None:
        """All tensors have been visited."""
        if self._passed < self.threshold_passes:
            super().end_pass()
        self._passed += 1

    def finish(self) -> dict[str, Any]:
        """Thresholds by expert, and the sign that an exactly cancelling sum is given."""
        return {**super().finish(), "zero_sign": -1 if self.majority and self._signs < 0 else 1}


@method("ties_global", pretty="TIES (global trim)", url="https://arxiv.org/abs/2306.01708", prepare=GlobalTies)
def ties_global(
    group: TensorGroup,
    lambda_: float = 1.0,
    density: PerExpert[float] = 0.2,  # type: ignore[assignment]
    count: Count = "official",
    merge: Literal["mean", "sum", "max"] = "mean",
    zero_sign: Literal["positive", "majority"] = "positive",
    prepared: Any = None,
) -> Tensor:
    """TIES with one magnitude threshold for an expert's whole task vector instead of one a tensor.

    τ_k = Δ_k ⊙ [|Δ_k| ≥ t_k], γ = sign(Σ_k τ_k), W = θ0 + λ · mean of the non-zero τ_k whose sign is γ

    t_k is the magnitude of the last of the ``density`` · n largest entries over all tensors together (``count`` says
    how the product is rounded), found by two passes over the checkpoints. ``merge`` takes the mean, the sum or the
    largest magnitude of what agrees. Where Σ_k τ_k is exactly 0, γ is + or, as in the official code and at the price
    of a third pass, the majority sign of the whole model.
    """
    updates = Updates(group)
    if prepared is None:
        raise ValueError(f"{updates.name}: ties_global needs the thresholds of a pass over all tensors (see prepare)")
    thresholds = prepared["thresholds"]
    trimmed = torch.stack([d * (d.abs() >= thresholds[key]) for d, key in zip(updates, updates.keys)])
    if merge == "max":
        update = largest_agreeing(trimmed, prepared["zero_sign"])
    else:
        ones = [1.0] * len(updates)
        update = disjoint_merge(trimmed, ones, merge == "mean", zero_sign=prepared["zero_sign"])
    return merged(updates, update, lambda_)


def largest_agreeing(deltas: Tensor, zero_sign: int = 1) -> Tensor:
    """The entry of largest magnitude among those of the elected sign; ``[K, *shape]`` → ``[*shape]``."""
    elected = deltas.sum(dim=0).sign()
    elected[elected == 0] = zero_sign
    return (deltas * elected).clamp(min=0).amax(dim=0) * elected
