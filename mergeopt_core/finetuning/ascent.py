"""The inner maximisation: from a sampled offset uphill on (α, K, z), and how far the sample falls short of its end.

max over α ∈ A, K ∈ {1, …, K_max}, ‖z − μ‖ ≤ R of L(θ + (Kα − 1) z), with R² = 2 Σ b², the expected squared norm of the
noise (MergOPT, Eq. 8). Each step goes along the normalised gradient for z and along its sign for |c| = |Kα − 1|, then
projects: |c| onto the nearest value that some (α, K) gives, with z reflected where the sign of c changes by that, and z
onto the ball.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from mergeopt_core.finetuning.offset import Offset

if TYPE_CHECKING:
    from mergeopt_core.finetuning.mergopt import MergOPT


@dataclass(frozen=True)
class Shortfall:
    """Loss at the sampled offset, and the largest loss that ascent found from it."""

    sampled: float
    worst: float

    @property
    def gap(self) -> float:
        """How far the sample falls short of the found worst case: 0 or more."""
        return self.worst - self.sampled

    @staticmethod
    def mean(found: Sequence[Shortfall]) -> Shortfall:
        """The average over several samples."""
        n = len(found)
        return Shortfall(sum(f.sampled for f in found) / n, sum(f.worst for f in found) / n)


class Ascent:
    """A few projected ascent steps; holds z in memory (one more copy of what moves) while it runs."""

    def __init__(self, opt: MergOPT, steps: int, size: float):
        if steps < 1 or not size >= 0:
            raise ValueError(
                f"ascent_steps is {steps} and ascent_size {size}: give 1 step or more, a size of 0 or more"
            )
        self.opt, self.steps, self.size = opt, int(steps), float(size)

    def run(self, start: Offset, closure: Callable[[], Any]) -> tuple[Offset, Shortfall, Any]:
        """Climb from the sampled offset; the gradients left behind are those at the last point.

        Returns:
            The last point's α and K, the losses met on the way, and the closure's loss at the last point.
        """
        perturbation = self.opt.perturbation
        z = list(self.opt.noise(start).values())
        point, losses = start, []
        try:
            for step in range(self.steps + 1):
                self.opt.zero_grad()
                loss = self._loss(point, z, closure)
                losses.append(float(loss.detach() if isinstance(loss, Tensor) else loss))
                if step < self.steps:
                    point = self._climb(point, z)
        finally:
            perturbation.restore()
        return point, Shortfall(losses[0], max(losses)), loss

    def _loss(self, point: Offset, z: list[Tensor], closure: Callable[[], Any]) -> Any:
        c = point.coefficient
        self.opt.perturbation.move(lambda i, weight, out: torch.add(weight, z[i], alpha=c, out=out))
        with self.opt.perturbation.with_gradients(), torch.enable_grad():
            return closure()

    @torch.no_grad()
    def _climb(self, point: Offset, z: list[Tensor]) -> Offset:
        """One projected step on z, in place, and on (α, K)."""
        gradients = self.opt.perturbation.gradients()
        radius = math.sqrt(sum(2.0 * self.opt.scale_of(i) ** 2 * zi.numel() for i, zi in enumerate(z)))
        slope = sum(float((g.double() * zi.double()).sum()) for g, zi in zip(gradients, z) if g is not None)  # dL/dc
        length = math.sqrt(sum(float(g.double().square().sum()) for g in gradients if g is not None))
        if length > 0:
            stride = self.size * radius / length * (1.0 if point.coefficient >= 0 else -1.0)
            for g, zi in zip(gradients, z):
                if g is not None:
                    zi.add_(g.to(zi.dtype), alpha=stride)
        end = self._snap(point, slope if point.coefficient >= 0 else -slope)
        if end.coefficient * point.coefficient < 0:
            for zi in z:
                zi.neg_()
        self._project(z, radius)
        return end

    def _project(self, z: list[Tensor], radius: float) -> None:
        loc = self.opt.loc
        length = math.sqrt(sum(float((zi.double() - loc).square().sum()) for zi in z))
        if length > radius:
            for zi in z:
                zi.sub_(loc).mul_(radius / length).add_(loc)

    def _snap(self, point: Offset, slope: float) -> Offset:
        """(α, K) whose |Kα − 1| is nearest to a step up its slope."""
        grid = [(abs(k * a - 1.0), a, k) for a in self.opt.alphas for k in range(1, self.opt.max_tasks + 1)]
        aim = abs(point.coefficient)
        if slope != 0:
            aim += math.copysign(self.size * max(grid)[0], slope)
        _, alpha, tasks = min(grid, key=lambda g: (abs(g[0] - aim), g[2], g[1]))
        return Offset(point.step, alpha, tasks, point.seed)
