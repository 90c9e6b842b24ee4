"""What is known about θ0: the expert's own task vector so far, and the Laplace scale fitted to it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


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

    def check(self, checksum: float) -> None:
        """Refuse to go on from another θ0 than the saved run's.

        Raises:
            ValueError: The checksums differ.
        """
        if checksum != self.checksum():
            raise ValueError(
                "θ0 is not the one that the saved run started from: make the optimizer before loading trained weights, "
                "or pass theta0="
            )


class LaplaceFit:
    """Running maximum-likelihood fit of the Laplace scale of θ − θ0, for each weight tensor.

    b ← memory · b + (1 − memory) · mean|θ − θ0 − μ|.
    """

    def __init__(self, origin: Origin, loc: float, start: float, memory: float):
        if not start >= 0 or not 0 <= memory <= 1:
            raise ValueError(
                f"fit_start is {start} and fit_memory {memory}: give a start of 0 or more, a memory in [0, 1]"
            )
        self.origin, self.loc, self.memory = origin, loc, memory
        self.start = float(start)
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
