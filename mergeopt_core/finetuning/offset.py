"""What fixes one step's offset, and how it is drawn."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from mergeopt_core.finetuning.sampling import DISTRIBUTIONS, mixed

ALPHAS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6)
MAX_TASKS = 7
SCALE = 5e-4
Scale = float | Literal["fitted"]


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


def draw(seed: int, step: int, alphas: Sequence[float], max_tasks: int) -> Offset:
    """α ~ Uniform(A), K ~ Uniform{1, …, K_max} and the seed of z: a function of seed and step alone."""
    alpha = alphas[mixed(seed, step, 1) % len(alphas)]
    return Offset(step, alpha, 1 + mixed(seed, step, 2) % max_tasks, mixed(seed, step, 3))


def check(alphas: Sequence[float], max_tasks: int, scale: Scale, distribution: str) -> None:
    """Refuse parameters that mean nothing.

    Raises:
        ValueError: Saying which, and what is valid.
    """
    if not len(alphas):
        raise ValueError("alphas is empty: give one merge coefficient at least")
    if int(max_tasks) < 1:
        raise ValueError(f"max_tasks is {max_tasks}: it must be 1 or more")
    if isinstance(scale, str):
        if scale != "fitted":
            raise ValueError(f"scale is {scale!r}: give a number, or fitted")
    elif not scale >= 0:
        raise ValueError(f"scale is {scale}: the Laplace scale b cannot be negative")
    if distribution not in DISTRIBUTIONS:
        raise ValueError(f"unknown distribution {distribution!r}: valid names are {', '.join(DISTRIBUTIONS)}")
