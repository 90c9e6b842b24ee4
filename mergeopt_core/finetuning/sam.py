"""Sharpness-aware minimisation: gradients taken uphill, within a ball around θ.

SAM (Foret et al. 2021): ε = ρ g / ‖g‖ with g = ∇L(θ), one norm over all weights.
ASAM (Kwon et al. 2021): ε = ρ T² g / ‖T g‖ with T = |θ| + η on weights and 1 elsewhere (authors' code), or, in the
``squared`` form of a wide-spread port, T = |θ| on all parameters and no η.
SAFT-Merge trains experts with these two.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from mergeopt_core.finetuning.perturbation import PerturbedOptimizer


class SAM(PerturbedOptimizer):
    """Wraps any torch optimizer so that it steps with gradients taken at θ + ρ g / ‖g‖.

    ``step(closure)`` runs the closure twice. The closure computes a loss, runs backward and returns the loss; gradients
    are cleared before each run.

    Args:
        base: The optimizer that steps at θ.
        rho: Radius ρ of the ball.
        which: The weights that move, as for ``PerturbedOptimizer``.

    Raises:
        ValueError: ``rho`` < 0, or patterns that match nothing.
    """

    tiny = 1e-12
    """Added to the norm, as the reference code does."""
    passes = 2
    """Gradients taken for one step."""

    def __init__(self, base: Optimizer, rho: float = 0.05, **which: Any):
        if not rho >= 0:
            raise ValueError(f"rho is {rho}: the radius cannot be negative")
        super().__init__(base, **which)
        self.rho = float(rho)

    def element_size(self, i: int, weight: Tensor) -> Tensor | None:
        """T of the i-th weight; None stands for 1."""
        return None

    def gradients(self, closure: Callable[[], Any]) -> Any:
        """Take the gradients at θ + ε; the closure's loss at θ."""
        self.zero_grad()
        with self.perturbation.with_gradients(), torch.enable_grad():
            loss = closure()
        self.climb()
        try:
            with torch.enable_grad():
                closure()
        finally:
            self.restore()
        return loss

    @torch.no_grad()
    def climb(self) -> None:
        """From gradients at θ to weights at θ + ε, with the gradients cleared (``restore`` brings θ back)."""
        gradients, weights = self.perturbation.gradients(), self.perturbation.weights()
        norms = []
        for i, (g, weight) in enumerate(zip(gradients, weights)):
            if g is not None:
                size, dtype = self.element_size(i, weight), torch.promote_types(g.dtype, torch.float32)
                norm = torch.linalg.vector_norm(g if size is None else size * g, dtype=dtype)
                norms.append(norm.to(weights[0].device))
        total = self.perturbation.norm(torch.linalg.vector_norm(torch.stack(norms))) if norms else 0.0
        factor = self.rho / (total + self.tiny)

        def fill(i: int, weight: Tensor, out: Tensor) -> None:
            g = gradients[i]
            if g is None or self.rho == 0:
                out.copy_(weight)
                return
            size = self.element_size(i, weight)
            torch.add(weight, g if size is None else g.mul_(size).mul_(size), alpha=factor, out=out)
            gradients[i] = None

        self.perturbation.move(fill)
        self.zero_grad()
        self.ready = True


class ASAM(SAM):
    """SAM with a ball that follows each weight's size: θ + ρ T² g / ‖T g‖.

    Args:
        base: The optimizer that steps at θ.
        rho: Radius ρ; about ten times SAM's.
        eta: η in T = |θ| + η (normalised form).
        form: normalised: T = |θ| + η on parameters with "weight" in their name (without names: of two or more
            dimensions), 1 on the others; squared: T = |θ| on all parameters, no η.
        which: The weights that move, as for ``PerturbedOptimizer``.

    Raises:
        ValueError: ``rho`` or ``eta`` < 0, an unknown form, or patterns that match nothing.
    """

    def __init__(self, base: Optimizer, rho: float = 0.5, eta: float = 0.01, form: str = "normalised", **which: Any):
        if not eta >= 0:
            raise ValueError(f"eta is {eta}: it cannot be negative")
        if form not in ("normalised", "squared"):
            raise ValueError(f"unknown form {form!r}: valid names are normalised, squared")
        super().__init__(base, rho, **which)
        self.eta, self.form = float(eta), form
        self.tiny = 1e-16 if form == "normalised" else 1e-12

    def element_size(self, i: int, weight: Tensor) -> Tensor | None:
        """T of the i-th weight; None stands for 1."""
        if self.form == "squared":
            return weight.abs()
        name = self.perturbation.moved[i].name
        sized = "weight" in name if name else weight.dim() > 1
        return weight.abs() + self.eta if sized else None
