"""One step's offset, and the inner maximisation: from a sampled one uphill on (α, K, z).

max over α ∈ A, K ∈ {1, …, K_max}, ‖z − μ‖ ≤ R of L(θ + (Kα − 1) z), with R² = 2 Σ b², the expected squared norm of the
noise (MergOPT, Eq. 8). Each step goes along the normalised gradient for z and along its sign for |c| = |Kα − 1|, then
projects: |c| onto the nearest value that some (α, K) gives, with z reflected where the sign of c changes by that, and z
onto the ball.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mergeopt_core.finetuning.perturbation import Perturbation
from mergeopt_core.finetuning.sampling import mixed


@dataclass(frozen=True)
class Offset:
    """One optimizer step's offset: α, K, and the seed that z is drawn from, so that it can be drawn again."""

    step: int
    alpha: float
    tasks: int
    seed: int

    @property
    def coefficient(self) -> float:
        """Kα − 1."""
        return self.tasks * self.alpha - 1.0

    def key(self, expert: int = 0) -> int:
        """Name of the noise stream: of the one z, or with the exact own vector of another expert's."""
        return mixed(self.seed, expert)


@dataclass(frozen=True)
class Shortfall:
    """Loss at the sampled offset, and the largest loss that ascent found from it."""

    sampled: float
    worst: float

    @property
    def gap(self) -> float:
        """How far the sample falls short of the found worst case: 0 or more."""
        return self.worst - self.sampled


@dataclass(frozen=True)
class Ascent:
    """A few projected ascent steps.

    Args:
        alphas: A.
        max_tasks: K_max.
        loc: μ, the ball's centre.
        steps: Steps, one gradient each.
        size: Step length, as a share of R and of the range of Kα − 1.

    Raises:
        ValueError: No step, or a negative size.
    """

    alphas: Sequence[float]
    max_tasks: int
    loc: float
    steps: int
    size: float

    def __post_init__(self) -> None:
        if self.steps < 1 or not self.size >= 0:
            raise ValueError(
                f"ascent_steps is {self.steps} and ascent_size {self.size}: give 1 step or more, a size of 0 or more"
            )

    def run(
        self, perturbation: Perturbation, start: Offset, z: list[Tensor], radius: float, closure: Callable[[], Any]
    ) -> tuple[Offset, Shortfall, Any]:
        """Climb from the sampled offset; the gradients left behind are those at the last point.

        Args:
            perturbation: The weights that move.
            start: The sampled α and K.
            z: The sampled z by weight, changed in place.
            radius: R.
            closure: Clears the gradients, computes a loss, runs backward and returns the loss.

        Returns:
            The last point's α and K, the losses met on the way, and the closure's loss at the last point.
        """
        point, losses = start, []
        try:
            for step in range(self.steps + 1):
                c = point.coefficient
                perturbation.move(lambda i, weight, out: torch.add(weight, z[i], alpha=c, out=out))  # noqa: B023
                with perturbation.with_gradients(), torch.enable_grad():
                    loss = closure()
                losses.append(float(loss.detach() if isinstance(loss, Tensor) else loss))
                if step < self.steps:
                    point = self._climb(point, z, radius, perturbation.gradients())
        finally:
            perturbation.restore()
        return point, Shortfall(losses[0], max(losses)), loss

    @torch.no_grad()
    def _climb(self, point: Offset, z: list[Tensor], radius: float, gradients: list[Tensor | None]) -> Offset:
        """One projected step on z, in place, and on (α, K)."""
        sign = 1.0 if point.coefficient >= 0 else -1.0
        known = [(g, zi) for g, zi in zip(gradients, z) if g is not None]
        slope = sum(float((g.double() * zi.double()).sum()) for g, zi in known)  # dL/dc
        length = math.sqrt(sum(float(g.double().square().sum()) for g, _ in known))
        if length > 0:
            for g, zi in known:
                zi.add_(g.to(zi.dtype), alpha=self.size * radius / length * sign)
        end = self._nearest(point, slope * sign)
        if end.coefficient * point.coefficient < 0:
            for zi in z:
                zi.neg_()
        length = math.sqrt(sum(float((zi.double() - self.loc).square().sum()) for zi in z))
        if length > radius:
            for zi in z:
                zi.sub_(self.loc).mul_(radius / length).add_(self.loc)
        return end

    def _nearest(self, point: Offset, slope: float) -> Offset:
        """(α, K) whose |Kα − 1| is nearest to a step up its slope."""
        grid = [(abs(k * a - 1.0), a, k) for a in self.alphas for k in range(1, self.max_tasks + 1)]
        aim = abs(point.coefficient)
        if slope != 0:
            aim += math.copysign(self.size * max(grid)[0], slope)
        _, alpha, tasks = min(grid, key=lambda g: (abs(g[0] - aim), g[2], g[1]))
        return Offset(point.step, alpha, tasks, point.seed)
