"""WUDI-Merging: a merged update that disturbs each expert's own outputs least, found by gradient descent."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from mergeopt_core.merging.mergekit_api import PerExpert, TensorGroup, method
from mergeopt_core.merging.updates import Rest, Updates, is_selected, merged, rest_update


def interference(update: Tensor, deltas: Sequence[Tensor]) -> Tensor:
    """L(m) = Σ_k ‖(m − Δ_k) Δ_kᵀ‖² / ‖Δ_k‖² of ``[out, in]`` matrices; zero task vectors have no term."""
    terms = [((update - d) @ d.mT).square().sum() / d.square().sum() for d in deltas if bool(d.any())]
    return torch.stack(terms).sum() if terms else update.new_zeros(())


def normal_equations(deltas: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """A ``[in, in]`` and B ``[out, in]`` with ∇L(m) = 2 (m A − B): A = Σ_k G_k, B = Σ_k Δ_k G_k, G_k = Δ_kᵀΔ_k /
    ‖Δ_k‖²."""
    m, n = deltas[0].shape
    a, b = deltas[0].new_zeros(n, n), deltas[0].new_zeros(m, n)
    for delta in deltas:
        squared = delta.square().sum()
        if float(squared) == 0:
            continue
        gram = (delta.mT @ delta) / squared
        a += gram
        b += delta @ gram
    return a, b


def descend(
    deltas: Sequence[Tensor],
    iterations: int,
    lr: float,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    gradient: Literal["gram", "autograd"] = "gram",
) -> Tensor:
    """Adam on L(m) from m = Σ_k Δ_k ``[out, in]``, for a number of steps at a constant rate."""
    update = torch.stack(list(deltas)).sum(dim=0)
    a, b = normal_equations(deltas) if gradient == "gram" else (None, None)
    mean, square = torch.zeros_like(update), torch.zeros_like(update)
    for step in range(1, iterations + 1):
        if a is not None and b is not None:
            grad = torch.addmm(b, update, a, beta=-2.0, alpha=2.0)
        else:
            with torch.enable_grad():
                leaf = update.clone().requires_grad_()
                (grad,) = torch.autograd.grad(interference(leaf, deltas), leaf)
        mean.lerp_(grad, 1 - betas[0])
        square.mul_(betas[1]).addcmul_(grad, grad, value=1 - betas[1])
        denominator = (square.sqrt() / (1 - betas[1] ** step) ** 0.5).add_(eps)
        update.addcdiv_(mean, denominator, value=-lr / (1 - betas[0] ** step))
    return update


@method("wudi", pretty="WUDI-Merging", url="https://arxiv.org/abs/2503.08099")
def wudi(
    group: TensorGroup,
    weight: PerExpert[float] = 1.0,  # type: ignore[assignment]
    lambda_: float = 1.0,
    iterations: int = 300,
    lr: float = 1e-5,
    beta1: float = 0.9,
    beta2: float = 0.999,
    eps: float = 1e-8,
    tensors: str = "linear",
    rest: Rest = "mean",
    rest_scale: float = 1.0,
    gradient: Literal["gram", "autograd"] = "gram",
) -> Tensor:
    """Per linear layer, Adam on the interference with every expert, starting at the sum of task vectors.

    L(m) = Σ_k ‖(m − Δ_k) Δ_kᵀ‖² / ‖Δ_k‖², W = θ0 + λ · m after ``iterations`` steps of rate ``lr`` from m = Σ_k Δ_k

    ∇L = 2 (m A − B) with A = Σ_k G_k, B = Σ_k Δ_k G_k, G_k = Δ_kᵀΔ_k / ‖Δ_k‖², computed once; ``gradient: autograd``
    goes through the loss instead, to the same trajectory. The rate is absolute, an entry moves by about lr ·
    iterations at most, so the result is not the minimiser of L and depends on the size of the task vectors. ``weight``
    counts in tensors that are not linear weights only, which take ``rest`` (weighted mean, sum, or the base as in the
    official code).
    """
    updates = Updates(group)
    if not is_selected(updates.name, updates.shape, tensors):
        return merged(updates, rest_update(updates, updates.values(weight), rest, rest_scale), lambda_)
    update = descend(list(updates), iterations, lr, (beta1, beta2), eps, gradient)
    return merged(updates, update, lambda_)
