"""Copies of weights: float32 masters of half-precision ones, and θ0 with the Laplace scale fitted to θ − θ0."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer


class MasterWeights(Optimizer):
    """Gives the base optimizer a float32 copy of each half-precision parameter, and rounds the result into that.

    The optimizer steps in float32, the model computes in half precision. With ``MergOPT(opt, masters=opt.masters)`` the
    working weights are moved in place and brought back from the masters: the offset then costs no further copy.

    Args:
        base: An optimizer over the model's half-precision parameters.

    Raises:
        ValueError: The optimizer has stepped already.
    """

    def __init__(self, base: Optimizer):
        if base.state:
            raise ValueError("the optimizer has stepped already: wrap it before the first step")
        super().__init__([{**g, "params": list(g["params"])} for g in base.param_groups], base.defaults)
        self.base = base
        self.masters: dict[Tensor, Tensor] = {}
        for group, view in zip(base.param_groups, self.param_groups):
            group["params"] = [self._master(p) for p in view["params"]]

    def _master(self, p: Tensor) -> Tensor:
        if p.dtype in (torch.bfloat16, torch.float16):
            self.masters[p] = torch.nn.Parameter(p.detach().float())
        return self.masters.get(p, p)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Step the masters with the working weights' gradients, and round the result into the working weights."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        self._tell_base()
        for p, master in self.masters.items():  # one gradient at a time, in place of the working weights'
            master.grad, p.grad = None if p.grad is None else p.grad.float(), None
        self.base.step()
        for p, master in self.masters.items():
            master.grad = None
            p.copy_(master)
        return loss

    def _tell_base(self) -> None:
        """Tell the base optimizer what a schedule wrote into this one's groups."""
        for group, view in zip(self.base.param_groups, self.param_groups):
            group.update({k: v for k, v in view.items() if k != "params"})

    def state_dict(self) -> dict[str, Any]:
        """The base optimizer's state dict, and the masters' values."""
        self._tell_base()
        return {**self.base.state_dict(), "masters": [m.detach() for _, m in self.masters.items()]}

    @torch.no_grad()
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take up the base optimizer's state and the masters."""
        rest = dict(state_dict)
        for (p, master), value in zip(self.masters.items(), rest.pop("masters"), strict=True):
            master.copy_(value)
            p.copy_(master)
        self.base.load_state_dict(rest)
        for group, view in zip(self.base.param_groups, self.param_groups):
            view.update({k: v for k, v in group.items() if k != "params"})


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
