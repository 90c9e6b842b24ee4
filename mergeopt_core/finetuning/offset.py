"""One step's offset, and what is known of θ0: the expert's own task vector so far and the scale fitted to it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

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


class Origin:
    """A copy of θ0, so that θ − θ0 is known while training.

    Args:
        weights: θ0, or the weights now, where training starts from them.
    """

    def __init__(self, weights: Sequence[Tensor]):
        self.weights = [w.detach().clone() for w in weights]

    def vector(self, i: int, weight: Tensor) -> Tensor:
        """The i-th weight's task vector so far, θ − θ0: a new tensor of the weight's shape."""
        return weight - self.weights[i]

    def checksum(self) -> float:
        """A number that tells one θ0 from another: the sum of all elements in double precision."""
        return float(sum(w.sum(dtype=torch.float64).item() for w in self.weights))


class ScaleFit:
    """Running maximum-likelihood fit of the Laplace scale of θ − θ0, for each weight tensor.

    b ← memory · b + (1 − memory) · mean|θ − θ0 − μ|.
    """

    def __init__(self, origin: Origin, loc: float, start: float, memory: float):
        if not start >= 0 or not 0 <= memory <= 1:
            raise ValueError(
                f"fit_start is {start} and fit_memory {memory}: give a start of 0 or more, a memory in [0, 1]"
            )
        self.origin, self.loc, self.start, self.memory = origin, loc, float(start), memory
        self.scales: list[float] = []

    @torch.no_grad()
    def update(self, weights: Sequence[Tensor]) -> None:
        """Take in the weights after a step."""
        new = [self.origin.vector(i, w).sub_(self.loc).abs_().mean() for i, w in enumerate(weights)]
        fitted = torch.stack([b.double().cpu() for b in new]).tolist()
        old = self.scales or [self.start] * len(fitted)
        self.scales = [self.memory * a + (1 - self.memory) * b for a, b in zip(old, fitted)]

    def scale_of(self, i: int) -> float:
        """b of the i-th weight now."""
        return self.scales[i] if self.scales else self.start
