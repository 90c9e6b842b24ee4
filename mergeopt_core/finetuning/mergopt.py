"""MergOPT: gradients taken where a merge with others would put the weights.

With z ~ Laplace(μ, b) per element, α ~ Uniform(A) and K ~ Uniform{1, …, K_max} per optimizer step,

    θ ← base_step(θ, ∇L(θ + (Kα − 1) z)).

Task Arithmetic with coefficient α over K experts puts an expert's weights at θ0 + α Σ_j Δ_j; where all K task vectors
are alike, that is θ + (Kα − 1) Δ (MergOPT, Algorithm 1 and Eq. 5; code: Yangqun123456/MergOPT).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from mergeopt_core.finetuning.perturbation import Perturbation, PerturbedOptimizer
from mergeopt_core.finetuning.sampling import DISTRIBUTIONS, add_noise, mixed, noise_like
from mergeopt_core.finetuning.selection import select

ALPHAS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6)
MAX_TASKS = 7
SCALE = 5e-4


@dataclass(frozen=True)
class Offset:
    """What fixes one step's offset: (Kα − 1) z with z drawn from ``seed``."""

    step: int
    alpha: float
    tasks: int
    seed: int

    @property
    def coefficient(self) -> float:
        """Kα − 1."""
        return self.tasks * self.alpha - 1.0


class MergOPT(PerturbedOptimizer):
    """Wraps any torch optimizer so that it steps with gradients taken at θ + (Kα − 1) z.

    Args:
        base: The optimizer that steps at θ.
        alphas: Merge coefficients A that α is drawn from.
        max_tasks: K_max, the largest number of experts merged.
        loc: Mean μ of an element of z.
        scale: Laplace scale b of z, in the weights' own units.
        distribution: laplace, or gaussian of the same standard deviation √2·b.
        seed: Fixes every α, K and z; all replicas of a model take the same one.
        named_parameters: Names for ``include`` and ``exclude``; default: the base optimizer's own.
        include: Shell patterns of the weights that move; default all trainable ones.
        exclude: Shell patterns of weights that stay.

    Raises:
        ValueError: Empty ``alphas``, ``max_tasks`` < 1, ``scale`` < 0, an unknown distribution, or patterns that
            match nothing.
    """

    def __init__(
        self, base: Optimizer, alphas: Sequence[float] = ALPHAS, max_tasks: int = MAX_TASKS, loc: float = 0.0,
        scale: float = SCALE, distribution: str = "laplace", seed: int = 0, *,
        named_parameters: Iterable[tuple[str, Tensor]] | None = None, include: Sequence[str] = (),
        exclude: Sequence[str] = (), frozen: bool = False,
    ):  # fmt: skip
        check(alphas, max_tasks, scale, distribution)
        super().__init__(base, Perturbation(select(base, named_parameters, include, exclude, frozen)))
        self.alphas, self.max_tasks = tuple(float(a) for a in alphas), int(max_tasks)
        self.loc, self.scale, self.distribution, self.seed = float(loc), scale, distribution, int(seed)
        self.steps = 0
        self.last_offset: Offset | None = None
        self._ready = False

    def draw(self, step: int) -> Offset:
        """The offset of an optimizer step: a function of the seed and the step alone."""
        alpha = self.alphas[mixed(self.seed, step, 1) % len(self.alphas)]
        tasks = 1 + mixed(self.seed, step, 2) % self.max_tasks
        return Offset(step, alpha, tasks, mixed(self.seed, step, 3))

    def noise(self, offset: Offset) -> dict[str | int, Tensor]:
        """z of an offset, drawn again: by weight name, or by place where weights have no names."""
        moved = self.perturbation.moved
        return {
            m.name or i: noise_like(
                m.weight, mixed(offset.seed, i), loc=self.loc, scale=self.scale, distribution=self.distribution
            )
            for i, m in enumerate(moved)
        }

    @contextmanager
    def perturbed(self) -> Iterator[Offset]:
        """Weights are θ + (Kα − 1) z inside, and θ again, bit for bit, outside.

        Any number of micro-batches may run inside, and the context may be entered again before the next ``step``: the
        offset is the same until the optimizer has stepped.
        """
        offset = self.move()
        try:
            yield offset
        finally:
            self.restore()

    def move(self) -> Offset:
        """Enter what ``perturbed`` encloses (for trainers that call back)."""
        if self.perturbation.active:
            raise RuntimeError("the weights are moved already: `perturbed()` does not nest")
        offset = self.draw(self.steps)
        self.perturbation.move(lambda i, w, out: self._fill(offset, i, w, out))
        self.last_offset, self._ready = offset, True
        return offset

    def restore(self) -> None:
        """Leave what ``perturbed`` encloses."""
        self.perturbation.restore()

    def _fill(self, offset: Offset, i: int, weight: Tensor, out: Tensor) -> None:
        add_noise(
            weight, out, offset.coefficient, mixed(offset.seed, i),
            loc=self.loc, scale=self.scale, distribution=self.distribution,
        )  # fmt: skip

    def step(self, closure: Any = None) -> Any:
        """Let the base optimizer step at θ, with the gradients taken inside ``perturbed()``, or by the closure there.

        Raises:
            RuntimeError: Inside ``perturbed()``, or when no gradient was taken at moved weights since the last step.
        """
        if self.perturbation.active:
            raise RuntimeError("the weights are moved: leave `perturbed()` before the step")
        loss = None
        if closure is not None:
            with self.perturbed(), torch.enable_grad():
                loss = closure()
        elif not self._ready:
            raise RuntimeError("no gradient was taken at moved weights: run backward inside `with opt.perturbed():`")
        self.base.step()
        self.steps, self._ready = self.steps + 1, False
        return loss

    def extra_state(self) -> dict[str, Any]:
        """The random state: the seed, the count of steps and the latest offset."""
        last = asdict(self.last_offset) if self.last_offset else None
        return {"seed": self.seed, "steps": self.steps, "last_offset": last}

    def load_extra_state(self, state: dict[str, Any]) -> None:
        """Go on with the offsets where the saved run stopped."""
        self.seed, self.steps = state["seed"], state["steps"]
        self.last_offset = Offset(**state["last_offset"]) if state["last_offset"] else None


def check(alphas: Sequence[float], max_tasks: int, scale: float, distribution: str) -> None:
    """Refuse parameters that mean nothing."""
    if not len(alphas):
        raise ValueError("alphas is empty: give one merge coefficient at least")
    if int(max_tasks) < 1:
        raise ValueError(f"max_tasks is {max_tasks}: it must be 1 or more")
    if not scale >= 0:
        raise ValueError(f"scale is {scale}: the Laplace scale b cannot be negative")
    if distribution not in DISTRIBUTIONS:
        raise ValueError(f"unknown distribution {distribution!r}: valid names are {', '.join(DISTRIBUTIONS)}")
