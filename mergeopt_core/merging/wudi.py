"""WUDI-Merging: a merged update that disturbs each expert's own outputs least, found by gradient descent."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

import torch
from torch import Tensor

from mergeopt_core.merging.matrices import Rest, is_selected, rest_update
from mergeopt_core.merging.mergekit_api import PerExpert, method
from mergeopt_core.merging.updates import Updates


def interference(update: Tensor, deltas: Sequence[Tensor]) -> Tensor:
    """L(m) = Σ_k ‖(m − Δ_k) Δ_kᵀ‖² / ‖Δ_k‖² of ``[out, in]`` matrices; zero task vectors have no term."""
    terms = [((update - d) @ d.mT).square().sum() / d.square().sum() for d in deltas if bool(d.any())]
    return torch.stack(terms).sum() if terms else update.new_zeros(())


def gradient_of(deltas: Sequence[Tensor]) -> Callable[[Tensor], Tensor]:
    """∇L(m) = 2 (m A − B) ``[out, in]``: A = Σ_k G_k, B = Σ_k Δ_k G_k, G_k = Δ_kᵀΔ_k / ‖Δ_k‖², made once.

    For layers much wider than high, m A is (m Vᵀ) V with V = [Δ_1/‖Δ_1‖; …] ``[K·out, in]``, which is then cheaper.
    """
    n = deltas[0].shape[1]
    deltas = [delta for delta in deltas if bool(delta.any())]
    if not deltas:
        return torch.zeros_like
    scaled = [delta / torch.linalg.matrix_norm(delta) for delta in deltas]
    b, v = torch.zeros_like(deltas[0]), torch.cat(scaled)  # [K·out, in]
    if 2 * len(v) < n:
        for delta, part in zip(deltas, scaled):
            b += (delta @ part.mT) @ part
        return lambda update: torch.addmm(b, update @ v.mT, v, beta=-2.0, alpha=2.0)
    a = b.new_zeros(n, n)
    for delta, part in zip(deltas, scaled):
        gram = part.mT @ part
        a += gram
        b += delta @ gram
    return lambda update: torch.addmm(b, update, a, beta=-2.0, alpha=2.0)


def _through_the_loss(deltas: Sequence[Tensor]) -> Callable[[Tensor], Tensor]:
    def gradient(update: Tensor) -> Tensor:
        with torch.enable_grad():
            leaf = update.clone().requires_grad_()
            loss = interference(leaf, deltas)
            return torch.autograd.grad(loss, leaf)[0] if loss.requires_grad else torch.zeros_like(update)

    return gradient


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
    slope = gradient_of(deltas) if gradient == "gram" else _through_the_loss(deltas)
    return adam(update, slope, iterations, lr, betas, eps)


def adam(
    update: Tensor,
    slope: Callable[[Tensor], Tensor],
    iterations: int,
    lr: float,
    betas: tuple[float, float],
    eps: float,
) -> Tensor:
    """``update`` after a number of Adam steps along ``slope(update)``, in place (Kingma & Ba 2015)."""
    mean, square = torch.zeros_like(update), torch.zeros_like(update)
    for step in range(1, iterations + 1):
        grad = slope(update)
        mean.lerp_(grad, 1 - betas[0])
        square.mul_(betas[1]).addcmul_(grad, grad, value=1 - betas[1])
        denominator = (square.sqrt() / (1 - betas[1] ** step) ** 0.5).add_(eps)
        update.addcdiv_(mean, denominator, value=-lr / (1 - betas[0] ** step))
    return update


@method("wudi", pretty="WUDI-Merging", url="https://arxiv.org/abs/2503.08099")
def wudi(
    updates: Updates,
    weight: PerExpert[float] = 1.0,
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
    if not is_selected(updates.name, updates.shape, tensors):
        return updates.merged(rest_update(updates, weight, rest, rest_scale), lambda_)
    return updates.merged(descend(list(updates), iterations, lr, (beta1, beta2), eps, gradient), lambda_)
